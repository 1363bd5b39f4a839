"""A target in the making: a part file and a journal beside it, which become the target at the end.

The part file is ``NAME.tunnelsync.part``, locked while somebody writes it; the journal tells which
of its blocks are verified and safe on the disk. All of it blocks.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import ClassVar

from tunnelsync.client.journal import Journal, Kept, Origin, Version
from tunnelsync.client.target import Blocks, beside, explained, refuse_existing, write_at
from tunnelsync.errors import TargetBusy
from tunnelsync.frames import BLOCK_BYTES, digest
from tunnelsync.protocol import printable

SUFFIX = ".tunnelsync.part"
"""Of our own: a plain ``.part`` may be a file, or even a dataset, of the user's."""
JOURNAL_SUFFIX = ".tunnelsync.journal"
ATTEMPTS = 10
"""How often the part file may be replaced under our hands before we call it busy."""


class Resume(Enum):
    """What a fetch does with what an earlier run has left, and leaves itself."""

    YES = "yes"
    """Go on from it; after an error, leave what is verified for the next run."""
    RESTART = "restart"
    """Drop it, and begin anew; leave what is verified."""
    NO = "no"
    """Drop it, and leave nothing."""


class PartFile:
    """A target in the making.

    With ``origin`` there is a journal, and what an earlier run of the same origin left is gone on
    with, unless ``restart``. Without it, nothing is taken over and nothing is left. ``sync`` makes
    the target last through a power cut from the moment it appears. Raises `TargetBusy` while
    another process holds it, `WriteFailed` for what the system refuses.
    """

    ordered: ClassVar[bool] = False

    def __init__(
        self,
        target: Path,
        *,
        force: bool = False,
        sync: bool = False,
        origin: Origin | None = None,
        restart: bool = False,
        journal_bytes: int = 0,
    ) -> None:
        self._descriptor = -1
        self._lost: OSError | None = None
        self._full: OSError | None = None
        self._synced: list[tuple[int, bytes]] = []
        self._noted = False
        self._emptied = False
        self._others = False  # what is there is another's, until there is an answer
        self._unwritten: Kept | None = None
        self._target = target
        self._part = beside(target, SUFFIX)
        self._journal = Journal(beside(target, JOURNAL_SUFFIX), journal_bytes)
        self._origin = origin
        self._restart = restart
        self._force = force
        self._sync = sync

    @property
    def lasting(self) -> bool:
        """Whether blocks are kept: with a journal."""
        return self._origin is not None

    def untouched(self) -> bool:
        """Tell that there is no part file, of whomever, and a folder to write into."""
        return not os.path.lexists(self._part) and os.access(self._target.parent, os.W_OK)

    def open(self) -> Kept | None:
        """Create and lock the part file, or take it over from an earlier run."""
        with explained(self._part):
            for _ in range(ATTEMPTS):
                found = self._locked()
                if found is not None:
                    kept = None if self._restart else self._kept(found)
                    if kept is None:
                        self._others = found.st_size > 0 or os.path.lexists(self._journal.path)
                    return kept
        raise _busy(self._target)

    def begin(self, version: Version, blocks: Blocks) -> None:
        """Write the journal anew; without blocks to start from, the part file is emptied, and the
        journal waits for the first of them: a small dataset never has one."""
        if not self._force:
            refuse_existing(self._target)  # which may have come while the answer was waited for
        self._others = False
        held: Mapping[int, bytes] = dict(blocks)
        with explained(self._journal.path):
            found = os.fstat(self._descriptor)
            if not held:
                self._empty(found)
            elif found.st_size > version.size:
                os.ftruncate(self._descriptor, version.size)
            if self._origin is not None:
                self._unwritten = Kept(self._origin, version, found.st_ino, held)
                if held:
                    self._write_journal()

    def write(self, index: int, parts: Sequence[bytes]) -> None:
        """Write a block in its place."""
        with explained(self._part):
            if self._full is not None:
                raise self._full
            try:
                size = write_at(self._descriptor, index * BLOCK_BYTES, parts)
            except OSError as error:
                self._full = error
                self._cut_off(index)
                raise
        if self._sync and size == BLOCK_BYTES and hasattr(os, "posix_fadvise"):
            # The disk begins now, and not when all has come: it drops, and so first writes out.
            with suppress(OSError):
                os.posix_fadvise(
                    self._descriptor, index * BLOCK_BYTES, size, os.POSIX_FADV_DONTNEED
                )

    def checkpoint(self, blocks: Blocks) -> None:
        """Sync the part file, then note its blocks in the journal."""
        if self._origin is None:
            return
        with explained(self._part):
            self._flush(os.fdatasync)
            self._synced += blocks
        with explained(self._journal.path):
            self._write_journal()
            self._journal.append(self._synced)
            if not self._noted:
                _sync_folder(self._target.parent)
        self._synced, self._noted = [], True

    def _flush(self, sync: Callable[[int], None]) -> None:
        """Sync the part file. After a failure none is believed: a lost write is told once."""
        if self._lost is not None:
            raise self._lost
        try:
            sync(self._descriptor)
        except OSError as error:
            self._lost = error
            raise

    def _write_journal(self) -> None:
        if self._unwritten is not None:
            self._journal.begin(self._unwritten)
            self._unwritten = None

    def publish(self, modified_ns: int) -> None:
        """Give the file its time and its name; `TargetExists` if another has taken that name."""
        with explained(self._target):
            with suppress(OSError):  # not every file system takes a time
                os.utime(self._descriptor, ns=(modified_ns, modified_ns))
            if self._sync:
                self._flush(os.fsync)
            self._rename()
            if self._sync:
                _sync_folder(self._target.parent)
            if self._origin is not None and self._unwritten is None:
                self._journal.remove()
        self._close()

    def close(self, *, keep: bool) -> None:
        """Let go of the lock; unless ``keep``, remove the part file and its journal first.

        What another fetch has left stays as it is if nothing was begun.
        """
        if self._descriptor < 0:
            return
        try:
            if not keep and not self._others and _is_at(self._part, os.fstat(self._descriptor)):
                self._journal.remove()
                self._part.unlink(missing_ok=True)
        except OSError:
            pass  # a part file left over is harmless: without its journal it is never trusted
        finally:
            self._close()

    def _kept(self, found: os.stat_result) -> Kept | None:
        """Return what the journal says, as far as the part file bears it out."""
        kept = self._journal.read() if self._origin is not None else None
        if kept is None or kept.origin != self._origin:
            return None
        size = kept.version.size
        there = {
            index: one
            for index, one in kept.blocks.items()
            if min((index + 1) * BLOCK_BYTES, size) <= found.st_size
        }
        if kept.inode != found.st_ino:
            # A copy, or another file of that name: its digests prove what is right in it.
            there = {i: one for i, one in there.items() if digest(self._read(i, size)) == one}
        return replace(kept, blocks=there) if there else None

    def _cut_off(self, index: int) -> None:
        """Give back what a block took that did not fit: the journal may be short of that room."""
        at = index * BLOCK_BYTES
        with suppress(OSError):
            if os.fstat(self._descriptor).st_size <= at + BLOCK_BYTES:
                os.ftruncate(self._descriptor, at)

    def _read(self, index: int, size: int) -> bytes:
        at = index * BLOCK_BYTES
        return os.pread(self._descriptor, min(BLOCK_BYTES, size - at), at)

    def _empty(self, found: os.stat_result) -> None:
        """Drop all that is there, the journal first: it must never speak of other bytes."""
        if self._emptied:
            return
        if self._journal.remove():
            _sync_folder(self._target.parent)
        if found.st_size:
            # Not for an empty one: ext4 writes a file that was once truncated out at its close.
            os.ftruncate(self._descriptor, 0)
        self._emptied = True

    def _rename(self) -> None:
        if not _is_at(self._part, os.fstat(self._descriptor)):
            raise TargetBusy(
                f"the part file of {printable(str(self._target))} was removed or replaced",
                hint="Run the command again, and leave its files alone until it ends.",
            )
        if self._force:
            os.replace(self._part, self._target)
            return
        try:
            os.link(self._part, self._target, follow_symlinks=False)
        except FileExistsError:
            refuse_existing(self._target)
            raise
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            refuse_existing(self._target)  # no hard links here: the best that is left
            os.rename(self._part, self._target)
        else:
            self._part.unlink()

    def _locked(self) -> os.stat_result | None:
        """Open and lock the part file, and return what it is; None if it was replaced meanwhile."""
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor, ours = os.open(self._part, flags | os.O_EXCL, 0o666), True
        except FileExistsError:
            descriptor, ours = os.open(self._part, flags, 0o666), False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise FileExistsError(errno.EEXIST, "it is there, and no regular file")
            if not _is_at(self._part, found):
                os.close(descriptor)
                return None
            if found.st_nlink > 1 or not (ours or found.st_uid == os.geteuid()):
                # A run was killed while it gave the file its name: the target is this very file.
                # Or it is another user's, who could still write what we have verified.
                self._part.unlink()
                os.close(descriptor)
                return None
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise _busy(self._target, holder) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return found

    def _close(self) -> None:
        self._journal.close()
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


def _is_at(path: Path, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(found, os.lstat(path))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _busy(target: Path, holder: str = "") -> TargetBusy:
    return TargetBusy(f"another process{holder} is writing {printable(str(target))}")


def _holder(descriptor: int) -> str:
    """Return `` (PID)`` of the process that has locked a file, where the system tells it."""
    found = os.fstat(descriptor)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5:6] == [place] and words[4] != "0":
                return f" ({words[4]})"
    return ""
