"""Mode offload: the dataset goes into the store, once for all who want the same version.

An upload belongs to no single request: it has its own descriptor, goes on while anybody waits
for it, and is cancelled when the last one leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tunnelsync import wire
from tunnelsync.connector.source import Root, Source
from tunnelsync.connector.stream import Report, require_match
from tunnelsync.connector.upload import Upload
from tunnelsync.errors import DatasetChanged, StoreNotConfigured, TunnelSyncError
from tunnelsync.identity import Mac
from tunnelsync.objects import Stored
from tunnelsync.protocol import GetDatasetAuto, GetDatasetOffload, OffloadAnswer, printable
from tunnelsync.settings import StoreSettings

if TYPE_CHECKING:
    from tunnelsync.store import Store

log = logging.getLogger("tunnelsync.connector")

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
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._tasks: set[asyncio.Task[Stored]] = set()
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
        await asyncio.gather(*ending, return_exceptions=True)
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
        stored = await self._stored(source, report)
        answer = OffloadAnswer(
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
        await self._upload.answer(command.request_id, wire.dumps(answer))

    async def _stored(self, source: Source, report: Report) -> Stored:
        """Join the upload of this version that is under way, or begin it."""
        key = source.name, source.etag
        flight = self._flights.get(key)
        if flight is None or flight.task.done():
            flight = self._flights[key] = self._begin(key)
        flight.reports.append(report)
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.reports.remove(report)
            if not flight.reports:
                flight.task.cancel()
                if self._flights.get(key) is flight:
                    del self._flights[key]

    def _begin(self, key: tuple[str, str]) -> _Flight:
        reports: list[Report] = []

        def progress(done: int) -> None:
            for report in reports:
                report("uploading", done)

        task = asyncio.create_task(self._offer(*key, progress))
        self._tasks.add(task)
        task.add_done_callback(self._landed)
        return _Flight(task, reports)

    def _landed(self, task: asyncio.Task[Stored]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody may

    async def _offer(self, name: str, etag: str, progress: Callable[[int], None]) -> Stored:
        async with await self._root.open(name) as source:
            if source.etag != etag:
                raise DatasetChanged(f"{printable(name)} changed before its upload began")
            store = await self._opened()
            return await store.offer(self._mac, source, progress)

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


class _Flight:
    """An upload under way, and who is told of its progress: one for each that waits."""

    def __init__(self, task: asyncio.Task[Stored], reports: list[Report]) -> None:
        self.task = task
        self.reports = reports
