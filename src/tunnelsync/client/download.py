"""A dataset into a sink: whatever is missing is fetched, and fetched again, until nothing is.

Each worker takes a span of missing blocks, opens the way for it, and brings what comes. A break, a
block that came wrong, a resume and parallel streams are all the same here: blocks still missing.
"""

import asyncio
import math
from collections import deque
from contextlib import aclosing

from tunnelsync.client.holdings import Holdings, Progress
from tunnelsync.client.incoming import Incoming, Part, Way
from tunnelsync.client.patience import Patience
from tunnelsync.client.plan import Span
from tunnelsync.client.record import Record, Transfer
from tunnelsync.client.target import Sink
from tunnelsync.client.thread import Threads
from tunnelsync.errors import (
    Broken,
    BrokenOff,
    Cancelled,
    DatasetChanged,
    PreconditionFailed,
    ProtocolError,
    Stalled,
    StoreRefused,
    StoreUnavailable,
    StoreUntrusted,
    TunnelSyncError,
    VerificationFailed,
    WriteFailed,
)
from tunnelsync.frames import BLOCK_BYTES, Claimed
from tunnelsync.settings import ClientSettings
from tunnelsync.together import Together

DOUBTFUL = (Broken, Stalled, StoreUnavailable, StoreRefused, StoreUntrusted)
"""What casts doubt on the way; a router or connector that is away does not."""


