"""Where verified blocks go: what a download writes to, and how a target is named and written.

All of it blocks, and is called from the download's own threads.
"""

import errno
import os
import select
import stat
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Protocol

from tunnelsync.client.journal import Kept, Version
from tunnelsync.errors import TargetExists, Usage, WriteFailed
from tunnelsync.frames import digest
from tunnelsync.protocol import printable

NAME_BYTES = 255
"""NAME_MAX of the usual file systems."""
PARTS_AT_ONCE = 64
"""A block in more parts than that came over a slow line in small pieces: they are joined first."""
WRITE_BYTES = 512 * 1024
"""One write. Measured: with 4 MiB at once the page cache cost up to five times the CPU."""
Blocks = Iterable[tuple[int, bytes]]
"""Blocks by index, each with its digest."""


class Sink(Protocol):
    """What a download writes to.

    ``ordered`` says that blocks must come one after the other, ``lasting`` that another run can go
    on from those that are kept.
    """

    ordered: ClassVar[bool]

    @property
    def lasting(self) -> bool:
        """Whether blocks are kept."""

    def untouched(self) -> bool:
        """Tell, without waiting for a disk, that `open` will most likely just do it."""

    def open(self) -> Kept | None:
        """Get ready; return what an earlier run has left."""

    def begin(self, version: Version, blocks: Blocks) -> None:
        """What comes is known now, and these blocks of it are here already."""

    def write(self, index: int, parts: Sequence[bytes]) -> None:
        """Write a block in its place; raise `WriteFailed`."""

    def checkpoint(self, blocks: Blocks) -> None:
        """Note blocks that were written, so that another run can go on from them."""

    def proves(self, index: int, claimed: bytes, size: int) -> bool:
        """Tell whether a block that an earlier run left has this digest; the dataset has ``size``
        bytes."""

    def seal(self) -> None:
        """All that was checkpointed is proven, and nothing more is written: where it lasts, the
        next run may trust it unseen."""

    def publish(self, modified_ns: int) -> None:
        """All blocks are there: make the result visible."""

    def close(self, *, keep: bool) -> None:
        """Let go of it, with or without what was written; harmless after `publish`."""


def resolve(path: Path | str | None, dataset: str, *, force: bool) -> Path:
    """Return the file to write, or raise `TargetExists` or `Usage`.

    Without a path it is the dataset's last component in the current folder, and a path that is a
    folder means that name in it; so a dataset's name never leads elsewhere. With ``force`` a
    regular file or a symbolic link may be there already, and is replaced itself.
    """
    name = dataset.rpartition("/")[2]
    if path is not None and not os.fspath(path):
        raise Usage("the name of the file to write is empty", hint="Give a path after -o.")
    if not _can_be(name if path is None else path):
        raise Usage(f"{os.fspath(path or name)!a} cannot be the name of a file")
    with explained(Path("into the current folder")):
        # Not `abspath`, which takes `link/..` for the folder that the link is in.
        target = Path.cwd() / (name if path is None else path)
    found = _kind(target)
    if found == stat.S_IFDIR or (path is not None and os.fspath(path).endswith("/")):
        target /= name
        found = _kind(target)
    if not os.path.isdir(target.parent):
        raise Usage(
            f"there is no folder {printable(str(target.parent))} to write into",
            hint="Create it first, or choose another place with -o.",
        )
    if is_special(target):
        raise TargetExists(
            f"{printable(str(target))} is not a regular file, and is never replaced",
            hint="Choose another name with -o; `-o -` writes to standard output.",
        )
    if not force:
        refuse_existing(target)
    return target


def is_special(path: Path | str) -> bool:
    """Tell whether a path is of what can only be written to: no file, or an open descriptor as
    ``/dev/stdout``, whose name is never to be replaced."""
    ways = os.path.realpath(os.path.dirname(path)), os.path.islink(path) and os.readlink(path)
    open_here = any(str(way).startswith("/proc/") for way in ways)
    return os.path.exists(path) and (open_here or not os.path.isfile(path))


