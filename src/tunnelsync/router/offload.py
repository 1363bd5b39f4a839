"""Mode offload: the connector uploads to the store, and the client is told where.

The router vouches for the address: it is passed on only if it is of the store that this router
was configured with, together with that store's origin.
"""

from dataclasses import replace
from typing import Any

from aiohttp import web

from tunnelsync import protocol, wire
from tunnelsync.errors import StoreNotConfigured, StoreUntrusted
from tunnelsync.objects import origin
from tunnelsync.protocol import Mode, OffloadAnswer
from tunnelsync.router.asking import answered, asked_in
from tunnelsync.router.context import ROUTER, Router
from tunnelsync.router.relay import send_message
from tunnelsync.router.said import Reply, ResultBody, bounded, check_names, understanding
from tunnelsync.router.transfer import Transfer
from tunnelsync.segments import SegmentsAnswer

SEGMENTS = 1000
"""Told in one answer at most; a dataset has no more."""


async def request_offload(request: web.Request) -> web.StreamResponse:
    """``POST /datasets/request-offload``: waits for the upload, then tells the addresses."""
    router = request.app[ROUTER]
    if not router.store_origin:
        raise StoreNotConfigured("this router has no store, so it passes no download address")
    asked = await asked_in(request, whole=True)

    def command(request_id: str) -> protocol.Command:
        return protocol.GetDatasetOffload(
            request_id, asked.dataset, asked.conditions, segments_from=asked.segments_from
        )

    async def deliver(request: web.Request, transfer: Transfer, body: Reply) -> web.StreamResponse:
        assert isinstance(body, ResultBody)
        return await answer(request, transfer, body)

    return await answered(request, asked, Mode.OFFLOAD, command, deliver)


async def answer(request: web.Request, transfer: Transfer, body: ResultBody) -> web.StreamResponse:
    """Check where a connector wants to send the client, and pass it on."""
    router = request.app[ROUTER]
    with understanding(transfer.mac):
        offered = _understood(wire.loads(body.joined()))
        check_names(etag=offered.etag, root=offered.root)
    checked = replace(_checked(router, transfer, offered), store_origins=(router.store_origin,))
    transfer.describe(size=offered.size, etag=offered.etag, root=offered.root)
    return await send_message(transfer, request, checked, router.settings)


def _understood(value: dict[str, Any]) -> OffloadAnswer | SegmentsAnswer:
    """Return what a connector answered: one object, or segments. The origins are the router's."""
    value.pop("store_origins", None)
    if "segments" in value:
        bounded(value, "segments", SEGMENTS)
        return wire.decode(SegmentsAnswer, value)
    return wire.decode(OffloadAnswer, value)


def _checked(
    router: Router, transfer: Transfer, offered: OffloadAnswer | SegmentsAnswer
) -> OffloadAnswer | SegmentsAnswer:
    if isinstance(offered, SegmentsAnswer):
        urls = [one.download_url for one in offered.segments]
    else:
        urls = [offered.download_url, offered.blocks_url]
    for url in urls:
        try:
            found = origin(url)
        except Exception as error:
            raise _untrusted(transfer, "no address") from error
        if found != router.store_origin:
            raise _untrusted(transfer, found)
    return offered


def _untrusted(transfer: Transfer, found: str) -> StoreUntrusted:
    return StoreUntrusted(
        f"connector {transfer.mac} offered a download from {found}, not from the router's store"
    )