class Download:
    """One dataset on its way into one sink, by as many streams and tries as it takes."""

    def __init__(
        self,
        way: Way,
        sink: Sink,
        settings: ClientSettings,
        threads: Threads,
        record: Record,
        progress: Progress | None = None,
    ) -> None:
        self._way = way
        self._settings = settings
        self._record = record
        self._here = Holdings(sink, settings, threads, record, progress)
        self._patience = Patience(settings, asyncio.get_running_loop().time)
        self._fewest = math.inf
        self._noting: asyncio.Task[None] | None = None
        self._workers: Together

    async def run(self) -> None:
        """Bring it all and publish it.

        Raises the error that stands: of the way, of the proof, or of the sink. What was verified
        until then stays for another run, where the sink keeps it.
        """
        keep = True
        try:
            await self._here.open()
            while True:
                try:
                    await self._bring()
                    break
                except PreconditionFailed as error:
                    self._start_over(error)
            await self._here.publish()
        except DatasetChanged:
            keep = False
            raise
        finally:
            await asyncio.shield(self._here.close(keep=keep))

    def _start_over(self, error: PreconditionFailed) -> None:
        """Forget what an earlier run left, if that is why the dataset's version was wrong."""
        if self._here.begun:
            raise DatasetChanged("the dataset changed before all of it had come") from None
        if self._here.version is None:
            raise error
        self._record.note("the dataset has changed since: starting over")
        self._here.forget()

    async def _bring(self) -> None:
        """Run the first worker, which lets others join it, until nothing is missing."""
        failed: object = None
        try:
            self._workers = Together()
            self._workers.add(late := asyncio.create_task(self._here.open_in_time()))
            self._workers.add(first := asyncio.create_task(self._work()))
            first.add_done_callback(lambda _: late.cancel())
            await self._workers.wait()
        finally:
            if (noting := self._noting) is not None:
                self._noting = None
                noting.cancel()
                (failed,) = await asyncio.gather(noting, return_exceptions=True)
        if isinstance(failed, TunnelSyncError):
            raise failed
        if not self._here.begun or self._here.plan.missing:
            # One was cancelled from within: somebody's progress may raise that, for one.
            raise Cancelled("a part of the fetch was cancelled before all had come")

    async def _work(self, span: Span | None = None) -> None:
        """Bring one span after the other, until none is left."""
        here, plan = self._here, self._here.plan
        while (span := span or plan.take()) is not None:
            try:
                await self._receive(span)
            except VerificationFailed as error:
                if here.given_up or here.gone_out(span.next):
                    raise
                here.flaw(span.next, error.message)
                self._miss_an_end(span)
            except TunnelSyncError as error:
                await self._wait(error)
                self._miss_an_end(span)
            finally:
                plan.release(span)
                span = None

    async def _check(self) -> None:
        """Look at what an earlier run left, beside what comes, and bring what is wrong of it."""

        def dropped() -> None:
            self._fewest = self._here.plan.missing
            if not self._here.plan.busy:  # who is busy takes what is missing when it is done
                self._workers.add(self._work())

        await self._here.check(dropped)

    def _miss_an_end(self, span: Span) -> None:
        """Ask for one block more where only the end has not come; without it nothing ends well."""
        if self._here.begun and not self._here.plan.missing:
            self._here.plan.drop(span.next - 1)

    async def _wait(self, error: TunnelSyncError) -> None:
        """Wait before another try, or raise the error."""
        pause = self._patience.pause(error)
        if pause is None:
            raise error
        self._record.retries += 1
        left = self._patience.left_seconds
        again = f"trying again in {pause:.1f} s, giving up in {left:.0f} s"
        self._record.note(f"{error.message}; {again}")
        await asyncio.sleep(pause)

    async def _receive(self, span: Span) -> None:
        """Bring a span by one transfer, or as much of it as comes."""
        here = self._here
        whole = span.end is None or span.end == here.plan.count
        part = Part(
            first=span.next,
            count=None if whole else (span.end or 0) - span.next,
            if_match=here.version.etag if here.version else None,
        )
        with self._record.transfer(part) as transfer:
            async with self._way.opened(part) as incoming:
                self._record.answered(transfer, incoming)
                await self._begin(incoming)
                try:
                    await self._take_all(incoming, span, transfer)
                    here.announced_root = incoming.root or here.announced_root
                except WriteFailed:
                    raise  # which is no fault of the way
                except DOUBTFUL as error:
                    self._way.distrust(error.message)
                    raise
                finally:
                    self._record.first_byte(transfer, incoming.first_byte_at)

    async def _begin(self, incoming: Incoming) -> None:
        """See that it is the version that the other blocks are of; the first answer decides."""
        here, version = self._here, incoming.version
        same = here.version is None or here.version.same(version)
        if here.begun:
            if not version.etag:
                raise DatasetChanged("the dataset has no etag, so that its parts cannot be joined")
            if not same:
                raise DatasetChanged("the dataset has another version than a moment ago")
            here.announced_root = incoming.root or here.announced_root
            return
        if not same:
            raise PreconditionFailed("the dataset is another version now")
        here.announced_root = incoming.root
        await here.begin(version)
        if (here.plan.count or 0) > 1:
            self._noting = asyncio.create_task(here.keep_noting())
            self._workers.add(self._check())
        if self._way.in_parts and not here.ordered and version.etag:
            # All are cut before any is asked for, so that each asks for no more than its own.
            spans = [here.plan.take() for _ in range(self._streams(incoming) - 1)]
            for span in filter(None, spans):
                self._workers.add(self._work(span))

    def _streams(self, incoming: Incoming) -> int:
        """Return how many streams are worth while: as asked for, or by the length of the line."""
        settings, missing = self._settings, self._here.plan.missing * BLOCK_BYTES
        asked = settings.parallel
        if not asked and incoming.body and missing >= settings.parallel_from_bytes:
            long = incoming.body.round_trip_seconds >= settings.parallel_round_trip_seconds
            asked = settings.parallel_on_long_lines if long else 1
        return max(
            1, min(asked, settings.parallel_most, missing // max(1, settings.parallel_least_bytes))
        )

    async def _take_all(self, incoming: Incoming, span: Span, transfer: Transfer) -> None:
        """Take the blocks of a span as they come, a few of them in hand at a time."""
        here, in_hand = self._here, deque[tuple[Claimed, asyncio.Task[bool]]]()
        wrong: list[int] = []

        async def landed(claim: Claimed, writing: asyncio.Future[bool]) -> bool:
            # A task, so that it counts at once: the next block may take long, or never come.
            right = await writing
            if right:
                here.settle(claim)
                self._renew()
            return right

        async def oldest() -> bool:
            claim, right = in_hand[0]
            found = await asyncio.shield(right)
            in_hand.popleft()
            span.start = claim.index + 1
            if not found:
                wrong.append(claim.index)
            return self._taken(claim, right=found)

        try:
            async with aclosing(incoming.claims) as claims:
                async for claim in claims:
                    if claim.index >= (here.plan.count or 0):
                        raise VerificationFailed("more came than was announced")
                    if span.end is not None and claim.index >= span.end:
                        break  # from here on it is another stream's
                    transfer.count(claim)
                    span.next = claim.index + 1
                    in_hand.append((claim, asyncio.create_task(landed(claim, here.put(claim)))))
                    while len(in_hand) >= max(1, self._settings.blocks_in_hand):
                        if not await oldest():
                            return
                else:
                    if span.next < (span.end or 0):
                        raise BrokenOff("the data ended before all of it had come")
                    here.plan.end()
            while in_hand and await oldest():
                pass
        except ProtocolError as error:
            # In the middle of a stream that is a bit that flipped in the head of a frame.
            raise VerificationFailed(error.message) from None
        except VerificationFailed:
            while in_hand and not here.given_up:
                await oldest()
            if here.given_up:
                raise
            if wrong:
                return  # a digest that came wrong gives a wrong end, too
            # The stream as a whole is not what was sent, and any block of it may be the wrong one.
            for index in range(transfer.first_block, span.next):
                here.take_back(index)
            span.next = transfer.first_block
            self._fewest = here.plan.missing
            raise
        except asyncio.CancelledError:
            if here.ordered:
                # Its reader may have stopped reading, and nothing is to be tidied up behind it.
                for _, right in in_hand:
                    right.cancel()
            raise
        finally:
            # After a break, what is on its way to the disk counts; the break is what is told.
            await asyncio.gather(*(one for _, one in in_hand), return_exceptions=True)

    def _renew(self) -> None:
        """Take a block that had never come for progress; one asked for again is none."""
        missing = self._here.plan.missing
        if missing < self._fewest:
            self._fewest = missing
            self._patience.renew()

    def _taken(self, claim: Claimed, *, right: bool) -> bool:
        """Note what became of a block; False if nothing that follows it can be used."""
        if right:
            return True
        self._here.flaw(claim.index, why := "it does not match its digest")
        self._way.distrust(why)
        return not self._here.ordered
