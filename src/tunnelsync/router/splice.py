"""Bytes from one socket to another through a pipe, inside the kernel: never copied to us.

Linux and plain TCP only; a TLS connection, or another system, takes the copying way. Both
sockets are dup'ed, for asyncio lets nobody else watch the descriptor of a transport.
"""

import asyncio
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

PIPE_BYTES = 1024 * 1024
"""What is on its way inside the kernel at most; the most that Linux gives without privilege."""
TURN_BYTES = 1024 * 1024
"""After so many bytes without a wait the other streams and requests get their turn: where both
ends are fast, nothing else would end it."""


def possible(*transports: asyncio.BaseTransport | None) -> bool:
    """Tell whether bytes between these can stay in the kernel."""
    return hasattr(os, "splice") and all(
        one is not None
        and not one.is_closing()
        and one.get_extra_info("sslcontext") is None
        and one.get_extra_info("socket") is not None
        for one in transports
    )


class Splice:
    """A way from one socket to another, through a pipe that holds ``held`` bytes."""

    def __init__(self, source: asyncio.BaseTransport, target: asyncio.BaseTransport) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = _dup(source)
        self._target = _dup(target)
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.held = 0
        self._in_this_turn = 0

    async def take(self, most: int) -> int:
        """Wait for bytes of the source; return how many were taken, 0 at its end or break."""
        if self._in_this_turn >= TURN_BYTES:
            self._in_this_turn = 0
            await asyncio.sleep(0)
        while True:
            try:
                self.held = os.splice(self._source.fileno(), self._in, most, flags=FLAGS)
            except BlockingIOError:
                await self._ready(self._source, self._loop.add_reader, self._loop.remove_reader)
            except ConnectionError:
                return 0
            else:
                return self.held

    async def put(self) -> int:
        """Wait until the target takes bytes; return how many it took."""
        while True:
            try:
                count = os.splice(self._out, self._target.fileno(), self.held, flags=FLAGS)
            except BlockingIOError:
                await self._ready(self._target, self._loop.add_writer, self._loop.remove_writer)
            else:
                self.held -= count
                self._in_this_turn += count
                return count

    def cut(self) -> None:
        """Break the source off; who waits for its bytes sees its end."""
        with suppress(OSError):  # it may be gone already
            self._source.shutdown(socket.SHUT_RDWR)

    async def _ready(
        self, which: socket.socket, add: Callable[..., Any], remove: Callable[..., Any]
    ) -> None:
        self._in_this_turn = 0
        # By its number: of an object that it does not know asyncio makes a text each time.
        ready, descriptor = asyncio.Event(), which.fileno()
        add(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            remove(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._source.close()
        self._target.close()
        os.close(self._out)
        os.close(self._in)


FLAGS = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)


def _dup(transport: asyncio.BaseTransport) -> socket.socket:
    found = transport.get_extra_info("socket")
    return socket.socket(fileno=os.dup(found.fileno()))
