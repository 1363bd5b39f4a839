"""Receipts: what the router says about a transfer, asked by its user or after a break."""

import asyncio
from urllib.parse import quote

from tunnelsync.client.link import Link
from tunnelsync.errors import BadSetting, BrokenOff, TransferGone, TunnelSyncError
from tunnelsync.protocol import Receipt

REASON_WAIT_SECONDS = 2
"""After a break the router may still be learning why; it gets so long to say it."""
REASON_SECONDS = 5.0
"""The whole question why a stream broke off, after which the break itself is told."""


def path_of(request_id: str) -> str:
    """Return a transfer's path; raise `BadSetting` for what cannot be a request id."""
    if not request_id or len(request_id) > 128 or not request_id.isascii():
        raise BadSetting("that cannot be a request id")
    return f"transfers/{quote(request_id, safe='')}"


async def ask(link: Link, request_id: str, *, wait_seconds: float) -> Receipt:
    """Ask once for a receipt; the router holds the answer so long for the transfer's end."""
    query = f"?wait={wait_seconds:g}" if wait_seconds > 0 else ""
    return await link.ask(Receipt, "GET", path_of(request_id) + query)


async def reason_of(link: Link, request_id: str, broken: BrokenOff) -> TunnelSyncError:
    """Return the error that the receipt names, or the break itself; raises none of them.

    That the router saw us leave is no reason: then something between us broke the connection.
    """
    try:
        async with asyncio.timeout(REASON_SECONDS):
            receipt = await ask(link, request_id, wait_seconds=REASON_WAIT_SECONDS)
    except (TunnelSyncError, TimeoutError):
        return broken
    error = receipt.error.error() if receipt.error else broken
    return broken if isinstance(error, TransferGone) else error
