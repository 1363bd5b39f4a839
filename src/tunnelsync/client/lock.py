"""Who writes a part file: it is opened and locked, and only as the file of its name.

A lock is flock's, so it ends with the process that holds it. All of it blocks.
"""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from tunnelsync.errors import TargetBusy
from tunnelsync.protocol import printable

ATTEMPTS = 10
"""How often the part file may be replaced under our hands before we call it busy."""


def lock(part: Path, target: Path) -> int:
    """Create and lock the part file of a target, or take over the one that is there, and return
    its descriptor.

    Raises `TargetBusy` while another process holds it, `OSError` for what the system refuses.
    """
    for _ in range(ATTEMPTS):
        descriptor, ours = _opened(part)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_to_be_had(descriptor, part, ours=ours):
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise _busy(target, holder) from None
        except BaseException:
            os.close(descriptor)
            raise
    raise _busy(target)


def is_at(path: Path, found: os.stat_result) -> bool:
    """Tell whether it is this very file that has the name."""
    try:
        return os.path.samestat(found, os.lstat(path))
    except FileNotFoundError:
        return False


def _opened(part: Path) -> tuple[int, bool]:
    """Return a descriptor, and whether the file is made by us."""
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(part, flags | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(part, flags, 0o666), False


def _is_to_be_had(descriptor: int, part: Path, *, ours: bool) -> bool:
    """Tell whether what is locked may be written: False if it was, or now is, out of the way."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "it is there, and no regular file")
    if not is_at(part, found):
        return False
    if found.st_nlink > 1 or not (ours or found.st_uid == os.geteuid()):
        # A run was killed while it gave the file its name: the target is this very file.
        # Or it is another user's, who could still write what we have verified.
        part.unlink()
        return False
    return True


def _busy(target: Path, holder: str = "another process") -> TargetBusy:
    return TargetBusy(f"{holder} is writing {printable(str(target))}")


def _holder(descriptor: int) -> str:
    """Return who has locked a file, with its process id where the system tells it."""
    found = os.fstat(descriptor)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5:6] == [place] and words[4] != "0":
                ours = words[4] == str(os.getpid())
                return "another fetch of this process" if ours else f"another process ({words[4]})"
    return "another process"
