"""Mode offload: the connector has put the dataset into the store, and we fetch it from there.

The store is not trusted with anything: its address must be one that the router announced (or
that the settings pin), it is never sent our token, and each block is proven by the digests whose
root the connector told.
"""

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import aiohttp
from aiohttp import ClientResponse, ClientSession
from yarl import URL

from tunnelsync import frames
from tunnelsync.client.body import Body
from tunnelsync.client.incoming import Incoming, Part, request_id_of
from tunnelsync.client.journal import Version
from tunnelsync.client.link import Link, decode, session_for
from tunnelsync.dial import CONNECTION_ERRORS, proxy_for, reason
from tunnelsync.errors import (
    BrokenOff,
    ProtocolError,
    Stalled,
    StoreRefused,
    StoreUnavailable,
    StoreUntrusted,
    VerificationFailed,
)
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES, Claimed
from tunnelsync.identity import Mac
from tunnelsync.protocol import DatasetRequest, Mode, OffloadAnswer
from tunnelsync.settings import ClientSettings

PEER = "the store"
RENEW_AT = 0.9
"""The part of an address's lifetime after which it is not begun with any more."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An object of the store that holds one version of a dataset, and its proven digests."""

    request_id: str
    version: Version
    url: URL
    digests: Sequence[bytes]
    root: str
    renew_at: float

    def covers(self, part: Part) -> bool:
        """Tell whether the address still holds for a while, and for the version asked for."""
        right = part.if_match in (None, self.version.etag)
        return right and asyncio.get_running_loop().time() < self.renew_at


class Offload:
    """The way by the store: one offer, and as many downloads of its parts as are asked for.

    An address that has expired is asked for anew, in the middle of a dataset too.
    """

    in_parts: ClassVar[bool] = True

    def __init__(self, link: Link, mac: Mac, dataset: str) -> None:
        self._link = link
        self._mac = mac
        self._dataset = dataset
        self._offer: Offer | None = None
        self._asking = asyncio.Lock()

    @asynccontextmanager
    async def opened(self, part: Part) -> AsyncIterator[Incoming]:
        """Download a part. Raises `StoreUntrusted` for an address that is not the store's,
        `StoreUnavailable` until the first byte has come, `BrokenOff` after it.
        """
        async with AsyncExitStack() as stack:
            offer, known = await self._offered(part)
            try:
                incoming = await stack.enter_async_context(brought(self._link, offer, part))
            except StoreUnavailable:
                self._forget(offer)
                if not known:
                    raise
                # Its address has expired, or the object is gone: the connector mends both.
                offer, _ = await self._offered(part)
                incoming = await stack.enter_async_context(brought(self._link, offer, part))
            yield incoming

    def take(self, offer: Offer) -> Offer:
        """Go on with an offer that was an answer to another request."""
        self._offer = offer
        return offer

    def distrust(self, why: str) -> None:
        """Ask for the object anew; the connector looks after it then."""
        self._offer = None

    async def _offered(self, part: Part) -> tuple[Offer, bool]:
        """Return the offer, asked for once for all parts, and whether it was there before."""
        async with self._asking:
            if self._offer is not None and self._offer.covers(part):
                return self._offer, True
            request = DatasetRequest(self._mac, self._dataset, if_match=part.if_match)
            async with self._link.request("POST", "datasets/request-offload", request) as answer:
                self._offer = await offered(self._link, answer)
            return self._offer, False

    def _forget(self, offer: Offer) -> None:
        if self._offer is offer:
            self._offer = None


async def offered(link: Link, response: ClientResponse) -> Offer:
    """Read the router's `OffloadAnswer`, and get the digests from the store.

    Raises `StoreUntrusted`, `StoreUnavailable`, or `VerificationFailed` for other digests.
    """
    settings = link.settings
    answer = decode(OffloadAnswer, await link.body(response).whole(settings.message_bytes))
    data_url = trusted_url(answer.download_url, answer.store_origins, settings.store_origin)
    digests_url = trusted_url(answer.blocks_url, answer.store_origins, settings.store_origin)
    async with session_for(settings) as session:
        digests = await _digests(session, settings, digests_url, answer)
    lifetime = max(0, answer.expires_seconds) * RENEW_AT
    return Offer(
        request_id=request_id_of(response),
        version=Version(answer.size, answer.etag, answer.modified_ns),
        url=data_url,
        digests=digests,
        root=answer.root,
        renew_at=asyncio.get_running_loop().time() + lifetime,
    )


