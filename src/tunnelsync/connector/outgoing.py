"""The body of a request on its way out: piece by piece, with a deadline only while one is sent.

A piece is bytes, or a `Span` of a file: the kernel sends that from its own cache, and it is never
copied to us. That needs Linux and plain TCP; who builds a body knows whether there are.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from tunnelsync.frames import Buffer
from tunnelsync.sockets import dup_of, is_plain, writable

PIECE_BYTES = 256 * 1024
"""What is handed over at a time."""
SPAN_BYTES = 1024 * 1024
"""The same of a file; its deadline is renewed with every byte that goes out."""
POSSIBLE = sys.platform == "linux"


class HasFile(Protocol):
    """What a file is sent from, for as long as it is open."""

    def fileno(self) -> int:
        """Return its descriptor."""

    async def read(self, offset: int, length: int) -> bytes:
        """Return some of it, read in a thread; both numbers in bytes."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of an open file, which need not pass through us; both numbers in bytes."""

    file: HasFile
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length

    def cut(self, start: int, end: int) -> "Span":
        """Return the part from ``start`` to ``end``, as a slice does."""
        end = min(end, self.length)
        return Span(self.file, self.offset + start, end - start)


Piece = Buffer | Span


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A body to send: its pieces, or all of it where it is short; and its length in bytes."""

    pieces: AsyncGenerator[Piece, None] | bytes
    length: int

    @classmethod
    def of(cls, parts: Sequence[Buffer]) -> "Outgoing":
        """Return the body that these buffers make together."""
        length = sum(map(len, parts))
        return cls(b"".join(parts) if length <= PIECE_BYTES else _each(parts), length)

    def payload(self, deadline: asyncio.Timeout, stall_seconds: float) -> bytes | Payload:
        """Return it as aiohttp sends it; ``deadline`` is moved as it goes."""
        if isinstance(self.pieces, bytes):
            return self.pieces
        return _Timed(self.pieces, self.length, deadline, stall_seconds)


def slices(parts: Sequence[Piece]) -> list[Piece]:
    """Cut what is to be sent into pieces; what is small together stays one."""
    if sum(map(len, parts)) <= PIECE_BYTES:
        return [b"".join(part for part in parts if not isinstance(part, Span))]
    return [
        between(part, at, at + step)
        for part in parts
        for step in (SPAN_BYTES if isinstance(part, Span) else PIECE_BYTES,)
        for at in range(0, len(part), step)
    ]


def between(piece: Piece, start: int, end: int) -> Piece:
    """Return a part of a piece, uncopied."""
    return piece.cut(start, end) if isinstance(piece, Span) else memoryview(piece)[start:end]


async def _each(parts: Sequence[Buffer]) -> AsyncGenerator[Piece, None]:
    for piece in slices(parts):
        yield piece


class _Timed(Payload):
    """Pieces in turn, with a deadline while one is being sent, and none while we read the disk."""

    _autoclose = True

    def __init__(
        self,
        pieces: AsyncGenerator[Piece, None],
        length: int,
        deadline: asyncio.Timeout,
        stall_seconds: float,
    ) -> None:
        super().__init__(pieces)
        self._size = length
        self._deadline = deadline
        self._stall_seconds = stall_seconds

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("it is sent once, and never shown")

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        file = _FileWay(writer, self._alive)
        try:
            async with aclosing(self._value) as pieces:
                self._deadline.reschedule(None)
                async for piece in pieces:
                    self._alive()
                    await (file.send(piece) if isinstance(piece, Span) else writer.write(piece))
                    if self._deadline.expired():
                        return
                    self._deadline.reschedule(None)
            self._alive()
        finally:
            file.close()

    def _alive(self) -> None:
        if not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._stall_seconds)


class _FileWay:
    """Sends spans past asyncio, on a dup of the connection's socket; ``alive`` hears of each go."""

    def __init__(self, writer: AbstractStreamWriter, alive: Callable[[], None]) -> None:
        self._writer = writer
        self._alive = alive
        self._socket: socket.socket | None = None

    async def send(self, span: Span) -> None:
        """Send a span; what the file cache does not hold is read in a thread, and copied.

        Raises `OSError` when the connection broke, or the file ended before, and what `read` does.
        """
        at, end = span.offset, span.offset + span.length
        target = await self._emptied()
        while at < end:
            file = span.file.fileno()
            if target is None or not (_cached(file, at) and _cached(file, end - 1)):
                await self._writer.write(await span.file.read(at, end - at))
                return
            try:
                sent = os.sendfile(target.fileno(), file, at, end - at)
            except BlockingIOError:
                await writable(target)
                continue
            if not sent:
                raise OSError("the file ended while it was sent")
            at += sent
            self._alive()

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()

    async def _emptied(self) -> socket.socket | None:
        """Return the socket, once what was written before has left us; None if it is not plain."""
        transport = self._writer.transport
        if transport is None:
            raise ConnectionResetError("the connection is gone")
        if not is_plain(transport):
            return None
        self._writer.send_headers()  # which wait for the first bytes that go by way of aiohttp
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits(0)
            await self._writer.drain()
            transport.set_write_buffer_limits()
        if self._socket is None:
            self._socket = dup_of(transport)
        return self._socket


def _cached(file: int, at: int) -> bool:
    """Tell whether a byte can be had without waiting for the disk, or a server behind it."""
    try:
        return os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except OSError:
        return False
