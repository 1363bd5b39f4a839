"""The small messages that wait for the socket: bounded, in order, progress dropped first.

Acks wait for a moment: a command that is done by then needs none, for its answer says more.
"""

import asyncio
from collections import deque

from tunnelsync.protocol import Ack, FromConnector, Progress


class Outbox:
    """What the one writer of a socket takes its messages from."""

    def __init__(self, limit: int, ack_delay_seconds: float) -> None:
        self._limit = limit
        self._ack_delay_seconds = ack_delay_seconds
        self._owed: dict[str, None] = {}
        self._acks_due: asyncio.TimerHandle | None = None
        self._messages: deque[FromConnector] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, message: FromConnector) -> None:
        """Add a message; if it is full, drop the oldest progress for it, or wait for room.

        Whoever waits here reads no further commands: that is what slows the router down.
        """
        await self._has_room()
        self._add(message)

    async def owe(self, request_id: str) -> None:
        """Have a command acknowledged soon, unless it is settled before; waits as `put` does."""
        await self._has_room()
        self._owed[request_id] = None
        if self._acks_due is None:
            loop = asyncio.get_running_loop()
            self._acks_due = loop.call_later(self._ack_delay_seconds, self._acknowledge)

    def settle(self, request_id: str) -> None:
        """A command is done with: it needs no ack any more."""
        if request_id in self._owed:
            del self._owed[request_id]
            self._room.set()

    def offer(self, progress: Progress) -> None:
        """Add a sign of life if there is room, and forget it otherwise."""
        if len(self._messages) < self._limit:
            self._add(progress)

    async def get(self) -> FromConnector:
        """Wait for the next message and take it."""
        while not self._messages:
            self._filled.clear()
            await self._filled.wait()
        self._room.set()
        return self._messages.popleft()

    def clear(self) -> None:
        """Forget all: on a new socket the router repeats what was not acknowledged."""
        self._messages.clear()
        self._owed.clear()
        self._room.set()

    async def _has_room(self) -> None:
        while len(self._messages) + len(self._owed) >= self._limit and not self._drop_progress():
            self._room.clear()
            await self._room.wait()

    def _acknowledge(self) -> None:
        self._acks_due = None
        for request_id in self._owed:
            self._add(Ack(request_id))
        self._owed.clear()

    def _add(self, message: FromConnector) -> None:
        self._messages.append(message)
        self._filled.set()

    def _drop_progress(self) -> bool:
        for index, message in enumerate(self._messages):
            if isinstance(message, Progress):
                del self._messages[index]
                return True
        return False
