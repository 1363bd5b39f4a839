"""Which errors are worth another try, and how long to go on trying; no I/O."""

from collections.abc import Callable
from typing import Protocol

from tunnelsync.backoff import Backoff, jittered
from tunnelsync.errors import ConnectorUnknown, DatasetChanged, TunnelSyncError


class Limits(Backoff, Protocol):
    """The settings that say how long to try."""

    @property
    def retry_for_seconds(self) -> float:
        """How long to go on without a single new block."""


class Patience:
    """Decides after each error whether to wait and try again; every block renews it.

    ``clock`` gives seconds that only grow.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._since: float | None = None
        self._tries = 0
        self._met_router = False
        self.left_seconds = limits.retry_for_seconds
        """How long the error that was told last will be waited out yet."""

    def renew(self) -> None:
        """Note that something has come: the next trouble is a new one."""
        self._since, self._tries, self._met_router = None, 0, True

    def pause(self, error: TunnelSyncError) -> float | None:
        """Return the seconds to wait before the next try, or None: the error stands."""
        now = self._clock()
        if not self._heals(error):
            return None
        if self._since is None:
            self._since = now
        wait = jittered(self._tries, self._limits)
        if error.retry_after_seconds is not None:
            # Not all at the same moment, though they were all told the same.
            wait += error.retry_after_seconds
        self._tries += 1
        self.left_seconds = self._since + self._limits.retry_for_seconds - now
        return None if self.left_seconds <= 0 else min(wait, self.left_seconds)

    def _heals(self, error: TunnelSyncError) -> bool:
        if isinstance(error, ConnectorUnknown):
            # A router that has just restarted knows no connector until it returns.
            return self._met_router or self._since is not None
        return error.retry and not isinstance(error, DatasetChanged)
