"""The heartbeat of all connectors: who is asked for a sign of life when, and who gave none.

One clock turns for all of them, not a timer for each. Its turn takes one heartbeat, and is cut
into ticks; each peer has its tick, in which it is pinged, and half a turn later it must have been
heard. So pings never come in bursts, however many connect at one moment.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Never, Protocol

TICK_SECONDS = 0.1


class Peer(Protocol):
    """Who can be asked for a sign of life. Neither method waits."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def check(self) -> None:
        """Give up, if none came since the last `ping`."""


class Heartbeat:
    """Asks each peer once in ``seconds``."""

    def __init__(self, seconds: float) -> None:
        ticks = max(2, round(seconds / TICK_SECONDS))
        self.tick_seconds = max(seconds, TICK_SECONDS) / ticks
        self._turn: list[set[Peer]] = [set() for _ in range(ticks)]
        self._joined = count()

    @contextmanager
    def watching(self, peer: Peer) -> Iterator[None]:
        """Ask a peer again and again until the block ends."""
        tick = self._turn[next(self._joined) % len(self._turn)]
        tick.add(peer)
        try:
            yield
        finally:
            tick.discard(peer)

    async def beat(self) -> Never:
        """Let the clock turn."""
        for number in count():
            await asyncio.sleep(self.tick_seconds)
            self.tick(number)
        raise AssertionError

    def tick(self, number: int) -> None:
        """Ask those whose tick it is, and check those who were asked half a turn ago."""
        ticks = len(self._turn)
        for peer in list(self._turn[(number - ticks // 2) % ticks]):
            peer.check()
        for peer in list(self._turn[number % ticks]):
            peer.ping()
