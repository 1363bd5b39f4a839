"""A dataset on its way in, whichever mode brings it: what is asked for, what comes, and its proof.

Each mode is a `Way`, which opens a `Part` of a dataset as one `Incoming`. The blocks in it are
claims, and `prove` is the one place where a claim becomes bytes that may be handed on.
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

from aiohttp import ClientResponse

from tunnelsync import protocol
from tunnelsync.client.body import Body
from tunnelsync.client.journal import Version
from tunnelsync.errors import ProtocolError, VerificationFailed
from tunnelsync.frames import BLOCK_BYTES, Claimed
from tunnelsync.protocol import Mode


@dataclass(frozen=True, slots=True)
class Part:
    """What to ask for: blocks from ``first`` on, to the end if ``count`` is None.

    ``if_match`` is the etag of the version that it must be; None takes any.
    """

    first: int = 0
    count: int | None = None
    if_match: str | None = None

    @property
    def offset(self) -> int:
        """Where the part begins, in bytes."""
        return self.first * BLOCK_BYTES

    @property
    def length(self) -> int | None:
        """Its length in bytes, where it does not go to the end."""
        return None if self.count is None else self.count * BLOCK_BYTES


WHOLE = Part()


@dataclass(slots=True)
class Incoming:
    """An answer that has begun. ``mode`` is the one used.

    ``claims`` gives the blocks of the part in order, unproven, and ends only when the mode has
    seen a clean end; it raises the error of the sender, or `BrokenOff`. ``root`` is that of the
    whole dataset, where the answer tells it; it may come as late as the last block.
    """

    request_id: str
    mode: Mode
    version: Version
    claims: AsyncGenerator[Claimed, None]
    body: Body | None
    root: str | None = None

    @property
    def first_byte_at(self) -> float | None:
        """When the first byte came, by ``time.perf_counter``; None if none did."""
        return self.body.first_byte_at if self.body else None


class Way(Protocol):
    """One mode's way to one dataset. ``in_parts`` says that a part costs no more than itself."""

    in_parts: ClassVar[bool]

    def opened(self, part: Part) -> AbstractAsyncContextManager[Incoming]:
        """Ask for a part, which may be done several times at once.

        Raises the router's error, or what the way there raises, before the first byte.
        """

    def distrust(self, why: str) -> None:
        """What came was wrong or broke off: come another way next time, if there is one."""


def prove(claim: Claimed, size_bytes: int) -> tuple[bytes, ...]:
    """Return the parts of a block of a dataset of this size, if its digest is right.

    Raises `VerificationFailed` if it is not, or if the block is cut elsewhere than blocks are.
    """
    size = sum(map(len, claim.parts))
    if size != min(BLOCK_BYTES, size_bytes - claim.index * BLOCK_BYTES):
        raise VerificationFailed(f"block {claim.index} is of {size} bytes, and not whole")
    return claim.verified()


def request_id_of(response: ClientResponse) -> str:
    """Return the id under which the router keeps the receipt, or an empty text."""
    text = response.headers.get(protocol.H_REQUEST_ID, "")
    return text if text.isascii() and text.isprintable() and len(text) <= 128 else ""


def mode_of(response: ClientResponse) -> Mode:
    """Return the mode that an answer used; raise `ProtocolError` if it does not say."""
    try:
        return Mode(response.headers.get(protocol.H_MODE, ""))
    except ValueError:
        raise _foreign() from None


def number_of(response: ClientResponse, header: str) -> int:
    """Return a whole number from a header; raise `ProtocolError` without one."""
    text = response.headers.get(header, "")
    if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 19:
        raise _foreign()
    return int(text)


def size_of(response: ClientResponse) -> int:
    """Return a dataset's size in bytes from its header."""
    size = number_of(response, protocol.H_SIZE)
    if size < 0:
        raise _foreign()
    return size


def etag_of(response: ClientResponse) -> str:
    """Return the etag of an answer without its quotes, or an empty text.

    Raises `ProtocolError` for one that no request could name again.
    """
    etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
    if not etag.isascii():
        raise _foreign()
    return etag


def _foreign() -> ProtocolError:
    return ProtocolError("the answer lacks the headers that a TunnelSync router sends")