@asynccontextmanager
async def brought(link: Link, offer: Offer, part: Part) -> AsyncIterator[Incoming]:
    """Download a part of an offer; raises as `Offload.opened` does."""
    size = offer.version.size
    end = size if part.length is None else min(size, part.offset + part.length)
    async with AsyncExitStack() as stack:
        body = None
        if part.offset < end:
            session = await stack.enter_async_context(session_for(link.settings))
            wanted = None if (part.offset, end) == (0, size) else (part.offset, end)
            getting = _get(session, link.settings, offer.url, wanted)
            body = await stack.enter_async_context(getting)
            with _not_begun():
                await body.peek()
        yield Incoming(
            request_id=offer.request_id,
            mode=Mode.OFFLOAD,
            version=offer.version,
            claims=_claims(body, offer.digests, part.offset, end, size),
            body=body,
            root=offer.root,
        )


def trusted_url(text: str, announced: Sequence[str], pinned: str) -> URL:
    """Return an address of the store, or raise `StoreUntrusted`.

    Its origin must be the pinned one, or without a pin one of those announced; it is http or
    https, holds no user, and its host is no link-local, unspecified or multicast address (the
    metadata services of clouds). The query, which is a secret, is in no message.
    """
    try:
        if not text.isascii() or not text.isprintable() or "\\" in text or " " in text:
            raise ValueError
        url = URL(text, encoded=True)
        if url.scheme not in ("http", "https") or not url.host or not url.port:
            raise ValueError
        if "@" in url.raw_authority:
            raise ValueError
        found = url.origin()
        place = _place(url)
    except ValueError:
        raise StoreUntrusted("the download address is none that a store can have") from None
    if _is_special(url.host):
        raise StoreUntrusted(f"the download address is on {found}, which is never a store")
    if place not in [_place_in(one) for one in ([pinned] if pinned else announced)]:
        by = "the one pinned by store_origin" if pinned else "one that the router announced"
        raise StoreUntrusted(f"the download address is on {found}, and not on {by}")
    return url


def _place(url: URL) -> tuple[str, str, int | None]:
    """Return an origin in the one form in which two can be compared (RFC 6454, 4)."""
    return url.scheme, (url.host or "").lower(), url.port


def _place_in(text: str) -> tuple[str, str, int | None] | None:
    try:
        return _place(URL(text))
    except ValueError:
        return None


def _is_special(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.split("%")[0].rstrip("."))
    except ValueError:
        # "0", "2852039166" or "0xa9fea9fe": numbers that a resolver takes for an address.
        return host.replace(".", "").removeprefix("0x").isdigit() or host.lower().startswith("0x")
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    return any(
        one.is_link_local or one.is_unspecified or one.is_multicast
        for one in (address, mapped or address)
    )


async def _digests(
    session: ClientSession, settings: ClientSettings, url: URL, answer: OffloadAnswer
) -> list[bytes]:
    wanted = frames.block_count(answer.size)
    if answer.size < 0 or answer.count != wanted:
        raise ProtocolError(f"{answer.count} blocks cannot be a dataset of {answer.size} bytes")
    if wanted * DIGEST_BYTES > settings.digests_bytes:
        raise ProtocolError(f"the digests of {wanted} blocks are over digests_bytes")
    async with _get(session, settings, url) as body:
        with _not_begun():
            packed = await body.whole(settings.digests_bytes)
    digests = frames.split_digests(packed)
    if len(digests) != wanted or frames.root(digests) != answer.root:
        raise VerificationFailed("the digests in the store are not those of this dataset")
    return digests


@asynccontextmanager
async def _get(
    session: ClientSession, settings: ClientSettings, url: URL, part: tuple[int, int] | None = None
) -> AsyncIterator[Body]:
    """Get an object, or of it the bytes from the one offset up to the other."""
    where = f"the store at {url.origin()}"
    headers = {} if part is None else {"Range": f"bytes={part[0]}-{part[1] - 1}"}
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(settings.idle_seconds):
                response = await stack.enter_async_context(
                    session.get(url, headers=headers, allow_redirects=False, **proxy_for(url))
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
        yield Body(response, peer=PEER, idle_seconds=settings.idle_seconds)


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


async def _claims(
    body: Body | None, digests: Sequence[bytes], start: int, end: int, size_bytes: int
) -> AsyncGenerator[Claimed, None]:
    """Cut the body, which is that from ``start`` to ``end``, into blocks; `BrokenOff` if it ends
    early."""
    if body is None:
        return
    rest = b""
    for index in range(start // BLOCK_BYTES, frames.block_count(end)):
        want = min(BLOCK_BYTES, size_bytes - index * BLOCK_BYTES)
        parts: list[bytes] = []
        while want:
            data = rest or await body.read()
            if not data:
                raise BrokenOff(f"{PEER} sent less than the {size_bytes} bytes announced")
            parts.append(data[:want])
            rest = data[want:]
            want -= len(parts[-1])
        yield Claimed(index, tuple(parts), digests[index])
    if rest or await body.read():
        raise VerificationFailed(f"{PEER} sent more than the {size_bytes} bytes announced")
