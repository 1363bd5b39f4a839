"""A dataset on its way in, whichever mode brings it: what it claims to be, and its blocks.

Each mode yields one `Incoming`; the blocks in it are claims, and `Proof` is the one place where
a claim becomes bytes that may be handed on.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import ClientResponse
from blake3 import blake3

from tunnelsync import protocol
from tunnelsync.client.body import Body
from tunnelsync.errors import BrokenOff, ProtocolError, VerificationFailed
from tunnelsync.frames import BLOCK_BYTES, ROOT_PREFIX, Claimed
from tunnelsync.protocol import Mode


@dataclass(frozen=True, slots=True)
class Incoming:
    """An answer that has begun. ``mode`` is the one used; ``size`` in bytes.

    ``claims`` gives the blocks in order, unproven, and ends only when the mode has seen a
    clean end; it raises the error of the sender, or `BrokenOff`.
    """

    request_id: str
    mode: Mode
    size: int
    etag: str
    modified_ns: int
    claims: AsyncIterator[Claimed]
    body: Body | None

    @property
    def first_byte_at(self) -> float | None:
        """When the first byte came, by ``time.perf_counter``; None if none did."""
        return self.body.first_byte_at if self.body else None


class Proof:
    """Proves blocks one after the other, and knows what they make together; not thread-safe."""

    def __init__(self, size_bytes: int) -> None:
        self._expected = size_bytes
        self._digests = blake3()
        self.bytes = 0

    def take(self, claim: Claimed) -> tuple[bytes, ...]:
        """Return the parts of the next block; raise `VerificationFailed` if they are not right."""
        size = sum(map(len, claim.parts))
        left = self._expected - self.bytes
        if size > left:
            raise VerificationFailed(f"more came than the {self._expected} bytes announced")
        parts = claim.verified()
        if size != min(BLOCK_BYTES, left):
            # Blocks cut elsewhere would give a root that the file does not have.
            raise VerificationFailed(f"block {claim.index} is of {size} bytes, and not whole")
        self._digests.update(claim.digest)
        self.bytes += size
        return parts

    def finish(self) -> str:
        """Return the root; raise `BrokenOff` if bytes are missing."""
        if self.bytes < self._expected:
            raise BrokenOff(f"{self.bytes} of {self._expected} bytes came")
        return ROOT_PREFIX + self._digests.hexdigest()


def request_id_of(response: ClientResponse) -> str:
    """Return the id under which the router keeps the receipt, or an empty text."""
    return response.headers.get(protocol.H_REQUEST_ID, "")


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
    """Return the etag of an answer without its quotes, or an empty text."""
    return response.headers.get("ETag", "").removeprefix("W/").strip('"')


def _foreign() -> ProtocolError:
    return ProtocolError("the answer lacks the headers that a TunnelSync router sends")
