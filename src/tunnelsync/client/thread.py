"""A thread for the work on one file, so that the loop never waits for a disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


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
