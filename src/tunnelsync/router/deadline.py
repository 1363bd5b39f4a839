"""One deadline for a sequence of waits, that signs of life renew and a failure ends at once."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from tunnelsync.errors import TunnelSyncError

TooLate = Callable[[], TunnelSyncError]
"""Makes the error of a wait that took too long."""
RESCHEDULE_SECONDS = 0.5
"""A deadline this fresh is not moved again, which keeps the relay's loop lean."""


class Deadline:
    """Bounds what runs in `within`; ``expected`` says what is waited for at any moment."""

    __slots__ = ("_loop", "_timeout", "expected", "failure", "seconds")

    def __init__(self) -> None:
        self.expected = ""
        self.seconds = 0.0
        self.failure: TunnelSyncError | None = None
        self._timeout: asyncio.Timeout | None = None
        self._loop = asyncio.get_running_loop()

    def within(self, seconds: float, expected: str, too_late: TooLate | None = None) -> "_Wait":
        """Run a wait, with ``async with``.

        Raises the error given to `fail`; or when the time is over that of ``too_late``, without
        it `TimeoutError`.
        """
        return _Wait(self, seconds, expected, too_late)

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


class _Wait:
    """One wait. A class, for a generator in its place costs a small request twice as much."""

    __slots__ = ("_deadline", "_expected", "_seconds", "_timeout", "_too_late")

    def __init__(
        self, deadline: Deadline, seconds: float, expected: str, too_late: TooLate | None
    ) -> None:
        self._deadline, self._too_late = deadline, too_late
        self._seconds, self._expected = seconds, expected
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        deadline = self._deadline
        if deadline.failure is not None:
            raise deadline.failure
        deadline._timeout = await self._timeout.__aenter__()
        deadline.expect(self._seconds, self._expected)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        deadline = self._deadline
        deadline._timeout = None
        late = isinstance(error, TimeoutError)
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            late = True
        if late and deadline.failure is not None:
            raise deadline.failure from None
        if late and self._too_late is not None:
            raise self._too_late() from None
        if late:
            raise TimeoutError from None
