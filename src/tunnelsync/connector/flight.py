"""An upload of segments under way, and who waits for it.

A client asks again and again, each time by a command of its own, and between two of them nobody
waits. So a flight goes on for a while without anybody, and ends if nobody comes.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tunnelsync.connector.stream import Report
from tunnelsync.errors import TransferGone
from tunnelsync.pipeline import Pipeline
from tunnelsync.segments import Cut


class Flight:
    """One version on its way into the store as segments.

    ``fill`` does the work: it sets `pipeline`, unless the version is there as one object, and
    calls `tell` when a segment is up. ``idle`` is called when nobody waits any more.
    """

    def __init__(
        self,
        fill: Callable[["Flight"], Coroutine[Any, Any, None]],
        idle: Callable[["Flight"], None],
    ) -> None:
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

        None for a byte past the end, once all are up; and none if the version is there as one
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
