"""Which addresses a client takes for those of the store: what it is told is not believed."""

import ipaddress
from collections.abc import Sequence

from yarl import URL

from tunnelsync.errors import StoreUntrusted


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
