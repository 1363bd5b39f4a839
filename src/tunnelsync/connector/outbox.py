"""The small messages that wait for the socket: bounded, in order, progress dropped first."""

import asyncio
from collections import deque

from tunnelsync.protocol import FromConnector, Progress


class Outbox:
    """What the one writer of a socket takes its messages from."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[FromConnector] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, message: FromConnector) -> None:
        """Add a message; if it is full, drop the oldest progress for it, or wait for room.

        Whoever waits here reads no further commands: that is what slows the router down.
        """
        while len(self._messages) >= self._limit and not self._drop_progress():
            self._room.clear()
            await self._room.wait()
        self._add(message)

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
        self._room.set()

    def _add(self, message: FromConnector) -> None:
        self._messages.append(message)
        self._filled.set()

    def _drop_progress(self) -> bool:
        for index, message in enumerate(self._messages):
            if isinstance(message, Progress):
                del self._messages[index]
                return True
        return False
