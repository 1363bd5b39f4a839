"""How long to wait before the next try; no I/O.

Full jitter: anything between nothing and a doubling bound, so that a thousand connectors or
clients that lost one router do not come back at one moment.
"""

import random
from typing import Protocol


class Backoff(Protocol):
    """The settings that say how pauses grow."""

    @property
    def backoff_first_seconds(self) -> float:
        """The first pause is anything up to this."""

    @property
    def backoff_cap_seconds(self) -> float:
        """No pause is longer."""


def jittered(tries: int, settings: Backoff) -> float:
    """Return the seconds to wait after so many tries in vain (0 for the first)."""
    bound = settings.backoff_first_seconds * 2.0 ** min(tries, 32)
    return random.uniform(0, min(settings.backoff_cap_seconds, bound))


def refused(seconds: float) -> float:
    """Return the seconds to wait when the router said no: trying again changes nothing."""
    return seconds * random.uniform(1, 1.5)
