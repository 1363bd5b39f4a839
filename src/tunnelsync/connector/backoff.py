"""How long to wait before the next try; no I/O.

Full jitter: anything between nothing and a doubling bound, so that a thousand connectors that
lost one router do not come back at one moment.
"""

import random

from tunnelsync.settings import ConnectorSettings


def jittered(tries: int, settings: ConnectorSettings) -> float:
    """Return the seconds to wait after so many tries in vain (0 for the first)."""
    bound = settings.backoff_first_seconds * 2.0 ** min(tries, 32)
    return random.uniform(0, min(settings.backoff_cap_seconds, bound))


def refused(settings: ConnectorSettings) -> float:
    """Return the seconds to wait when the router said no: trying again changes nothing."""
    return settings.backoff_refused_seconds * random.uniform(1, 1.5)
