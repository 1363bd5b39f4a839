"""A target in the making: a part file and a journal beside it, which become the target at the end.

The part file is ``NAME.tunnelsync.part``, locked while somebody writes it; the journal tells which
of its blocks are verified and written. The bytes are not synced before the journal speaks of them:
who goes on proves each block again, unless a run that ended in order has synced and sealed all of
it. All of it blocks.
"""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import ClassVar

from tunnelsync.client.journal import Journal, Kept, Origin, Version
from tunnelsync.client.lock import is_at, lock
from tunnelsync.client.target import Blocks, beside, explained, refuse_existing, write_at
from tunnelsync.errors import TargetBusy
from tunnelsync.frames import BLOCK_BYTES, digest
from tunnelsync.objects import SECOND_NS
from tunnelsync.protocol import printable

SUFFIX = ".tunnelsync.part"
"""Of our own: a plain ``.part`` may be a file, or even a dataset, of the user's."""
JOURNAL_SUFFIX = ".tunnelsync.journal"


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
        self._unnoted: list[tuple[int, bytes]] = []
        self._noted = False
        self._emptied = False
        self._others = False  # what is there is another's, until there is an answer
        self._unwritten: Kept | None = None
        self._sealed: Kept | None = None  # what is on the disk for certain
        self._named = False
        self._target = target
        self._part = beside(target, SUFFIX)
        self._journal = Journal(beside(target, JOURNAL_SUFFIX), journal_bytes)
        self._origin = origin
        self._restart = restart
        self._force = force
        self._sync = sync

    @property
    def lasting(self) -> bool:
        """Whether blocks are kept: with a journal, until they are a file with its name."""
        return self._origin is not None and not self._named

    def untouched(self) -> bool:
        """Tell that there is no part file, of whomever, and a folder to write into."""
        return not os.path.lexists(self._part) and os.access(self._target.parent, os.W_OK)

    def open(self) -> Kept | None:
        """Create and lock the part file, or take it over from an earlier run."""
        with explained(self._part):
            self._descriptor = lock(self._part, self._target)
            found = os.fstat(self._descriptor)
            kept = None if self._restart else self._kept(found)
            self._sealed = kept if kept and kept.sealed_ns is not None else None
            if kept is None:
                self._others = found.st_size > 0 or os.path.lexists(self._journal.path)
            return kept

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
                self._sealed = None
            elif found.st_size > version.size:
                os.ftruncate(self._descriptor, version.size)
            if self._origin is not None:
                self._unwritten = Kept(self._origin, version, held)
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
        """Note blocks that were written in the journal."""
        if self._origin is None:
            return
        self._unnoted += blocks
        with explained(self._journal.path):
            self._write_journal()
            self._journal.append(self._unnoted)
            if not self._noted:
                _sync_folder(self._target.parent)
        self._unnoted, self._noted = [], True

    def proves(self, index: int, claimed: bytes, size: int) -> bool:
        """Tell whether a block has this digest in the part file of a dataset of so many bytes."""
        at = index * BLOCK_BYTES
        try:
            return digest(os.pread(self._descriptor, min(BLOCK_BYTES, size - at), at)) == claimed
        except OSError:
            return False

    def seal(self) -> None:
        """Sync the part file, and note that all of the journal is so and nothing more is written;
        not if it need not last through a power cut."""
        if self._sync and self._journal.begun:
            with explained(self._part):
                self._flush(os.fdatasync)
            with explained(self._journal.path):
                ctime_ns = os.fstat(self._descriptor).st_ctime_ns
                if ctime_ns % SECOND_NS:  # else it may not tell the next change
                    self._journal.seal(ctime_ns)

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
            else:
                # Where the file is another machine's, this tells what was written in vain.
                os.close(os.dup(self._descriptor))
            self._rename()
            self._named = True
            if self._sync:
                _sync_folder(self._target.parent)
            if self._origin is not None and self._unwritten is None:
                self._journal.remove()
            self._close()

    def close(self, *, keep: bool) -> None:
        """Let go of the lock; unless ``keep``, remove the part file and its journal first.

        What another fetch has left stays as it is if nothing was begun. What has no journal is not
        kept.
        """
        if self._descriptor < 0:
            return
        keep = keep and self._unwritten is None and (self._lost is None or self._forget_lost())
        with suppress(OSError):  # a part file left over without its journal is never trusted
            if not keep and not self._others:
                if self._named:
                    self._journal.remove()
                elif is_at(self._part, os.fstat(self._descriptor)):
                    self._journal.remove()
                    self._part.unlink(missing_ok=True)
        with suppress(OSError):
            self._close()

    def _forget_lost(self) -> bool:
        """Have the journal speak of what an earlier run sealed alone; False if that is nothing.

        The disk has lost something of this run's, nobody knows what: in memory all looks right.
        """
        if self._sealed is None:
            return False
        try:
            self._journal.begin(replace(self._sealed, sealed_ns=None))
        except OSError:
            return False
        return True

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
        sealed = kept.sealed_ns if kept.sealed_ns == found.st_ctime_ns else None
        return replace(kept, blocks=there, sealed_ns=sealed) if there else None

    def _cut_off(self, index: int) -> None:
        """Give back what a block took that did not fit: the journal may be short of that room."""
        at = index * BLOCK_BYTES
        with suppress(OSError):
            if os.fstat(self._descriptor).st_size <= at + BLOCK_BYTES:
                os.ftruncate(self._descriptor, at)

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
        if not is_at(self._part, os.fstat(self._descriptor)):
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

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        try:
            self._journal.close()
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # one that takes files and shows none: it cannot be synced by us
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
