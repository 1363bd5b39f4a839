"""Tasks that run side by side until all have ended, or one has failed."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Together:
    """Tasks that may add others; the first failure ends all of them.

    In place of `asyncio.TaskGroup`: before Python 3.13 that leaves the task that waits "being
    cancelled" after a failure, and the next `asyncio.timeout` in it may raise `CancelledError`.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._over = asyncio.Event()
        self._failure: BaseException | None = None

    def add(self, work: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> None:
        """Begin one more, or take one that was begun."""
        task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def wait(self) -> None:
        """Wait until all have ended, and raise the first failure; one that is cancelled is none."""
        try:
            while self._running and self._failure is None:
                self._over.clear()
                await self._over.wait()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        if (failure := self._failure) is not None:
            self._failure = None
            try:
                raise failure
            finally:
                del failure  # with its frames, which hold blocks: no cycle is to keep them

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()  # asked for, or asyncio logs it
        if self._failure is None:
            self._failure = error
        if not self._running or self._failure is not None:
            self._over.set()
