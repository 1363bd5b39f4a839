"""Where verified blocks go: a file that appears whole or not at all, or a descriptor.

All of it blocks, and is called from the download's own thread. A file is written beside its target
as ``NAME.tunnelsync.part``, locked, and takes the target's name in one step at the end.
"""

import errno
import fcntl
import os
import select
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Protocol

from tunnelsync.errors import TargetBusy, TargetExists, Usage, WriteFailed
from tunnelsync.frames import digest
from tunnelsync.protocol import printable

SUFFIX = ".tunnelsync.part"
"""Of our own: a plain ``.part`` may be a file, or even a dataset, of the user's."""
NAME_BYTES = 255
"""NAME_MAX of the usual file systems."""
PARTS_AT_ONCE = 64
"""A block in more parts than that came over a slow line in small pieces: they are joined first."""
WRITE_BYTES = 256 * 1024
"""One write. Measured: with 4 MiB at once the page cache cost up to five times the CPU."""
ATTEMPTS = 10
"""How often the part file may be replaced under our hands before we call it busy."""


class Sink(Protocol):
    """What a download writes to. ``leaves_traces`` says that `discard` must be waited for."""

    leaves_traces: ClassVar[bool]

    def open(self) -> None:
        """Get ready, before anything is asked for."""

    def write(self, parts: Sequence[bytes]) -> None:
        """Write the next block; raise `WriteFailed`."""

    def publish(self, modified_ns: int) -> None:
        """All blocks are there: make the result visible."""

    def discard(self) -> None:
        """Forget what was written and close; harmless after `publish`."""


def resolve(path: Path | str | None, dataset: str, *, force: bool) -> Path:
    """Return the file to write, or raise `TargetExists` or `Usage`.

    Without a path it is the dataset's last component in the current folder, and a path that is a
    folder means that name in it; so a dataset's name never leads elsewhere. With ``force`` a
    regular file or a symbolic link may be there already, and is replaced itself.
    """
    name = dataset.rpartition("/")[2]
    if path is not None and not os.fspath(path):
        raise Usage("the name of the file to write is empty", hint="Give a path after -o.")
    target = Path(name if path is None else path)
    if os.path.isdir(target) or (path is not None and os.fspath(path).endswith("/")):
        target /= name
    with _explained(Path("into the current folder")):
        target = Path(os.path.abspath(target))
    if not os.path.isdir(target.parent):
        raise Usage(
            f"there is no folder {printable(str(target.parent))} to write into",
            hint="Create it first, or choose another place with -o.",
        )
    if os.path.exists(target) and not os.path.isfile(target):
        raise TargetExists(
            f"{printable(str(target))} is not a regular file, and is never replaced",
            hint="Choose another name with -o; `-o -` writes to standard output.",
        )
    if not force:
        _refuse_existing(target)
    return target


def part_path(target: Path) -> Path:
    """Return where a target is written until it is whole; a name too long for it is hashed."""
    name = target.name + SUFFIX
    if len(os.fsencode(name)) > NAME_BYTES:
        name = digest(os.fsencode(target.name)).hex() + SUFFIX
    return target.with_name(name)


class PartFile:
    """A target in the making; ``sync`` makes it last through a power cut, at a third of the rate.

    Raises `TargetBusy` while another process holds it, `WriteFailed` for what the system refuses.
    """

    leaves_traces: ClassVar[bool] = True

    def __init__(self, target: Path, *, force: bool = False, sync: bool = False) -> None:
        self._descriptor = -1
        self._part = part_path(target)
        self._target = target
        self._force = force
        self._sync = sync

    def open(self) -> None:
        """Create the part file, or take it over from a killed run, empty and locked."""
        with _explained(self._part):
            for _ in range(ATTEMPTS):
                descriptor = _locked(self._part, self._target)
                if descriptor is not None:
                    self._descriptor = descriptor
                    return
        raise _busy(self._target)

    def write(self, parts: Sequence[bytes]) -> None:
        """Append a block."""
        with _explained(self._part):
            write_all(self._descriptor, parts)

    def publish(self, modified_ns: int) -> None:
        """Give the file its time and its name; `TargetExists` if another has taken that name."""
        with _explained(self._target):
            os.utime(self._descriptor, ns=(modified_ns, modified_ns))
            if self._sync:
                os.fsync(self._descriptor)
            self._rename()
            if self._sync:
                _sync_folder(self._target.parent)
        self._close()

    def discard(self) -> None:
        """Remove the part file and let go of its lock."""
        if self._descriptor < 0:
            return
        try:
            if _is_same(self._descriptor, self._part):
                self._part.unlink(missing_ok=True)
        except OSError:
            pass  # a leftover part file is harmless: it is never read, and is taken over next time
        finally:
            self._close()

    def _rename(self) -> None:
        if self._force:
            os.replace(self._part, self._target)
            return
        try:
            os.link(self._part, self._target, follow_symlinks=False)
        except FileExistsError:
            _refuse_existing(self._target)
            raise
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            _refuse_existing(self._target)  # no hard links here: the best that is left
            os.rename(self._part, self._target)
        else:
            self._part.unlink()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class Descriptor:
    """An open descriptor, such as standard output: blocks go out as they are proven."""

    leaves_traces: ClassVar[bool] = False

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def open(self) -> None:
        """It is open."""

    def write(self, parts: Sequence[bytes]) -> None:
        """Write a block; `WriteFailed` when the reader has gone."""
        with _explained(Path("the output")):
            write_all(self._descriptor, parts)

    def publish(self, modified_ns: int) -> None:
        """Nothing is left to do."""

    def discard(self) -> None:
        """What was written cannot be taken back."""


def write_all(descriptor: int, parts: Sequence[bytes]) -> None:
    """Write all the parts, also to a descriptor that does not block."""
    if len(parts) > PARTS_AT_ONCE:
        parts = (b"".join(parts),)
    for part in parts:
        rest = memoryview(part)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest[:WRITE_BYTES]) :]
            except BlockingIOError:
                room = select.poll()
                room.register(descriptor, select.POLLOUT)
                room.poll()


def _locked(part: Path, target: Path) -> int | None:
    """Open and lock the part file; None if it was replaced meanwhile."""
    flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileExistsError(errno.EEXIST, "it is there, and no regular file", str(part))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_same(descriptor, part):
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink > 1:
            # A run was killed while it gave the file its name: the target is this very file.
            part.unlink()
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_size:
            # Not for an empty one: ext4 writes a file that was once truncated out at its close.
            os.ftruncate(descriptor, 0)
    except BlockingIOError:
        os.close(descriptor)
        raise _busy(target) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _busy(target: Path) -> TargetBusy:
    return TargetBusy(f"another process is writing {printable(str(target))}")


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise TargetExists(f"{printable(str(target))} is there already")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says into `WriteFailed`, in plain words."""
    try:
        yield
    except OSError as exc:
        words = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the quota is used up",
            errno.EFBIG: "the file is larger than this file system or limit allows",
            errno.EACCES: "permission denied",
            errno.EPERM: "permission denied",
            errno.EROFS: "the file system is read-only",
            errno.EPIPE: "its reader has closed it",
            errno.ELOOP: "its part file is a symbolic link",
            errno.ENXIO: "its part file is no regular file",
            errno.EISDIR: "its part file is a folder",
            errno.ENAMETOOLONG: "the name is too long",
        }
        why = words.get(exc.errno or 0, exc.strerror or "unknown reason")
        shown = printable(str(path)) if path.is_absolute() else str(path)
        raise WriteFailed(f"cannot write {shown}: {why}") from None
