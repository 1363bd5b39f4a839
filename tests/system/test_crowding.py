"""One party does not take the router from the others, whatever it sends and does not read."""

import asyncio
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from aiohttp import WSMessage, WSMsgType, web

from harness import Router, System
from played_connector import another_mac, asking, played, router_alone, wanting
from tunnelsync.batch import Item, pack
from tunnelsync.errors import TEXT_CHARACTERS
from tunnelsync.identity import mac_address
from tunnelsync.protocol import Complete, GetDatasetStream, Problem
from tunnelsync.router import channel
from tunnelsync.router.offload import _understood
from tunnelsync.router.transfer import Transfer
from tunnelsync.settings import RouterSettings


async def test_messages_that_are_all_here_leave_turns_to_others() -> None:
    """`receive` does not wait while there is something to receive."""
    messages = iter([WSMessage(WSMsgType.PONG, b"", None)] * 1000)
    turns = 0

    async def receive() -> WSMessage:
        return next(messages, WSMessage(WSMsgType.CLOSED, None, None))

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    socket = cast(web.WebSocketResponse, SimpleNamespace(receive=receive))
    link = cast(channel.SocketLink, SimpleNamespace(heard=lambda: None))
    task = asyncio.create_task(others())
    await channel._listen(socket, link, cast(Any, None), cast(Any, None))
    task.cancel()
    assert turns >= 1000 // channel.IN_A_ROW


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with router_alone(tmp_path_factory.mktemp("crowding")) as router:
        yield router


async def test_a_batch_of_very_many_items_leaves_turns_to_others(shared: Router) -> None:
    body = b"".join(pack(Item(""), b"") for _ in range(8000))
    async with played(shared.url, another_mac()) as connector:
        post = await connector.held_post("batch", len(body))
        await post.send(body[:-1])
        assert (await asking(shared.url, "GET", "/healthz")).status == 200
        await post.send(body[-1:])
        first, _ = await asyncio.wait(
            {answer := asyncio.create_task(post.reply()), asking(shared.url, "GET", "/healthz")},
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert answer not in first
        assert await answer is not None


def test_who_reads_no_answer_is_cut_off(system: System) -> None:
    """Answers of a few bytes, which no deadline of ours watches over."""
    router = system.router(idle_seconds=0.5)
    at = urlsplit(router.url)
    with socket.create_connection((at.hostname, at.port)) as peer:
        peer.settimeout(20)
        with pytest.raises(ConnectionError):
            while True:
                peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000)


async def test_what_a_connector_says_last_is_kept_short() -> None:
    long = "x" * 100_000
    command = GetDatasetStream("r1", "d")
    mac = mac_address("cc-28-aa-00-11-22")
    transfer = Transfer(command, mac, "d", "stream", RouterSettings(), lambda _: None)
    said = Complete("r1", error=Problem("internal", long, long))
    transfer.on_complete(said)
    transfer.on_complete(said)  # the same again changes nothing
    kept = transfer.said.complete
    assert kept is not None
    assert kept.error is not None
    assert max(len(kept.error.message), len(kept.error.hint)) == TEXT_CHARACTERS


async def test_a_root_of_an_error_is_kept_short_too(shared: Router) -> None:
    async with played(shared.url, another_mac()) as connector:
        client = wanting(shared.url, connector.mac)
        request_id = await connector.command("get_dataset_stream")
        problem = Problem("read_failed", "no", "")
        refused = Complete(request_id, root="x" * 1000, error=problem)
        assert (await connector.post("stream/complete", refused)).status == 400
        await connector.post("stream/complete", Complete(request_id, error=problem))
        assert (await client).code == "read_failed"


def test_origins_that_a_connector_names_are_not_looked_at() -> None:
    offer = {"download_url": "u", "blocks_url": "b", "dataset": "d", "size": 1, "etag": "e"}
    more = {"modified_ns": 0, "root": "r", "count": 1, "expires_seconds": 1}
    assert _understood(offer | more | {"store_origins": 5}).store_origins == ()
