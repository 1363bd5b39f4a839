"""A line that lets so many bytes of bodies pass, and holds the rest until it is told."""

import asyncio
import threading
from collections.abc import Callable

from proxy import READ_BYTES, Proxy, Way

BODY_BYTES = 8192  # a read of more than that is of a body: heads and small requests always pass


class Valve(Proxy):
    """Holds every body once so many bytes have gone up; its methods are for any thread."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self._released = asyncio.Event()
        self._released.set()
        self._limit_bytes = 0

    def hold(self, after_bytes: int) -> None:
        """Let so many bytes more pass, and no others."""
        self._limit_bytes = self.carried[Way.UP] + after_bytes
        self._call(self._released.clear)

    def release(self) -> None:
        """Let everything pass."""
        self._call(self._released.set)

    def _call(self, change: Callable[[], None]) -> None:
        assert self.loop is not None
        done = threading.Event()
        self.loop.call_soon_threadsafe(change)
        self.loop.call_soon_threadsafe(done.set)
        assert done.wait(10)

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        """Pass on what comes, or hold it."""
        while data := await reader.read(READ_BYTES):
            full = self.carried[Way.UP] >= self._limit_bytes
            if way is Way.UP and full and len(data) > BODY_BYTES:
                await self._released.wait()
            writer.write(data)
            await writer.drain()
            self.carried[way] += len(data)
