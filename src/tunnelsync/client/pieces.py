"""What an offer of the store says, and how a piece of it is fetched.

The store is not trusted with anything: its addresses must be of those that the router announced
(or that the settings pin), it is never sent our token, and each block is proven by its digest.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import ClientResponse, ClientSession
from yarl import URL

from tunnelsync import frames, segments, wire
from tunnelsync.client.body import Body
from tunnelsync.client.incoming import request_id_of
from tunnelsync.client.journal import Version
from tunnelsync.client.link import Link, decode, session_for
from tunnelsync.client.trusted import trusted_url
from tunnelsync.dial import CONNECTION_ERRORS, proxy_for, reason
from tunnelsync.errors import (
    BadRequest,
    BrokenOff,
    ProtocolError,
    Stalled,
    StoreRefused,
    StoreUnavailable,
    StoreUntrusted,
    VerificationFailed,
)
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES, Claimed
from tunnelsync.protocol import OffloadAnswer
from tunnelsync.segments import SegmentsAnswer
from tunnelsync.settings import ClientSettings

PEER = "the store"
RENEW_AT = 0.9
"""The part of an address's lifetime after which it is not begun with any more."""
FAR_SECONDS = 0.01
"""A store that takes so long for each answer may be on a long line; one nearby is faster."""


