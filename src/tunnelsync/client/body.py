"""The body of an HTTP answer: read with a deadline, and drained before a break is believed.

aiohttp throws away what has arrived when a connection breaks; the failure frame that says why
is among it. `Body.read` hands it out first, and raises after it. The rest of a long body is read
straight from the socket, without aiohttp's parser and its copies, where nothing encrypts it.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import ClientError, ClientResponse

from tunnelsync.errors import BrokenOff, ProtocolError, Stalled
from tunnelsync.sockets import dup_of, is_plain, keep_memory

DIRECT_FROM_BYTES = 4 * 1024 * 1024
"""Below so many bytes left, a connection that can be used again is worth more."""
DIRECT_BYTES_PER_SECOND = 20_000_000_000
"""The same for each second of round trip: a new connection costs some ten of them until it is as
fast as the old one, and what is read past aiohttp saves half a millisecond for each MB."""
DIRECT_READ_BYTES = 1024 * 1024
KEPT_BYTES = 16 * 1024 * 1024
"""Of this size and below: the blocks of a stream."""
TCP_RTT_AT = 68
"""Where ``tcpi_rtt``, in microseconds, stands in Linux's ``struct tcp_info``."""


class Body:
    """What one answer carries. ``peer`` names its sender in errors: the router, or the store.

    With ``kept`` its connection is wanted again, so that the parser must see the end.
    """

    def __init__(
        self, response: ClientResponse, *, peer: str, idle_seconds: float, kept: bool = False
    ) -> None:
        self._response = response
        self._content = response.content
        self._peer = peer
        self._idle_seconds = idle_seconds
        self._kept = kept
        self._unread = b""
        self._broken: BrokenOff | None = None
        self._direct: _Direct | None = None
        self.first_byte_at: float | None = None

    async def read(self) -> bytes:
        """Return what has arrived, or ``b""`` at the end.

        Raises `BrokenOff` when the connection broke, after all that came before was returned,
        and `Stalled` when nothing came for ``idle_seconds``.
        """
        if self._direct is None and self.first_byte_at is not None and not self._unread:
            self._take_over()
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        if self._broken is not None:
            raise self._broken
        try:
            if self._direct is None and self._content.is_eof():
                data = self._content.read_nowait(-1)  # the rest is here, as with most
            else:
                async with asyncio.timeout(self._idle_seconds):
                    data = await (self._direct.read() if self._direct else self._parsed())
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

    @property
    def round_trip_seconds(self) -> float:
        """The round trip to the other end of the connection, by the kernel; 0 if not known."""
        connection = self._response.connection
        transport = connection.transport if connection else None
        found = transport.get_extra_info("socket") if transport else None
        if found is None or not hasattr(socket, "TCP_INFO"):
            return 0.0
        try:
            info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_RTT_AT + 4)
        except OSError:
            return 0.0
        micros = int.from_bytes(info[TCP_RTT_AT:], sys.byteorder) if len(info) > TCP_RTT_AT else 0
        return micros / 1e6

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

    async def _parsed(self) -> bytes:
        data, _ = await self._content.readchunk()
        while not data and not self._content.at_eof():
            data, _ = await self._content.readchunk()
        return data

    def _arrived(self) -> bytes:
        """Take what came before the break; aiohttp has no public way to it."""
        if self._direct is not None:
            return b""
        with _without_exception(self._content):
            return self._content.read_nowait(-1)

    def _take_over(self) -> None:
        """Read the rest past aiohttp, if it is long, and plain on the socket."""
        connection = self._response.connection
        if self._kept or connection is None or connection.protocol is None:
            return
        if self._content.exception():
            return
        left = (self._response.content_length or 0) - self._content.total_bytes
        transport = connection.transport
        if left < max(DIRECT_FROM_BYTES, self.round_trip_seconds * DIRECT_BYTES_PER_SECOND):
            return
        if is_plain(transport):
            # Nothing is awaited from the read to the pause, so no byte can come in between.
            self._unread = self._content.read_nowait(-1)
            connection.protocol.pause_reading()
            self._direct = _Direct(dup_of(transport), left)
            connection.add_callback(self._direct.close)


class _Direct:
    """The rest of a body on a socket of our own, so that asyncio lets us wait for it."""

    def __init__(self, own: socket.socket, left: int) -> None:
        self._socket = own
        self._socket.setblocking(False)
        self._left = left
        keep_memory(KEPT_BYTES)

    async def read(self) -> bytes:
        if not self._left:
            return b""
        loop = asyncio.get_running_loop()
        data = await loop.sock_recv(self._socket, min(self._left, DIRECT_READ_BYTES))
        if not data:
            raise ConnectionResetError("the body is shorter than was announced")
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Let go of it, when the response lets go of its connection."""
        self._socket.close()


@contextmanager
def _without_exception(content: object) -> Iterator[None]:
    exception, content._exception = content._exception, None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        content._exception = exception  # type: ignore[attr-defined]
