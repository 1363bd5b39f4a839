"""One deadline for a sequence of waits, that signs of life renew and a failure ends at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tunnelsync.errors import TunnelSyncError

RESCHEDULE_SECONDS = 0.5
"""A deadline this fresh is not moved again, which keeps the relay's loop lean."""


class Deadline:
    """Bounds what runs in `within`; ``expected`` says what is waited for at any moment."""

    def __init__(self) -> None:
        self.expected = ""
        self.seconds = 0.0
        self.failure: TunnelSyncError | None = None
        self._timeout: asyncio.Timeout | None = None
        self._loop = asyncio.get_running_loop()

    @asynccontextmanager
    async def within(self, seconds: float, expected: str) -> AsyncIterator[None]:
        """Run a wait. Raises the error given to `fail`, or `TimeoutError`."""
        if self.failure is not None:
            raise self.failure
        try:
            async with asyncio.timeout(None) as self._timeout:
                self.expect(seconds, expected)
                yield
        except TimeoutError:
            if self.failure is not None:
                raise self.failure from None
            raise
        finally:
            self._timeout = None

    def expect(self, seconds: float, expected: str) -> None:
        """Say what is waited for from now on, and for how long."""
        self.seconds, self.expected = seconds, expected
        self.alive()

    def alive(self) -> None:
        """Renew the deadline of the wait under way: there was a sign of life."""
        if self._timeout is None or self._timeout.expired() or self.failure is not None:
            return
        due = self._loop.time() + self.seconds
        set_for = self._timeout.when()
        if set_for is None or not 0 <= due - set_for < RESCHEDULE_SECONDS:
            self._timeout.reschedule(due)

    def fail(self, error: TunnelSyncError) -> None:
        """End the wait under way, or the next one, with this error; the first one stands."""
        if self.failure is None:
            self.failure = error
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self._loop.time())
