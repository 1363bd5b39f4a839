"""The body of an HTTP answer: read with a deadline, and drained before a break is believed.

aiohttp throws away what has arrived when a connection breaks; the failure frame that says why
is among it. `Body.read` hands it out first, and raises after it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import ClientError, ClientResponse

from tunnelsync.errors import BrokenOff, ProtocolError, Stalled


class Body:
    """What one answer carries. ``peer`` names its sender in errors: the router, or the store."""

    def __init__(self, response: ClientResponse, *, peer: str, idle_seconds: float) -> None:
        self._content = response.content
        self._peer = peer
        self._idle_seconds = idle_seconds
        self._unread = b""
        self._broken: BrokenOff | None = None
        self.first_byte_at: float | None = None

    async def read(self) -> bytes:
        """Return what has arrived, or ``b""`` at the end.

        Raises `BrokenOff` when the connection broke, after all that came before was returned,
        and `Stalled` when nothing came for ``idle_seconds``.
        """
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        if self._broken is not None:
            raise self._broken
        try:
            async with asyncio.timeout(self._idle_seconds):
                data, _ = await self._content.readchunk()
                while not data and not self._content.at_eof():
                    data, _ = await self._content.readchunk()
        except TimeoutError:
            raise Stalled(f"{self._peer} sent nothing for {self._idle_seconds:g} s") from None
        except (ClientError, OSError):
            self._broken = BrokenOff(f"the connection to {self._peer} broke before the end")
            data = self._arrived()
            if not data:
                raise self._broken from None
        if data and self.first_byte_at is None:
            self.first_byte_at = time.perf_counter()
        return data

    async def peek(self) -> None:
        """Wait for the first byte, which the next `read` returns."""
        if not self._unread:
            self._unread = await self.read()

    async def whole(self, limit_bytes: int) -> bytes:
        """Return all of it; raise `ProtocolError` for more than the limit."""
        parts: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > limit_bytes:
                raise ProtocolError(f"{self._peer} sent more than the {limit_bytes} bytes allowed")
            parts.append(data)
        return b"".join(parts)

    def _arrived(self) -> bytes:
        """Take what came before the break; aiohttp has no public way to it."""
        with _without_exception(self._content):
            return self._content.read_nowait(-1)


@contextmanager
def _without_exception(content: object) -> Iterator[None]:
    exception, content._exception = content._exception, None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        content._exception = exception  # type: ignore[attr-defined]
