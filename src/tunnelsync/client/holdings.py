"""What is here of a dataset: blocks that are proven, in their place in the sink, and made to last.

One thread proves and writes; another keeps the journal, off the receiving path. A short
dataset of which nothing was left is kept in memory until all of it is proven: it takes one turn of
the thread, that which publishes it. What takes longer locks its target soon.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tunnelsync import frames
from tunnelsync.client.incoming import prove
from tunnelsync.client.journal import TAKEN_BACK, Kept, Version
from tunnelsync.client.plan import Plan
from tunnelsync.client.record import Record
from tunnelsync.client.target import Sink
from tunnelsync.client.thread import SHORT_BYTES, FileThread, Result, Threads
from tunnelsync.errors import DatasetChanged, ProtocolError, VerificationFailed, WriteFailed
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES, Claimed
from tunnelsync.settings import ClientSettings

Progress = Callable[[int, int | None], None]
"""Called on the loop with the bytes that are proven and in hand, and the size, in bytes."""
OPEN_AFTER_SECONDS = 0.25
"""Who waits longer for an answer holds the lock meanwhile; most short datasets have come."""


class Holdings:
    """The blocks of one version in one sink; ``plan`` tells which, ``given_up`` that what
    comes is wrong for good. ``announced_root`` is what an answer told before its blocks came.

    Use: `open`, `begin` with the version that comes, `put` each block that came and `settle` what
    became of it, `publish` when nothing is missing; `close` in any case.
    """

    def __init__(
        self,
        sink: Sink,
        settings: ClientSettings,
        threads: Threads,
        record: Record,
        progress: Progress | None,
    ) -> None:
        self.plan = Plan(settings.parallel_least_bytes // BLOCK_BYTES)
        self.version: Version | None = None
        self.announced_root: str | None = None
        self.begun = False
        self.given_up = False
        self._left: Kept | None = None
        self._doubted: Mapping[int, bytes] = {}  # of that, what is to be looked at again
        self._opened = False
        self._short: Sequence[bytes] | None = None
        """What is kept in memory, where it is."""
        self._published = False
        self._lost: WriteFailed | None = None
        self.ordered = sink.ordered
        self._sink = sink
        self._settings = settings
        self._record = record
        self._progress = progress
        self._threads = threads
        self._files: FileThread | None = None
        self._second: FileThread | None = None
        self._unnoted: list[tuple[int, bytes]] = []
        self._next_ordered = 0

    async def open(self) -> None:
        """Open the sink, and begin with what an earlier run has left, if there may be anything."""
        if self._sink.untouched():
            return
        await self._call(self._open)
        kept = self._left
        if kept is None or self._is_too_long(kept.version):
            return
        self._expect(kept.version)
        for index, digest in kept.blocks.items():
            self.plan.hold(index, digest)
        self._doubted = {} if kept.sealed_ns is not None else kept.blocks
        if not self.plan.missing:
            # One block more to ask for, so that somebody says that the version still stands.
            self.plan.drop(max(kept.blocks))
        self._record.resumed_bytes = self.done_bytes
        doubt = ", which are checked meanwhile" if self._doubted else ""
        self._record.note(f"going on from {self.done_bytes:,} bytes verified before{doubt}")

    async def open_in_time(self) -> None:
        """Open the sink after a moment, if the answer has not come by then."""
        if not self._opened:
            await asyncio.sleep(OPEN_AFTER_SECONDS)
            await self._call(self._open)

    def forget(self) -> None:
        """Forget what an earlier run left; `begin` drops it from the sink."""
        self._record.resumed_bytes = 0
        self._doubted = {}
        self.version = None
        self.plan.forget()

    async def begin(self, version: Version) -> None:
        """Say which version comes; what is held of it stays."""
        if self.version is None:
            self._expect(version)
        self.version = version
        begin = partial(self._begin, version, tuple(self.plan.held()))
        if self._opened or version.size > SHORT_BYTES:
            await self._call(begin)
        else:
            self._short = ()
        self.begun, self._left = True, None
        self._tell()

    async def check(self, dropped: Callable[[], None]) -> None:
        """Look again at what an earlier run left unsealed, or sealed and another has changed; tell
        of each block that is not right, and so is missing."""
        assert self.version is not None
        size, wrong, many = self.version.size, 0, len(self._doubted)
        for index, digest in self._doubted.items():
            proves = partial(self._sink.proves, index, digest, size)
            if self.plan.holds(index) and not await self._beside(proves):
                self.take_back(index)
                self._record.resumed_bytes -= min(BLOCK_BYTES, size - index * BLOCK_BYTES)
                wrong += 1
                self._tell()
                dropped()
        self._doubted = {}
        if wrong:
            self._record.note(f"{wrong} of {many} blocks are not as left, and are fetched again")

    def put(self, claim: Claimed) -> "asyncio.Future[bool]":
        """Prove a block and write it, in the thread; False if it is not what it claims to be. A
        short dataset is proven here and now.

        Raises `WriteFailed` once the disk has lost what was written before.
        """
        self._see_none_lost()
        if self._short is None:
            return self._call(partial(self._put, claim))
        proven = asyncio.get_running_loop().create_future()
        proven.set_result(self._put(claim))
        return proven

    def settle(self, claim: Claimed) -> None:
        """Note that a block is proven, and written or in memory."""
        if self.ordered and claim.index >= self._next_ordered:
            return  # it came behind one that was wrong, and was not written
        self.plan.hold(claim.index, claim.digest)
        self._record.repaired = self.plan.repaired
        self._unnoted.append((claim.index, claim.digest))
        self._tell()

    def take_back(self, index: int) -> None:
        """Note that a block may be wrong for all its digest: it is missing again."""
        if self.plan.holds(index):
            self._unnoted.append((index, TAKEN_BACK))
        self.plan.drop(index)

    def flaw(self, index: int, why: str) -> None:
        """Note a block that is to be fetched again; raise once that was done too often."""
        times, what = self.plan.flaw(index), f"block {index}" if self.plan.count else "the answer"
        if times > self._settings.repairs:
            self.given_up = True
            raise VerificationFailed(f"{what} came wrong {times} times: {why}")
        self._record.note(f"{what} came wrong and is fetched again: {why}")

    def gone_out(self, index: int) -> bool:
        """Tell whether a block was written where nothing can be taken back."""
        return self.ordered and index < self._next_ordered

    async def keep_noting(self) -> None:
        """Note in the journal what was written, now and then, for ever."""
        while True:
            await asyncio.sleep(self._settings.journal_seconds)
            await self._note()

    async def publish(self) -> None:
        """Make the result visible: all of it is here."""
        assert self.version is not None
        root = self.plan.root()
        if self.announced_root not in (None, root):
            raise DatasetChanged("blocks of two versions came under one etag")
        self._record.received(root)
        if self._second is not None:
            await self._second.call(_nothing)  # what is under way still needs the descriptor
        self._see_none_lost()
        await self._call(partial(self._publish, self.version))

    async def close(self, *, keep: bool) -> None:
        """Let go of the sink; what is kept of a download that failed is synced before."""
        if self._files is None:
            return  # nothing was asked of the sink
        try:
            if not self.ordered and not self._published:
                # Where it is ordered, its reader may never take what the thread still writes.
                await self._let_go(keep=keep)
        finally:
            if self._published and not self.ordered:
                self._threads.give(self._files)
            else:
                self._files.close()
            if self._second is not None:
                self._second.close()
            if self.ordered:
                self._sink.close(keep=False)

    async def _let_go(self, *, keep: bool) -> None:
        # What was cancelled in the threads ends all the same, and a record comes before the seal.
        await self._call(_nothing)
        if self._second is not None:
            await self._second.call(_nothing)
        keep = keep and self._sink.lasting and not self._published and self._worth_keeping
        try:
            if keep:
                await self._note()
                if self.version is not None and self.done_bytes:
                    kept = f"{self.done_bytes:,} verified bytes are kept"
                    self._record.note(f"{kept}: the same command goes on from there")
                if not self._doubted:
                    await self._call(self._sink.seal)
        except WriteFailed as error:
            self._record.note(f"what came lately is not kept: {error.message}")
        await self._call(partial(self._sink.close, keep=keep))

    def _call(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run a function in the thread, behind those that were called before."""
        if self._files is None:
            self._files = self._threads.take()
        return self._files.call(function)

    def _beside(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run a function in a second thread, so that what comes is written meanwhile."""
        self._second = self._second or FileThread()
        return self._second.call(function)

    @property
    def done_bytes(self) -> int:
        """The bytes that are held."""
        assert self.version is not None
        assert self.plan.count is not None
        last = self.plan.count - 1
        done = (self.plan.count - self.plan.missing) * BLOCK_BYTES
        if self.plan.holds(last):
            done -= self.plan.count * BLOCK_BYTES - self.version.size
        return done

    @property
    def _worth_keeping(self) -> bool:
        if self.begun:
            return self._short is None and self.done_bytes > 0
        # An earlier run's, of which nothing was dropped yet, seen or unseen.
        return self._left is not None or not self._opened

    def _open(self) -> None:
        if not self._opened:
            self._left = self._sink.open()
            self._opened = True

    def _begin(self, version: Version, blocks: Sequence[tuple[int, bytes]]) -> None:
        self._open()
        self._sink.begin(version, blocks)
        if not blocks:
            self._left = None  # it is dropped

    def _publish(self, version: Version) -> None:
        if self._short is not None:
            self._begin(version, ())
            if self._short:
                self._sink.write(0, self._short)
        self._sink.publish(version.modified_ns)
        self._published = True

    def _checkpoint(self, blocks: list[tuple[int, bytes]]) -> None:
        try:
            self._sink.checkpoint(blocks)
        except WriteFailed as error:
            self._lost = error
            raise

    def _see_none_lost(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _expect(self, version: Version) -> None:
        if self._is_too_long(version):
            raise ProtocolError(f"the digests of {version.size} bytes are over digests_bytes")
        self.version = version
        self.plan.of(frames.block_count(version.size))

    def _is_too_long(self, version: Version) -> bool:
        return frames.block_count(version.size) * DIGEST_BYTES > self._settings.digests_bytes

    def _put(self, claim: Claimed) -> bool:
        assert self.version is not None
        if self.ordered and claim.index != self._next_ordered:
            return True  # it is behind one that is fetched again, and will be, too
        try:
            parts = prove(claim, self.version.size)
        except VerificationFailed:
            return False
        if self._short is None:
            self._sink.write(claim.index, parts)
        else:
            self._short = parts
        self._next_ordered = claim.index + 1
        return True

    async def _note(self) -> None:
        if self._unnoted or self._lost:
            blocks, self._unnoted = self._unnoted, []
            # Cancelled, it goes on all the same: its blocks are not in the list any more.
            await asyncio.shield(self._beside(partial(self._checkpoint, blocks)))

    def _tell(self) -> None:
        if self._progress and self.version:
            self._progress(self.done_bytes, self.version.size)


def _nothing() -> None:
    """Be done, once all that was called before is."""