@dataclass(frozen=True, slots=True)
class Piece:
    """An object of the store: a segment of a dataset, or all of it. ``packed`` are its digests.

    ``renew_at`` is when its address is to be asked for anew, by the loop's clock.
    """

    offset: int
    length: int
    url: URL
    packed: bytes
    renew_at: float

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.offset + self.length

    def holds(self, at: int) -> bool:
        """Tell whether a byte is in it; an empty dataset has one piece, which holds its begin."""
        return self.offset <= at < max(self.end, self.offset + 1)

    def digest(self, index: int) -> bytes:
        """Return the digest of a block, by its index in the dataset."""
        at = (index - self.offset // BLOCK_BYTES) * DIGEST_BYTES
        return self.packed[at : at + DIGEST_BYTES]


@dataclass(slots=True)
class Reach:
    """How a store is reached. The fastest answer so far tells how far it is: one that is near and
    busy answers late at times."""

    session: ClientSession
    settings: ClientSettings
    answer_seconds: float = math.inf

    @property
    def far(self) -> bool:
        """Whether each new connection may cost more than it saves."""
        return self.answer_seconds >= FAR_SECONDS


@dataclass(frozen=True, slots=True)
class Offer:
    """One answer: pieces of one version. ``root`` is missing until the store has all of it."""

    request_id: str
    version: Version
    pieces: tuple[Piece, ...]
    root: str | None


async def offered(link: Link, response: ClientResponse) -> Offer:
    """Read the router's answer, and for a single object get its digests from the store.

    Raises `StoreUntrusted`, `StoreUnavailable`, `VerificationFailed` for other digests, or
    `ProtocolError` for what cannot be.
    """
    data = await link.body(response).whole(link.settings.message_bytes)
    if "segments" in _members(data):
        return _in_segments(link, decode(SegmentsAnswer, data), request_id_of(response))
    answer = decode(OffloadAnswer, data)
    settings, origins = link.settings, answer.store_origins
    data_url = trusted_url(answer.download_url, origins, settings.store_origin)
    digests_url = trusted_url(answer.blocks_url, origins, settings.store_origin)
    async with session_for(settings) as session:
        packed = await _digests(Reach(session, settings), digests_url, answer)
    piece = Piece(0, answer.size, data_url, packed, _renew_at(answer.expires_seconds))
    version = Version(answer.size, answer.etag, answer.modified_ns)
    return Offer(request_id_of(response), version, (piece,), answer.root)


def _members(data: bytes) -> dict[str, object]:
    try:
        return wire.loads(data)
    except BadRequest:
        return {}  # which `decode` tells of


def _in_segments(link: Link, answer: SegmentsAnswer, request_id: str) -> Offer:
    _check_size(link.settings, answer.size)
    pinned, renew_at = link.settings.store_origin, _renew_at(answer.expires_seconds)
    pieces = tuple(
        Piece(
            one.offset,
            one.length,
            trusted_url(one.download_url, answer.store_origins, pinned),
            segments.proof_of(one, answer.size),
            renew_at,
        )
        for one in answer.segments
    )
    return Offer(
        request_id, Version(answer.size, answer.etag, answer.modified_ns), pieces, answer.root
    )


def _renew_at(expires_seconds: int) -> float:
    return asyncio.get_running_loop().time() + max(0, expires_seconds) * RENEW_AT


def _check_size(settings: ClientSettings, size_bytes: int) -> None:
    if size_bytes < 0:
        raise ProtocolError(f"{size_bytes} bytes cannot be the size of a dataset")
    if frames.block_count(size_bytes) * DIGEST_BYTES > settings.digests_bytes:
        count = frames.block_count(size_bytes)
        raise ProtocolError(f"the digests of {count} blocks are over digests_bytes")


async def _digests(reach: Reach, url: URL, answer: OffloadAnswer) -> bytes:
    _check_size(reach.settings, answer.size)
    wanted = frames.block_count(answer.size)
    if answer.count != wanted:
        raise ProtocolError(f"{answer.count} blocks cannot be a dataset of {answer.size} bytes")
    async with _get(reach, url) as body:
        with _not_begun():
            packed = await body.whole(reach.settings.digests_bytes)
    digests = frames.split_digests(packed)
    if len(digests) != wanted or frames.root(digests) != answer.root:
        raise VerificationFailed("the digests in the store are not those of this dataset")
    return packed


@asynccontextmanager
async def begun(
    reach: Reach, piece: Piece, at: int, end: int, *, more: bool
) -> AsyncIterator[Body]:
    """Get a piece, or of it the bytes from the one up to the other; its first byte has come.

    With ``more`` pieces to follow a connection to a store that is far is kept: each new one takes
    some round trips until it is fast. The system knows the way to the next hop alone.
    Raises `StoreUnavailable`, `StoreRefused` or `StoreUntrusted`.
    """
    whole = (at, end) == (piece.offset, piece.end)
    wanted = None if whole else (at - piece.offset, end - piece.offset)
    async with _get(reach, piece.url, wanted, kept=more, size=end - at) as body:
        with _not_begun():
            await body.peek()
        yield body


@asynccontextmanager
async def _get(
    reach: Reach,
    url: URL,
    part: tuple[int, int] | None = None,
    *,
    kept: bool = False,
    size: int | None = None,
) -> AsyncIterator[Body]:
    """Get an object, or of it the bytes from the one offset up to the other: ``size`` in all."""
    where = f"the store at {url.origin()}"
    headers = {} if part is None else {"Range": f"bytes={part[0]}-{part[1] - 1}"}
    asked = time.perf_counter()
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(reach.settings.idle_seconds):
                response = await stack.enter_async_context(
                    reach.session.get(url, headers=headers, allow_redirects=False, **proxy_for(url))
                )
        except TimeoutError as exc:
            said = reason(exc) if isinstance(exc, aiohttp.ClientError) else "it does not answer"
            raise StoreUnavailable(f"{where}: {said}") from None
        except CONNECTION_ERRORS as exc:
            raise StoreUnavailable(f"{where}: {reason(exc)}") from None
        if 300 <= response.status < 400:
            raise StoreUntrusted(f"{where} redirects to another place ({response.status})")
        if part is not None and response.status == 200:
            raise StoreRefused(f"{where} gives no parts of an object, so that none can be resumed")
        if response.status != (200 if part is None else 206):
            raise StoreUnavailable(f"{where} answered {response.status}{_why(response.status)}")
        if size is not None and response.content_length not in (None, size):
            found = f"{response.content_length} bytes where there should be {size}"
            raise StoreUnavailable(f"{where} has {found}")  # the connector puts it there anew
        reach.answer_seconds = min(reach.answer_seconds, time.perf_counter() - asked)
        idle_seconds, kept = reach.settings.idle_seconds, kept and reach.far
        yield Body(response, peer=PEER, idle_seconds=idle_seconds, kept=kept)


def _why(status: int) -> str:
    return {403: ": the address has expired or is not allowed", 404: ": no such object"}.get(
        status, ""
    )


@contextmanager
def _not_begun() -> Iterator[None]:
    """Before the first byte, a store that breaks off or stalls is one that does not answer."""
    try:
        yield
    except (BrokenOff, Stalled) as exc:
        raise StoreUnavailable(exc.message) from None


async def claims(
    body: Body, piece: Piece, start: int, end: int, size_bytes: int
) -> AsyncGenerator[Claimed, None]:
    """Cut the body, which is that from ``start`` to ``end``, into blocks; `BrokenOff` if it ends
    early."""
    rest = b""
    for index in range(start // BLOCK_BYTES, frames.block_count(end)):
        want = min(BLOCK_BYTES, size_bytes - index * BLOCK_BYTES)
        parts: list[bytes] = []
        while want:
            data = rest or await body.read()
            if not data:
                raise BrokenOff(f"{PEER} sent less than the {end - start} bytes announced")
            parts.append(data[:want])
            rest = data[want:]
            want -= len(parts[-1])
        yield Claimed(index, tuple(parts), piece.digest(index))
    if rest or await body.read():
        raise VerificationFailed(f"{PEER} sent more than the {end - start} bytes announced")
