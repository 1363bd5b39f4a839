"""What comes in parts, from a connector that a test plays: in order, early, twice, or too much."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest

import raw_http
from harness import Router, System
from played_connector import (
    PlayedConnector,
    Reply,
    another_mac,
    held_bytes,
    played,
    router_alone,
    wanting,
)
from played_router import content
from tunnelsync import protocol
from tunnelsync.settings import KIB, MIB
from watched import rss_bytes

ANSWER = orjson.dumps({"data": "x" * 3 * MIB, "status": "success"})
PART = MIB


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    limits: dict[str, Any] = {"buffers_bytes": 16 * MIB, "buffer_json_bytes": 12 * MIB}
    with router_alone(tmp_path_factory.mktemp("parts"), **limits) as router:
        yield router


async def part(
    connector: PlayedConnector, request_id: str, offset: int, data: bytes, total: int = len(ANSWER)
) -> Reply:
    return await connector.post("result", data, request_id=request_id, offset=offset, length=total)


async def test_a_result_comes_whole_of_its_parts(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    for at in range(0, len(ANSWER), PART):
        end = min(at + PART, len(ANSWER))
        reply = await part(connector, request_id, at, ANSWER[at:end])
        assert reply == Reply(200, {"offset": end})
    answer = await client
    assert (answer.status, answer.body) == (200, ANSWER)
    again = await part(connector, request_id, at, ANSWER[at:])
    assert (again.status, again.code) == (409, "wrong_offset")
    assert again.value["offset"] == len(ANSWER)
    assert await held_bytes(connector.url) == 0


async def test_b5_a_part_that_is_not_the_next_is_told_which_is(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    early = await part(connector, request_id, 5, ANSWER[5:10])
    assert (early.status, early.code, early.value["offset"]) == (409, "wrong_offset", 0)
    assert (await part(connector, request_id, 0, ANSWER[:PART])).status == 200
    twice = await part(connector, request_id, 0, ANSWER[:PART])
    assert (twice.status, twice.value["offset"]) == (409, PART)
    assert (await part(connector, request_id, PART, ANSWER[PART:])).status == 200
    assert (await client).body == ANSWER


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"offset": 0, "length": 10**9}, 413, "too_large"),
        ({"offset": 0, "length": 5}, 400, "bad_request"),
        ({"offset": 0, "length": 0}, 400, "bad_request"),
        ({"offset": "x", "length": 100}, 400, "bad_request"),
        ({"offset": "9" * 5000, "length": 100}, 400, "bad_request"),
        ({"length": 100}, 400, "bad_request"),
        ({"offset": 0, "length": -1}, 400, "bad_request"),
    ],
)
async def test_a_part_that_cannot_be_is_refused(
    connector: PlayedConnector, query: dict[str, Any], status: int, code: str
) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    reply = await connector.post("result", b"0123456789", request_id=request_id, **query)
    assert (reply.status, reply.code) == (status, code)
    client.cancel()


async def test_a_part_that_tells_no_length_is_refused(connector: PlayedConnector) -> None:
    """Nobody knows whether all of it came, nor whether it fits."""

    async def chunked() -> AsyncIterator[bytes]:
        yield ANSWER[:PART]

    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    total = len(ANSWER)
    reply = await connector.post("result", chunked(), request_id=request_id, offset=0, length=total)
    assert (reply.status, reply.code) == (400, "bad_request")
    client.cancel()


async def test_a2_parts_of_another_result_are_a_conflict(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    assert (await part(connector, request_id, 0, ANSWER[:PART])).status == 200
    other = await part(connector, request_id, PART, ANSWER[PART:-1], total=len(ANSWER) - 1)
    assert (other.status, other.code) == (409, "conflict")
    assert (await part(connector, request_id, PART, ANSWER[PART:])).status == 200
    assert (await client).body == ANSWER


async def test_p5_parts_count_in_the_budget_and_an_end_lets_go_of_them(
    connector: PlayedConnector,
) -> None:
    """A client that leaves midway frees what came; what is over the budget ends the request."""
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    total = 10 * MIB
    assert (await part(connector, request_id, 0, bytes(9 * MIB), total)).status == 200
    assert await held_bytes(connector.url) == 9 * MIB
    second = wanting(connector.url, connector.mac, "sync")
    other_id = await connector.command("get_dataset")
    busy = await part(connector, other_id, 0, bytes(8 * MIB), total)
    assert (busy.status, busy.code) == (503, "router_busy")
    assert (await second).status == 503
    client.cancel()
    heard = [await connector.hear(), await connector.hear()]
    assert {(one["command"], one["request_id"]) for one in heard} == {
        ("cancel", request_id),
        ("cancel", other_id),
    }
    assert await held_bytes(connector.url) == 0
    gone = await part(connector, request_id, 9 * MIB, bytes(MIB), total)
    assert (gone.status, gone.code) == (410, "gone")


async def test_each_part_is_a_sign_of_life(system: System) -> None:
    """Six parts, a quarter of the deadline from each to the next: more than that in all."""
    url = system.router(answer_seconds=2).url
    async with played(url, another_mac()) as connector:
        client = wanting(url, connector.mac, "sync")
        request_id = await connector.command("get_dataset")
        size = len(ANSWER) // 6 + 1
        for at in range(0, len(ANSWER), size):
            await asyncio.wait({client}, timeout=0.5)
            assert (await part(connector, request_id, at, ANSWER[at : at + size])).status == 200
        assert (await client).body == ANSWER


async def test_b5_the_same_part_on_two_connections_counts_once(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    path = f"result?request_id={request_id}&offset=0&length={len(ANSWER)}"
    posts = [await connector.held_post(path, PART) for _ in range(2)]
    for post in posts:
        await post.send(ANSWER[: PART - 1])
    async with asyncio.timeout(20):
        while await held_bytes(connector.url) < 2 * (PART - 1):
            pass
    for post in posts:
        await post.send(ANSWER[PART - 1 : PART])
    replies = [await post.reply() for post in posts]
    assert {reply and reply.status for reply in replies} == {200, 409}
    assert {reply and reply.value["offset"] for reply in replies} == {PART}
    assert (await part(connector, request_id, PART, ANSWER[PART:])).status == 200
    assert (await client).body == ANSWER
    assert await held_bytes(connector.url) == 0


async def test_p7_a_part_that_ends_after_its_client_left_is_gone(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    path = f"result?request_id={request_id}&offset=0&length={len(ANSWER)}"
    post = await connector.held_post(path, PART)
    await post.send(ANSWER[: PART - 1])
    async with asyncio.timeout(20):
        while not await held_bytes(connector.url):
            pass
    client.cancel()
    assert (await connector.hear())["command"] == "cancel"
    await post.send(ANSWER[PART - 1 : PART])
    reply = await post.reply()
    assert reply is not None
    assert (reply.status, reply.code) == (410, "gone")
    assert await held_bytes(connector.url) == 0


async def test_p7_parts_of_results_that_nobody_wants_any_more_leave_the_memory(
    system: System,
) -> None:
    """Only their receipts stay: of 40 results of 8 MiB, not 320 MiB."""
    router = system.router(buffers_bytes=64 * MIB)
    async with played(router.url, another_mac()) as connector:
        before = rss_bytes(router)
        for _ in range(40):
            client = wanting(router.url, connector.mac, "sync")
            request_id = await connector.command("get_dataset")
            reply = await part(connector, request_id, 0, b"x" * 8 * MIB, 16 * MIB)
            assert reply == Reply(200, {"offset": 8 * MIB})
            client.cancel()
            assert (await connector.hear())["command"] == "cancel"
        assert rss_bytes(router) - before < 100 * MIB


async def test_an_error_may_come_in_parts_too(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    error = {"code": "dataset_not_found", "message": "x" * 30 * KIB}
    text = orjson.dumps({"status": "error", "error": error})
    for at in range(0, len(text), 16 * KIB):
        data = text[at : at + 16 * KIB]
        assert (await part(connector, request_id, at, data, len(text))).status == 200
    answer = await client
    assert (answer.status, answer.code) == (404, "dataset_not_found")


async def test_b5_a_chunk_that_comes_before_the_one_it_follows_waits(
    connector: PlayedConnector,
) -> None:
    body = content(3000)
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert (await connector.init(request_id, 3000)).status == 200
    posts = {
        asyncio.create_task(
            connector.post("stream/chunk", body[1000:], request_id=request_id, offset=1000, after=0)
        )
        for _ in range(2)
    }
    # Only one can wait there: the other is refused, so the one has come.
    refused, waiting = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
    (reply,) = [one.result() for one in refused]
    assert (reply.status, reply.code, reply.value["offset"]) == (409, "wrong_offset", 0)
    early = waiting.pop()
    assert (await connector.chunk(request_id, 0, body[:1000])).status == 200
    assert await early == Reply(200, {"offset": 3000})
    assert (await connector.complete(request_id)).status == 200
    assert (await client).body == body


async def test_b12_who_only_looks_at_the_offset_breaks_nothing_off(
    connector: PlayedConnector,
) -> None:
    body = content(3000)
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert await looked(connector, request_id) == {"offset": 0, "next": 0}
    assert (await connector.init(request_id, 3000)).status == 200
    held = await connector.held_chunk(request_id, 0, 3000)
    await held.send(body[:1000])
    async with asyncio.timeout(20):
        while (await looked(connector, request_id)) != {"offset": 1000, "next": 3000}:
            pass
    await held.send(body[1000:])
    reply = await held.reply()
    assert reply == Reply(200, {"offset": 3000})
    assert (await connector.complete(request_id)).status == 200
    assert (await client).body == body


async def looked(connector: PlayedConnector, request_id: str) -> dict[str, Any]:
    query = f"request_id={request_id}&detach=no"
    headers = {protocol.H_CONNECTOR: connector.mac}
    answer = await asyncio.to_thread(
        raw_http.ask, connector.url, "GET", f"/datasets/stream/offset?{query}", headers
    )
    return answer.json()
