"""Threads for the work on files, so that the loop never waits for a disk; used again when idle."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

SHORT_BYTES = 64 * 1024
"""Up to so many bytes, going to a thread costs more than what is done there, unless it is I/O."""


class FileThread:
    """One thread for one file: what is called in it runs in the order of the calls."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tunnelsync-file")

    def call(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run a function in the thread."""
        return asyncio.get_running_loop().run_in_executor(self._pool, function)

    def close(self) -> None:
        """Let the thread end; does not wait for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Threads:
    """The threads of one client: `take` one, and `give` it back when nothing runs in it.

    ``idle`` is how many are kept for the next file; starting one costs more than a small file.
    """

    def __init__(self, idle: int) -> None:
        self._limit = idle
        self._idle: list[FileThread] = []

    def take(self) -> FileThread:
        """Return a thread in which nothing runs."""
        return self._idle.pop() if self._idle else FileThread()

    def give(self, thread: FileThread) -> None:
        """Take a thread back, for another file."""
        if len(self._idle) < self._limit:
            self._idle.append(thread)
        else:
            thread.close()

    def close(self) -> None:
        """Let the idle threads end, and those that are given back later."""
        self._limit = 0
        while self._idle:
            self._idle.pop().close()
