"""What a proxy in front of the router was found to do to uploads; nothing here sends any.

One for a connector: a transfer that meets a limit pays for finding it, and the next ones do not.
Forgotten after a while, for proxies are set up anew.
"""

import logging
from collections.abc import Callable

from tunnelsync.settings import MIB

log = logging.getLogger("tunnelsync.connector")

SMALLER_BODIES = (64 * MIB, 8 * MIB, MIB)
"""What is tried after 413: below Cloudflare's limit, a common choice, and nginx's default."""
FASTER = "client_max_body_size 0; proxy_request_buffering off;"


class Proxies:
    """The limits found so far; ``clock`` in seconds. ``held_chunk_bytes`` is the size of a
    chunk where a proxy takes uploads whole before it passes them on."""

    def __init__(
        self, clock: Callable[[], float], *, memory_seconds: float, held_chunk_bytes: int
    ) -> None:
        self._clock = clock
        self._memory_seconds = memory_seconds
        self._held_chunk_bytes = held_chunk_bytes
        self._body: tuple[int, float] = (0, 0.0)
        self._held: tuple[bool, float] = (False, 0.0)
        self._told = False

    @property
    def body_bytes(self) -> int | None:
        """The largest body that is sent, or None where no limit is known."""
        limit, until = self._body
        return limit if self._clock() < until else None

    @property
    def holds(self) -> bool | None:
        """Whether uploads are held until they are whole; None where nobody has looked."""
        holds, until = self._held
        return holds if self._clock() < until else None

    @property
    def chunk_bytes(self) -> int | None:
        """The largest chunk to send, or None for the whole body in one."""
        limits = [self.body_bytes, self._held_chunk_bytes if self.holds else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def refused(self, size_bytes: int) -> bool:
        """Note that a body of this size was refused; False if we have no smaller one to try."""
        smaller = next((one for one in SMALLER_BODIES if one < size_bytes), None)
        if smaller is None:
            return False
        known = self.body_bytes
        if known is None or smaller < known:
            self._body = smaller, self._clock() + self._memory_seconds
            self._tell(f"refuses uploads of {size_bytes} bytes")
        return True

    def seen(self, *, holds: bool) -> None:
        """Note whether the router sees an upload before it is whole."""
        self._held = holds, self._clock() + self._memory_seconds
        if holds:
            self._tell("holds uploads back until they are whole")

    def _tell(self, what: str) -> None:
        """Say it once: each transfer would say the same."""
        if not self._told:
            self._told = True
            log.warning(
                "a proxy before the router %s; data goes in smaller pieces. Faster, in nginx: %s",
                what,
                FASTER,
            )
