"""The jail: how a name under the connector's root is opened without leaving that root.

It decides on the descriptor that it opened, never on a path that could be swapped before it is
used. Nothing here waits for the event loop: it runs on the executor of ``source.py``.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable
from functools import cache

from tunnelsync.errors import (
    ConnectorBusy,
    DatasetChanged,
    DatasetDenied,
    DatasetNotFound,
    NotADataset,
    OutsideRoot,
    ReadFailed,
    TunnelSyncError,
)
from tunnelsync.protocol import printable

Jail = Callable[[int, str], int]
"""Opens a name under a root's descriptor for reading; raises `OSError` or `NotADataset`.

What it returns is a regular file or a folder, seen to be one before it was opened: opening a
FIFO, a terminal or a tape drive already does something, even with ``O_NONBLOCK``.
"""

OPENAT2 = 437
RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH = 0x02, 0x08
MOVED_ATTEMPTS = 100  # RESOLVE_BENEATH gives EAGAIN when a folder moves under a "..": try again
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY


def beneath(root_fd: int, name: str) -> int:
    """The jail of Linux: one ``openat2`` that follows links as long as they stay inside.

    It takes an ``O_PATH`` handle first, which touches no device, and judges that. Then it
    reopens the handle through ``/proc/self/fd``: a magic link too, but one whose text is ours
    and which leads to the very inode that was judged, so nothing can be swapped in between.
    """
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    for _ in range(MOVED_ATTEMPTS):
        handle = _libc().syscall(OPENAT2, root_fd, name.encode(), how, len(how))
        if handle >= 0 or ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    if handle < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    try:
        refuse_special(os.fstat(handle), name)
        return os.open(f"/proc/self/fd/{handle}", READ_FLAGS)
    finally:
        os.close(handle)


def stepwise(root_fd: int, name: str) -> int:
    """The jail of other systems: component by component, following no link at all.

    The kind is looked at before the open and again by the caller on the descriptor. Whoever
    swaps in a device between the two gains nothing: it is opened without waiting, then refused.
    """
    *folders, last = name.encode().split(b"/")
    flags = READ_FLAGS | os.O_NOFOLLOW | os.O_NONBLOCK
    through = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
    here = os.dup(root_fd)
    try:
        for folder in folders:
            _refuse_link(os.stat(folder, dir_fd=here, follow_symlinks=False))
            deeper = os.open(folder, through, dir_fd=here)
            os.close(here)
            here = deeper
        found = os.stat(last, dir_fd=here, follow_symlinks=False)
        _refuse_link(found)
        refuse_special(found, name)
        return os.open(last, flags, dir_fd=here)
    finally:
        os.close(here)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    number, text = ctypes.c_long, ctypes.c_char_p
    libc.syscall.argtypes = [number, number, text, text, ctypes.c_size_t]
    libc.syscall.restype = number
    return libc


def jail_here(root_fd: int) -> Jail:
    """Return `beneath` where it works: seccomp, an old kernel or a missing /proc forbid it."""
    if sys.platform == "linux":
        try:
            os.close(beneath(root_fd, "."))
            return beneath
        except (OSError, NotADataset):
            pass
    return stepwise


@cache
def _kernel_devices() -> frozenset[int]:
    """The file systems whose regular files are none: a read of /proc/kmsg never returns."""
    return frozenset(os.stat(p).st_dev for p in ("/proc", "/sys") if os.path.ismount(p))


def is_special(found: os.stat_result) -> bool:
    """Tell whether this is neither a regular file nor a folder, or one of the kernel's own."""
    served = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return not served or found.st_dev in _kernel_devices()


def refuse_special(found: os.stat_result, name: str) -> None:
    """Raise `NotADataset`, saying what it is, for all that `is_special`."""
    if is_special(found):
        raise NotADataset(f"{printable(name)} is not a regular file but {_kind(found)}")


def _refuse_link(found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _kind(found: os.stat_result) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    kinds |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(found.st_mode), "an interface of the kernel")


def refusal(exc: OSError, name: str) -> TunnelSyncError:
    """Return the error that tells why a name could not be opened."""
    shown = printable(name)
    match exc.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.ENAMETOOLONG:
            return DatasetNotFound(f"there is no {shown} under the connector's root")
        case errno.EXDEV | errno.ELOOP | errno.EMLINK:
            return OutsideRoot(f"{shown} is reached by a link that leaves the connector's root")
        case errno.EACCES | errno.EPERM:
            return DatasetDenied(f"the connector may not read {shown}")
        case errno.ENXIO | errno.ENODEV:
            return NotADataset(f"{shown} is a socket or a device")
        case errno.EMFILE | errno.ENFILE:
            return ConnectorBusy(f"the connector has no descriptor left to open {shown}")
        case errno.EAGAIN:
            return DatasetChanged(f"the folders of {shown} are being moved")
    return ReadFailed(f"{shown} could not be opened: {exc.strerror}")
