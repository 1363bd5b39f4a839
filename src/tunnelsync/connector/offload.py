"""Mode offload: the dataset goes into the store, once for all who want the same version.

An upload belongs to no single request: it has its own descriptor, goes on while anybody waits
for it, and is cancelled when the last one leaves. A large dataset goes there as segments, for
clients that take them: see ``flight.py``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tunnelsync import frames, wire
from tunnelsync.connector.flight import Flight, Flights, Key
from tunnelsync.connector.source import Root, Source
from tunnelsync.connector.stream import Report, require_match
from tunnelsync.connector.upload import Upload
from tunnelsync.errors import (
    DatasetChanged,
    StoreNotConfigured,
    StoreUnavailable,
    TransferGone,
    TunnelSyncError,
)
from tunnelsync.identity import Mac
from tunnelsync.objects import Stored
from tunnelsync.protocol import GetDatasetAuto, GetDatasetOffload, OffloadAnswer, printable
from tunnelsync.segments import SegmentsAnswer
from tunnelsync.settings import StoreSettings

if TYPE_CHECKING:
    from tunnelsync.store import Store

log = logging.getLogger("tunnelsync.connector")

SEGMENTED_BYTES = 4 * 1024**4  # beyond, a segment would be more than a store takes at once
FLIGHTS = 3  # for one question, if segments that were up are gone again and again
CLOCK_SECONDS = 1.0  # some stores tell times to the second alone


class Offload:
    """Uploads to the store, and answers with where it is; used with ``async with``.

    It begins with the uploads that an earlier process of this connector, killed, left open: they
    are aborted in the background.
    """

    def __init__(
        self,
        mac: Mac,
        root: Root,
        settings: StoreSettings,
        executor: ThreadPoolExecutor,
        upload: Upload,
    ) -> None:
        self.configured = bool(settings.endpoint)
        self._mac = mac
        self._root = root
        self._settings = settings
        self._executor = executor
        self._upload = upload
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._store: Store | None = None
        self._wholes: dict[Key, _Whole] = {}
        self.flights = Flights(settings, self._fill)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started = time.monotonic()
        self._tidying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self.configured:
            self._tidying = asyncio.create_task(self._tidy())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ending = [*self._tasks, *([self._tidying] if self._tidying else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, self.flights.close(), return_exceptions=True)
        await self._stack.aclose()

    async def send(
        self, command: GetDatasetOffload | GetDatasetAuto, source: Source, report: Report
    ) -> None:
        """Upload the dataset, or find it there, and answer.

        Raises `StoreNotConfigured`, `PreconditionFailed`, `StoreUnavailable`, `StoreRefused`,
        `DatasetChanged` or `ReadFailed`; nothing has been answered then.
        """
        if not self.configured:
            raise StoreNotConfigured("this connector has no store")
        require_match(command.conditions, source)
        answer: OffloadAnswer | SegmentsAnswer | None = None
        large = self._settings.segments_from_bytes < source.size <= SEGMENTED_BYTES
        if large and command.segments_from is not None and self._key(source) not in self._wholes:
            answer = await self._in_segments(source, command.segments_from, report)
        answer = answer or await self._whole(source, report)
        await self._upload.answer(command.request_id, wire.dumps(answer))

    # --- as segments ----------------------------------------------------------------------

    async def _in_segments(
        self, source: Source, offset: int, report: Report
    ) -> SegmentsAnswer | None:
        """Return the segments from a byte on, once there are any; None for a single object."""
        key, anew = self._key(source), False
        for _ in range(FLIGHTS):
            flight = self.flights.join(key, anew=anew)
            with suppress(TransferGone):  # another request has found that a segment is gone
                cuts = await flight.reached(offset, report)
                pipeline = flight.pipeline
                if pipeline is None:
                    return None
                if not cuts or await pipeline.stands(cuts[0]):
                    break
                # Somebody has removed it. What else there is of it is not worth a look.
                self.flights.end(flight)
                anew = True
        else:
            raise StoreUnavailable(f"segments of {printable(source.name)} vanish from the store")
        packed = pipeline.shelf.packed
        return SegmentsAnswer(
            segments=await pipeline.signed(cuts),
            dataset=source.name,
            size=source.size,
            etag=source.etag,
            modified_ns=source.mtime_ns,
            expires_seconds=pipeline.expires_seconds,
            root=frames.root([bytes(packed)]) if pipeline.shelf.whole else None,
            reused=pipeline.reused,
        )

    async def _fill(self, flight: Flight, anew: bool) -> None:
        """Do the work of a flight; ``anew`` trusts nothing that is in the store."""
        async with await self._opened_as(*flight.key) as source:
            store = await self._opened()
            await store.settle(source)
            flight.pipeline = await store.pipeline(self._mac, source, anew=anew)
            flight.tell()
            if flight.pipeline and not flight.pipeline.shelf.whole:
                todo = flight.pipeline, source, flight.wanted, flight.tell, flight.progress
                await store.fill(*todo)

    # --- as one object --------------------------------------------------------------------

    async def _whole(self, source: Source, report: Report) -> OffloadAnswer:
        stored = await self._stored(source, report)
        return OffloadAnswer(
            download_url=stored.download_url,
            blocks_url=stored.blocks_url,
            dataset=source.name,
            size=stored.size,
            etag=stored.etag,
            modified_ns=source.mtime_ns,
            root=stored.root,
            count=stored.count,
            expires_seconds=stored.expires_seconds,
            reused=stored.reused,
        )

    async def _stored(self, source: Source, report: Report) -> Stored:
        """Join the upload of this version that is under way, or begin it."""
        key = self._key(source)
        if flight := self.flights.get(key):
            # Its segments make the object, and the dataset is not sent twice.
            with suppress(TunnelSyncError):
                await flight.whole(report)
        whole = self._wholes.get(key)
        if whole is None or whole.task.done():
            whole = self._wholes[key] = self._begin_whole(key)
        whole.reports.append(report)
        try:
            return await asyncio.shield(whole.task)
        finally:
            whole.reports.remove(report)
            if not whole.reports:
                whole.task.cancel()
                if self._wholes.get(key) is whole:
                    del self._wholes[key]

    def _begin_whole(self, key: Key) -> _Whole:
        reports: list[Report] = []

        def progress(done: int) -> None:
            for report in reports:
                report("uploading", done)

        async def offer() -> Stored:
            async with await self._opened_as(*key) as source:
                store = await self._opened()
                return await store.offer(self._mac, source, progress)

        task = asyncio.create_task(offer())
        self._own(task)
        task.add_done_callback(_seen)
        return _Whole(task, reports)

    # --- what both need -------------------------------------------------------------------

    def _key(self, source: Source) -> Key:
        return source.name, source.etag

    def _own(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _opened_as(self, name: str, etag: str) -> Source:
        """Open a dataset once more, if it is still this version of it."""
        source = await self._root.open(name)
        if source.etag != etag:
            await source.close()
            raise DatasetChanged(f"{printable(name)} changed before its upload began")
        return source

    async def _tidy(self) -> None:
        """Abort the uploads of this MAC that are older than this process.

        A younger one is ours, or of a process that has replaced us.
        """

        def our_age() -> float:
            return time.monotonic() - self._started + CLOCK_SECONDS

        count = 0
        try:
            async with asyncio.timeout(self._settings.tidy_seconds):
                leftovers = await (await self._opened()).leftovers()
                async for uploads in leftovers.uploads(our_age, self._mac):
                    await leftovers.abort(uploads)
                    count += len(uploads)
        except TimeoutError:
            seconds = self._settings.tidy_seconds
            log.warning("the search for uploads left open was given up after %g s", seconds)
        except TunnelSyncError as exc:
            log.warning("uploads that were left open may stay so: %s", exc.message)
        if count:
            log.info("%d uploads that were left open are aborted", count)

    async def _opened(self) -> Store:
        """Return the store, opened on first use: its library takes a moment to import."""
        async with self._opening:
            if self._store is None:
                from tunnelsync.store import Store

                store = Store(self._settings, self._executor)
                self._store = await self._stack.enter_async_context(store)
            return self._store


class _Whole:
    """An upload under way, and who is told of its progress: one for each that waits."""

    def __init__(self, task: asyncio.Task[Stored], reports: list[Report]) -> None:
        self.task = task
        self.reports = reports


def _seen(task: asyncio.Task[Stored]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits has it; nobody may