def _can_be(path: Path | str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _kind(path: Path) -> int:
    """Return the type of what is there, as in ``st_mode``; 0 for nothing."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):
        return 0


def beside(target: Path, suffix: str) -> Path:
    """Return a file of ours beside a target; a name too long for the suffix is hashed."""
    name = target.name + suffix
    if len(os.fsencode(name)) > NAME_BYTES:
        name = digest(os.fsencode(target.name)).hex() + suffix
    return target.with_name(name)


class Fleeting:
    """What every sink does of which nothing stays here: nothing, most of the time."""

    lasting: ClassVar[bool] = False

    def untouched(self) -> bool:
        """Nobody can have left anything."""
        return True

    def open(self) -> None:
        """There is nothing to open, and nothing was left."""

    def begin(self, version: Version, blocks: Blocks) -> None:
        """Nothing is prepared."""

    def checkpoint(self, blocks: Blocks) -> None:
        """Nothing can be made to last."""

    def proves(self, index: int, claimed: bytes, size: int) -> bool:
        """Nothing was left."""
        return False

    def seal(self) -> None:
        """Nothing is left."""

    def publish(self, modified_ns: int) -> None:
        """Nothing is left to do."""

    def close(self, *, keep: bool) -> None:
        """There is nothing to let go of, and what went out cannot be taken back."""


class Descriptor(Fleeting):
    """An open descriptor, such as standard output: blocks go out as they are proven.

    Writes go to a duplicate: one to a reader that does not read outlives a fetch that is cancelled,
    and the number may be that of another file by then.
    """

    ordered: ClassVar[bool] = True

    def __init__(self, descriptor: int) -> None:
        with explained(None):
            self._descriptor = os.dup(descriptor)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._writing = threading.Lock()
        self._given_up = False

    def untouched(self) -> bool:
        """Nobody knows."""
        return False

    def write(self, index: int, parts: Sequence[bytes]) -> None:
        """Write a block; `WriteFailed` when the reader has gone."""
        try:
            with self._writing, explained(None):
                write_all(self._descriptor, parts)
        finally:
            if self._given_up:
                self.close(keep=False)

    def close(self, *, keep: bool) -> None:
        """Close the duplicate, or have the write that is under way do so. Waits for nobody."""
        self._given_up = True
        if self._writing.acquire(blocking=False):
            self._close()
            self._writing.release()


def write_all(descriptor: int, parts: Sequence[bytes]) -> None:
    """Write all the parts, also to a descriptor that does not block."""
    for part in _few(parts):
        rest = memoryview(part)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest[:WRITE_BYTES]) :]
            except BlockingIOError:
                room = select.poll()
                room.register(descriptor, select.POLLOUT)
                room.poll()


def write_at(descriptor: int, offset: int, parts: Sequence[bytes]) -> int:
    """Write all the parts one after the other, from an offset of a file on; return their bytes."""
    start = offset
    for part in _few(parts):
        rest = memoryview(part)
        while rest:
            count = os.pwrite(descriptor, rest[:WRITE_BYTES], offset)
            rest, offset = rest[count:], offset + count
    return offset - start


def _few(parts: Sequence[bytes]) -> Sequence[bytes]:
    return parts if len(parts) <= PARTS_AT_ONCE else (b"".join(parts),)


def refuse_existing(target: Path) -> None:
    """Raise `TargetExists` if there is anything of that name."""
    if os.path.lexists(target):
        raise TargetExists(f"{printable(str(target))} is there already")


@contextmanager
def explained(path: Path | None) -> Iterator[None]:
    """Turn what the system says into `WriteFailed`, in plain words; None is for the output."""
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
            errno.EBADF: "it is closed",
            errno.ELOOP: "its part file is a symbolic link",
            errno.ENXIO: "its part file is no regular file",
            errno.EISDIR: "its part file is a folder",
            errno.ENAMETOOLONG: "the name is too long",
        }
        why = words.get(exc.errno or 0, exc.strerror or "unknown reason")
        if path is None:
            raise WriteFailed(f"cannot write the output: {why}", hint="") from None
        shown = printable(str(path)) if path.is_absolute() else str(path)
        raise WriteFailed(f"cannot write {shown}: {why}") from None
