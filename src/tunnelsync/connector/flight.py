"""The uploads of segments under way, and who waits for them.

A client asks again and again, each time by a command of its own, and between two of them nobody
waits. So a flight goes on for a while without anybody, and ends if nobody comes.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tunnelsync.connector.stream import Report
from tunnelsync.errors import TransferGone
from tunnelsync.pipeline import Pipeline
from tunnelsync.segments import Cut
from tunnelsync.settings import StoreSettings

Key = tuple[str, str]
"""Name and etag: what is uploaded once."""


class Flight:
    """One version, by name and etag, on its way into the store as segments.

    ``fill`` does the work: it sets `pipeline`, unless the version is there as one object, and
    calls `tell` when a segment is up. ``idle`` is called when nobody waits any more.
    """

    def __init__(
        self,
        key: Key,
        fill: Callable[["Flight"], Coroutine[Any, Any, None]],
        idle: Callable[["Flight"], None],
    ) -> None:
        self.key = key
        self.pipeline: Pipeline | None = None
        self.timer: asyncio.TimerHandle | None = None
        """Set while nobody waits: ends the flight."""
        self.idle_at = 0.0
        self.began_at = asyncio.get_running_loop().time()
        self._idle = idle
        self._asking: dict[object, tuple[int, Report]] = {}
        self._went_on_at = 0
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(fill(self))
        self.task.add_done_callback(self._landed)

    @property
    def failed(self) -> bool:
        """Whether it has come to an early end."""
        task = self.task
        return task.done() and (task.cancelled() or task.exception() is not None)

    def wanted(self) -> Sequence[int]:
        """Return the bytes that are waited for, and where the last answer ended."""
        return [*(offset for offset, _ in self._asking.values()), self._went_on_at]

    def progress(self, done: int) -> None:
        """Tell those who wait how many bytes are up."""
        for _, report in self._asking.values():
            report("uploading", done)

    def tell(self) -> None:
        """Wake those who wait: something has changed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def reached(self, offset: int, report: Report) -> Sequence[Cut]:
        """Wait until the segment with this byte is up, and return it and those that follow.

        Nothing for a byte past the end, once all are up, and if the version is there as one
        object. Raises the error that ended the upload.
        """
        with self._waiting(offset, report):
            while True:
                if self.pipeline and (found := self.pipeline.run(offset)):
                    self._went_on_at = found[-1].end
                    return found
                if self._over():
                    return ()
                await self._changed.wait()

    async def whole(self, report: Report) -> None:
        """Wait until all of it is up. Raises the error that ended the upload."""
        with self._waiting(self._went_on_at, report):
            while not self._over():
                await self._changed.wait()

    def _over(self) -> bool:
        """Tell whether the work is done; raise its error."""
        if not self.task.done():
            return False
        if self.task.cancelled():
            raise TransferGone("the upload was ended")
        self.task.result()
        return True

    @contextmanager
    def _waiting(self, offset: int, report: Report) -> Iterator[None]:
        me = object()
        self._asking[me] = offset, report
        if self.timer:
            self.timer.cancel()
            self.timer = None
        try:
            yield
        finally:
            del self._asking[me]
            if not self._asking:
                self.idle_at = asyncio.get_running_loop().time()
                self._idle(self)

    def _landed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody may
        self.tell()


class Flights:
    """The flights of a connector, one for each version that is asked for.

    ``fill`` is told the flight whose work it is to do, and whether it begins anew.
    """

    def __init__(
        self, settings: StoreSettings, fill: Callable[[Flight, bool], Coroutine[Any, Any, None]]
    ) -> None:
        self._settings = settings
        self._fill = fill
        self._flights: dict[Key, Flight] = {}
        self._expected = Counter[str]()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End all of them, and wait until they have removed what they have not finished."""
        for flight in list(self._flights.values()):
            self.end(flight)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def get(self, key: Key) -> Flight | None:
        """Return the flight of a version, if there is one."""
        return self._flights.get(key)

    def join(self, key: Key, *, anew: bool) -> Flight:
        """Return the flight of a version, or begin one; what it knows holds for a while only."""
        flight = self._flights.get(key)
        if flight and not flight.failed:
            known_seconds = asyncio.get_running_loop().time() - flight.began_at
            if not flight.task.done() or known_seconds < self._settings.url_lifetime_seconds:
                return flight
        flight = self._flights[key] = Flight(key, lambda one: self._fill(one, anew), self._idle)
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        return flight

    def end(self, flight: Flight) -> None:
        """End a flight; what it has not finished it removes."""
        if flight.timer:
            flight.timer.cancel()
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        flight.task.cancel()

    @contextmanager
    def expected(self, name: str) -> Iterator[None]:
        """Let no flight of a dataset end for lack of a question: one waits for its place."""
        self._expected[name] += 1
        try:
            yield
        finally:
            self._expected[name] -= 1
            if not self._expected[name]:
                del self._expected[name]

    def _idle(self, flight: Flight) -> None:
        """Let a flight go on for a while for nobody. Of too many that run the oldest is ended, and
        likewise of those that are done."""
        if self._flights.get(flight.key) is not flight:
            return
        loop, settings = asyncio.get_running_loop(), self._settings
        flight.timer = loop.call_later(settings.linger_seconds, self._waited, flight)
        done = flight.task.done()
        alike = [one for one in self._flights.values() if one.timer and one.task.done() == done]
        lingering = [one for one in alike if one.key[0] not in self._expected]
        if len(lingering) > max(1, settings.lingering):
            self.end(min(lingering, key=lambda one: one.idle_at))

    def _waited(self, flight: Flight) -> None:
        if flight.key[0] in self._expected:
            self._idle(flight)
        else:
            self.end(flight)
