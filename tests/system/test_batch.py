"""Several answers in one body, to a real router: each is taken or refused by itself."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

import raw_http
from harness import Router, System
from played_connector import (
    PlayedConnector,
    Reply,
    another_mac,
    asking,
    held_bytes,
    init,
    played,
    router_alone,
    wanting,
)
from played_router import content
from tunnelsync import protocol
from tunnelsync.batch import Item, pack
from tunnelsync.protocol import Complete
from tunnelsync.settings import KIB, MIB

BATCH_BYTES = 64 * KIB
BUFFERS_BYTES = 128 * KIB
RESULT = orjson.dumps({"status": "success", "data": "abc"})
BODY = b"0123456789"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    limits: dict[str, Any] = {"batch_bytes": BATCH_BYTES, "buffers_bytes": BUFFERS_BYTES}
    with router_alone(tmp_path_factory.mktemp("batch"), **limits) as router:
        yield router


def result(request_id: str, body: bytes = RESULT) -> bytes:
    return pack(Item(request_id), body)


def stream(request_id: str, body: bytes = BODY, **over: Any) -> bytes:
    """A whole stream; ``over`` replaces members of its init."""
    whole = Complete(request_id, "root", 1)
    return pack(Item(request_id, init(request_id, len(body), **over), whole), body)


async def batch(connector: PlayedConnector, *items: bytes) -> Reply:
    return await connector.post("batch", b"".join(items))


async def receipt(url: str, request_id: str) -> dict[str, Any]:
    return dict((await asking(url, "GET", f"/transfers/{request_id}?wait=10")).json())


def taken(**refused: int) -> Reply:
    return Reply(200, {"status": "ok", "refused": refused})


async def test_results_and_streams_come_to_their_clients(connector: PlayedConnector) -> None:
    synced = wanting(connector.url, connector.mac, "sync")
    first = await connector.command("get_dataset", ack=False)
    streamed = wanting(connector.url, connector.mac)
    second = await connector.command("get_dataset_stream", ack=False)
    head = asking(connector.url, "HEAD", f"/datasets/{connector.mac}/d")
    third = await connector.command("stat_dataset", ack=False)
    stat = {"status": 200, "size": 7, "etag": "v1", "modified_ns": 0, "offset": 0, "length": 7}
    items = result(first), stream(second), result(third, orjson.dumps(stat))
    assert await batch(connector, *items) == taken()
    assert ((await synced).status, (await synced).body) == (200, RESULT)
    assert ((await streamed).status, (await streamed).body) == (200, BODY)
    assert (await head).headers["tunnelsync-size"] == "7"
    told = await receipt(connector.url, second)
    assert (told["outcome"], told["root"], told["bytes"]) == ("delivered", "root", len(BODY))
    assert await held_bytes(connector.url) == 0


@pytest.mark.parametrize("status", [304, 412, 416])
async def test_a_stream_without_a_body(connector: PlayedConnector, status: int) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert await batch(connector, stream(request_id, b"", status=status)) == taken()
    assert (await client).status == status
    assert (await receipt(connector.url, request_id))["outcome"] == "delivered"


async def test_an_error_comes_to_its_client(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    error = {"code": "dataset_not_found", "message": "there is no d", "hint": ""}
    body = orjson.dumps({"status": "error", "error": error})
    assert await batch(connector, result(request_id, body)) == taken()
    assert ((await client).status, (await client).json()["error"]["code"]) == (404, error["code"])


async def test_the_same_again_is_taken_and_something_else_is_not(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    for _ in range(2):
        assert await batch(connector, result(request_id)) == taken()
    assert (await client).body == RESULT
    other = await batch(connector, result(request_id, b'{"data":"other"}'))
    assert other == taken(**{request_id: 409})
    assert await held_bytes(connector.url) == 0


async def test_what_is_refused_names_its_status_and_the_others_are_taken(
    connector: PlayedConnector,
) -> None:
    async with played(connector.url, another_mac()) as other:
        foreign = wanting(connector.url, other.mac)
        not_ours = await other.command("get_dataset_stream")
        client = wanting(connector.url, connector.mac)
        request_id = await connector.command("get_dataset_stream")
        unknown = "f" * 32
        reply = await batch(connector, stream(not_ours), result(unknown), stream(request_id))
        assert reply == taken(**{not_ours: 403, unknown: 404})
        assert (await client).body == BODY
        assert await batch(connector, stream(request_id)) == taken(**{request_id: 410})
        assert await batch(other, stream(not_ours)) == taken()
        assert (await foreign).body == BODY


@pytest.mark.parametrize(
    "wrong",
    [
        lambda one: pack(Item(one, init(one, 11), Complete(one)), BODY),
        lambda one: pack(Item(one, init(one, 9), Complete(one)), BODY),
        lambda one: pack(Item(one, init("a" * 32, 10), Complete(one)), BODY),
        lambda one: pack(Item(one, init(one, 10), Complete("a" * 32)), BODY),
        lambda one: pack(Item(one, init(one, 10)), BODY),
        lambda one: pack(Item(one, None, Complete(one)), BODY),
        lambda one: pack(Item(one), b"no JSON"),
        lambda one: stream(one, status=500),
        lambda one: stream(one, etag='"'),
    ],
)
async def test_a_wrong_item_is_refused_and_the_right_one_still_counts(
    connector: PlayedConnector, wrong: Any
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert await batch(connector, wrong(request_id)) == taken(**{request_id: 400})
    assert await held_bytes(connector.url) == 0
    assert await batch(connector, stream(request_id)) == taken()
    assert (await client).body == BODY


async def test_a_body_that_is_none_is_refused_whole(connector: PlayedConnector) -> None:
    reply = await batch(connector, b"\0\0\0\1")
    assert (reply.status, reply.code) == (400, "bad_request")
    assert await batch(connector) == taken()


async def test_a_batch_has_a_limit(connector: PlayedConnector) -> None:
    assert (await connector.post("batch", bytes(BATCH_BYTES + 1))).status == 413


async def test_a_stranger_is_refused(connector: PlayedConnector) -> None:
    """One that is no connector: the address is for connectors alone."""
    answer = await asking(connector.url, "POST", "/datasets/batch", {})
    assert answer.status in (400, 401, 403)


async def test_no_client_is_waited_for_and_what_is_held_has_a_limit(
    connector: PlayedConnector,
) -> None:
    body, url, asked = bytes(BUFFERS_BYTES // 4), connector.url, {"mac": connector.mac}
    later = partial(raw_http.post, url, "/datasets/request-stream", {**asked, "dataset": "d"})
    waiting = []
    for number in range(5):
        answer = await asyncio.to_thread(later, Prefer="respond-async, wait=0")
        assert answer.status == 202  # nobody comes for it yet
        waiting.append(await connector.command("get_dataset_stream"))
        full = number == 4
        refused = taken(**{waiting[-1]: 503}) if full else taken()
        assert await batch(connector, stream(waiting[-1], body)) == refused
        assert await held_bytes(url) == min(number + 1, 4) * len(body)
    came = await asking(url, "GET", f"/transfers/{waiting[0]}/result")
    assert came.body == body
    assert await batch(connector, stream(waiting[4], body)) == taken()
    for request_id in waiting:
        await asking(url, "DELETE", f"/transfers/{request_id}")
    assert await held_bytes(url) == 0


async def test_reading_what_is_held_leaves_the_connection_alone_that_it_came_by(
    connector: PlayedConnector,
) -> None:
    """Another stream's bytes may pass there by then, from socket to socket."""
    url, asked = connector.url, {"mac": connector.mac, "dataset": "d"}
    later = partial(raw_http.post, url, "/datasets/request-stream", asked)
    assert (await asyncio.to_thread(later, Prefer="respond-async, wait=0")).status == 202
    first = await connector.command("get_dataset_stream")
    at, item, whole = urlsplit(url), stream(first), content(24 * MIB)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)

    def post(path: str, length: int) -> bytes:
        headers = {"Connection": "keep-alive", "Content-Length": str(length)}
        headers[protocol.H_CONNECTOR] = connector.mac
        return raw_http.head("POST", f"/datasets/{path}", headers)

    async def answer() -> int:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(raw_http.parsed(head).headers["content-length"]))
        return raw_http.parsed(head).status

    writer.write(post("batch", len(item)) + item)
    assert await answer() == 200
    client = wanting(url, connector.mac)
    second = await connector.command("get_dataset_stream")
    assert (await connector.init(second, len(whole))).status == 200
    writer.write(post(f"stream/chunk?request_id={second}&offset=0", len(whole)) + whole[: 8 * MIB])
    await writer.drain()
    assert (await asking(url, "GET", f"/transfers/{first}/result")).body == BODY
    writer.write(whole[8 * MIB :])
    async with asyncio.timeout(20):
        assert await answer() == 200
    await connector.complete(second, root="root", count=6)
    assert (await client).body == whole
    writer.close()


async def test_what_is_answered_in_place_of_an_ack_waits_for_none(system: System) -> None:
    router = system.router(command_queue=2)
    async with played(router.url, another_mac()) as connector:
        asked = {"mac": connector.mac, "dataset": "d"}
        later = partial(raw_http.post, router.url, "/datasets/request-stream", asked)
        for _ in range(4):  # none of them comes for its answer
            assert (await asyncio.to_thread(later, Prefer="respond-async, wait=0")).status == 202
            request_id = await connector.command("get_dataset_stream", ack=False)
            assert await batch(connector, stream(request_id)) == taken()
