"""Bytes from one socket to another through a pipe, inside the kernel: never copied to us.

Linux and plain TCP only; a TLS connection, or another system, takes the copying way.
"""

import asyncio
import fcntl
import os
import socket
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from tunnelsync.sockets import dup_of, is_plain, readable, writable

PIPE_BYTES = 512 * 1024
"""What is on its way inside the kernel at most. Twice as much would take a tenth off our CPU, and
leave half of the 128 pipes that Linux gives a user without privilege."""
TURN_BYTES = 1024 * 1024
"""After so many bytes without a wait the other streams and requests get their turn: where both
ends are fast, nothing else would end it."""


class Splice:
    """A way from one socket to another, through a pipe that holds ``held`` bytes."""

    def __init__(self, source: socket.socket, target: socket.socket, pipe: tuple[int, int]) -> None:
        self._source, self._target = source, target
        self._out, self._in = pipe
        self.held = 0
        self._in_this_turn = 0

    @classmethod
    def between(
        cls, source: asyncio.BaseTransport | None, target: asyncio.BaseTransport | None
    ) -> Self | None:
        """Return a way for bytes to stay in the kernel; None if there is none, or none now."""
        if not hasattr(os, "splice") or not is_plain(source) or not is_plain(target):
            return None
        with ExitStack() as stack:
            try:
                ends = [stack.enter_context(dup_of(one)) for one in (source, target)]
                pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
                for end in pipe:
                    stack.callback(os.close, end)
                # Refused where a user has too many, in all processes together.
                fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                return None
            stack.pop_all()
            return cls(ends[0], ends[1], pipe)

    async def take(self, most: int) -> int:
        """Wait for bytes of the source; return how many were taken, 0 at its end or break."""
        if self._in_this_turn >= TURN_BYTES:
            self._in_this_turn = 0
            await asyncio.sleep(0)
        while True:
            try:
                self.held = os.splice(self._source.fileno(), self._in, most, flags=FLAGS)
            except BlockingIOError:
                self._in_this_turn = 0
                await readable(self._source)
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
                self._in_this_turn = 0
                await writable(self._target)
            else:
                self.held -= count
                self._in_this_turn += count
                return count

    def cut(self) -> None:
        """Break the source off; who waits for its bytes sees its end."""
        with suppress(OSError):  # it may be gone already
            self._source.shutdown(socket.SHUT_RDWR)

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
