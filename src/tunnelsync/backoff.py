"""How long to wait before the next try; no I/O.

Full jitter: anything between nothing and a doubling bound, so that a thousand connectors or
clients that lost one router do not come back at one moment.
"""

import math
import random
import re
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


def restarting(connectors: int, per_second: float) -> str:
    """Return the good-bye of a router that restarts: when its connectors are to come back."""
    within = math.ceil(connectors / per_second) if per_second > 0 else 0
    return f"the router is restarting; come back within {within} s"


def returning(tries: int, good_bye: str, settings: Backoff) -> float:
    """Return the seconds to wait after a `restarting`, never more than the cap.

    Many are spread over as long as the router asks for; a few come as after any loss.
    """
    asked = re.search(r"; come back within (\d{1,6}) s$", good_bye)
    if tries == 0 and asked is not None:
        within = min(int(asked[1]), settings.backoff_cap_seconds)
        return random.uniform(0, max(within, settings.backoff_first_seconds))
    return jittered(tries, settings)
