"""``POST /datasets/batch``: small answers to several requests in one body.

Each item means what it would mean by itself, and is taken or refused by itself. None waits for its
client: the bodies are held, under the budgets of the router, until their transfers end.
"""

import asyncio
from contextlib import suppress
from functools import partial

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol

from tunnelsync.batch import Item, unpack
from tunnelsync.errors import BadRequest, TransferGone, TunnelSyncError
from tunnelsync.protocol import Complete, Init
from tunnelsync.router import results
from tunnelsync.router.access import connector_of
from tunnelsync.router.bodies import json_answer, read_parts
from tunnelsync.router.chunks import Chunk
from tunnelsync.router.context import ROUTER
from tunnelsync.router.said import ResultBody
from tunnelsync.router.transfer import Transfer
from tunnelsync.transfer import State

IN_A_ROW = 32
"""So many items of one batch are taken before others get their turn."""


async def batch(request: web.Request) -> web.Response:
    """Take each item; the answer names those that are refused, with the status of each."""
    router = request.app[ROUTER]
    _, mac = connector_of(request)
    limit, idle = router.settings.batch_bytes, router.settings.idle_seconds
    parts = await read_parts(request, limit_bytes=limit, idle_seconds=idle)
    refused: dict[str, int] = {}
    for number, (item, body) in enumerate(unpack(b"".join(parts)), 1):
        if number % IN_A_ROW == 0:
            await asyncio.sleep(0)
        try:
            transfer = router.switchboard.transfers.claim(item.request_id, mac)
            with results.holding(router, transfer, len(body)):
                _take(transfer, item, body)
        except TunnelSyncError as error:
            refused[item.request_id] = error.status
    return json_answer({"status": "ok", "refused": refused})


def _take(transfer: Transfer, item: Item, body: bytes) -> None:
    if item.init is not None and item.complete is not None:
        _stream(transfer, item.init, item.complete, body)
    elif item.init is None and item.complete is None:
        results.give(results.wanted(transfer), ResultBody.of([body]))
    else:
        raise BadRequest("an item has both an init and a complete, or neither")


def _stream(transfer: Transfer, init: Init, complete: Complete, body: bytes) -> None:
    """Take a whole stream: what init, one chunk and complete would have brought."""
    if {init.request_id, complete.request_id} != {transfer.request_id}:
        raise BadRequest("an item names several requests")
    if init.length != len(body):
        raise BadRequest(f"a stream of {init.length} bytes comes with {len(body)}")
    if transfer.state is State.ENDED:
        raise TransferGone(f"transfer {transfer.request_id} has ended")
    transfer.on_init(init)
    loop = asyncio.get_running_loop()
    # A protocol of its own: reading must not let the connection of the batch read on, which may
    # be in another's hands by then.
    content = StreamReader(BaseProtocol(loop), len(body) + 1, loop=loop)
    content.feed_data(body)
    content.feed_eof()
    done: asyncio.Future[None] = loop.create_future()
    transfer.on_chunk(Chunk(0, len(body), content, abort=_nothing, done=done))
    done.add_done_callback(partial(_relayed, transfer, complete))


def _relayed(transfer: Transfer, complete: Complete, done: asyncio.Future[None]) -> None:
    """The closing word counts once the client has the stream, or never."""
    if done.exception() is None:
        with suppress(TunnelSyncError):
            transfer.on_complete(complete)


def _nothing() -> None:
    """The connection of a batch carries others' answers, too: no chunk of it is broken off."""
