"""Mode offload: the connector has put the dataset into the store, and we fetch it from there.

The store is not trusted with anything: its address must be one that the router announced (or
that the settings pin), it is never sent our token, and each block is proven by the digests whose
root the connector told.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import aiohttp
from aiohttp import ClientResponse, ClientSession
from yarl import URL

from tunnelsync import frames
from tunnelsync.client.body import Body
from tunnelsync.client.incoming import Incoming, request_id_of
from tunnelsync.client.link import Link, decode, session_for
from tunnelsync.dial import CONNECTION_ERRORS, proxy_for, reason
from tunnelsync.errors import (
    BrokenOff,
    ProtocolError,
    Stalled,
    StoreUnavailable,
    StoreUntrusted,
    VerificationFailed,
)
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES, Claimed
from tunnelsync.identity import Mac
from tunnelsync.protocol import DatasetRequest, Mode, OffloadAnswer
from tunnelsync.settings import ClientSettings

PEER = "the store"


@asynccontextmanager
async def opened(link: Link, mac: Mac, dataset: str) -> AsyncIterator[Incoming]:
    """Ask for a dataset in mode offload, and begin to download it.

    Raises `StoreUntrusted` for an address that is not the store's, `StoreUnavailable` until the
    first byte has come, `BrokenOff` after it.
    """
    request = DatasetRequest(mac, dataset)
    async with (
        link.request("POST", "datasets/request-offload", request) as response,
        downloading(link, response) as incoming,
    ):
        yield incoming


@asynccontextmanager
async def downloading(link: Link, response: ClientResponse) -> AsyncIterator[Incoming]:
    """Follow the router's `OffloadAnswer` to the store; raises as `opened` does."""
    settings = link.settings
    answer = decode(OffloadAnswer, await link.body(response).whole(settings.message_bytes))
    data_url = trusted_url(answer.download_url, answer.store_origins, settings.store_origin)
    digests_url = trusted_url(answer.blocks_url, answer.store_origins, settings.store_origin)
    async with session_for(settings) as session:
        digests = await _digests(session, settings, digests_url, answer)
        async with AsyncExitStack() as stack:
            body = None
            if answer.size:
                body = await stack.enter_async_context(_get(session, settings, data_url))
                with _not_begun():
                    await body.peek()
            yield Incoming(
                request_id=request_id_of(response),
                mode=Mode.OFFLOAD,
                size=answer.size,
                etag=answer.etag,
                modified_ns=answer.modified_ns,
                claims=_claims(body, digests, answer.size),
                body=body,
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
async def _get(session: ClientSession, settings: ClientSettings, url: URL) -> AsyncIterator[Body]:
    where = f"the store at {url.origin()}"
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(settings.idle_seconds):
                response = await stack.enter_async_context(
                    session.get(url, allow_redirects=False, **proxy_for(url))
                )
        except TimeoutError as exc:
            said = reason(exc) if isinstance(exc, aiohttp.ClientError) else "it does not answer"
            raise StoreUnavailable(f"{where}: {said}") from None
        except CONNECTION_ERRORS as exc:
            raise StoreUnavailable(f"{where}: {reason(exc)}") from None
        if 300 <= response.status < 400:
            raise StoreUntrusted(f"{where} redirects to another place ({response.status})")
        if response.status != 200:
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
    body: Body | None, digests: Sequence[bytes], size_bytes: int
) -> AsyncIterator[Claimed]:
    """Cut the body into blocks; `BrokenOff` if it ends early."""
    if body is None:
        return
    rest = b""
    for index, one in enumerate(digests):
        want = min(BLOCK_BYTES, size_bytes - index * BLOCK_BYTES)
        parts: list[bytes] = []
        while want:
            data = rest or await body.read()
            if not data:
                raise BrokenOff(f"{PEER} sent less than the {size_bytes} bytes announced")
            parts.append(data[:want])
            rest = data[want:]
            want -= len(parts[-1])
        yield Claimed(index, tuple(parts), one)
    if rest or await body.read():
        raise VerificationFailed(f"{PEER} sent more than the {size_bytes} bytes announced")
