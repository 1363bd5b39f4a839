"""How the bytes of a stream come to a real router: twice, out of order, cut off."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from harness import System
from played_connector import (
    PlayedConnector,
    Reply,
    another_mac,
    init,
    is_whole,
    played,
    wanting,
)
from played_router import content
from played_transfer import queued, receipt, relayed
from tunnelsync.protocol import (
    Complete,
)
from tunnelsync.settings import KIB, MIB

BODY = content(3000)


@pytest.mark.parametrize("length", [0, 1, 5 * MIB])
async def test_b9_a_stream_in_one_request(connector: PlayedConnector, length: int) -> None:
    """The plain case, so that the faults below are the faults."""
    body = content(length)
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    begin, end = init(request_id, length), Complete(request_id)
    reply = await connector.chunk(request_id, 0, body, init=begin, complete=end)
    assert reply == Reply(200, {"offset": length})
    answer = await client
    assert is_whole(answer)
    assert answer.body == body


# --- B5: offsets --------------------------------------------------------------------------------


async def test_b5_chunks_twice_and_out_of_order_are_put_right(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert (await connector.init(request_id, 3000)).status == 200

    async def refused(offset: int, right: int) -> None:
        reply = await connector.chunk(request_id, offset, BODY[offset : offset + 1000])
        assert (reply.status, reply.code) == (409, "wrong_offset"), reply
        assert reply.value["offset"] == right

    async def taken(start: int, end: int) -> None:
        reply = await connector.chunk(request_id, start, BODY[start:end])
        assert (reply.status, reply.value) == (200, {"offset": end})

    await refused(500, 0)
    await taken(0, 1000)
    await refused(0, 1000)
    await refused(2000, 1000)
    await refused(999, 1000)
    await taken(1000, 2000)
    await taken(2000, 3000)
    assert (await connector.complete(request_id)).status == 200
    answer = await client
    assert (answer.status, answer.body) == (200, BODY)
    assert (await receipt(connector, request_id))["outcome"] == "delivered"


async def test_b5_the_last_chunk_twice_is_told_the_end(connector: PlayedConnector) -> None:
    """Its answer was lost: what a connector then needs to know is that all of it is there."""
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, 3000)
    assert (await connector.chunk(request_id, 0, BODY)).status == 200
    assert (await client).body == BODY
    again = await connector.chunk(request_id, 0, BODY)
    assert (again.status, again.code) == (409, "wrong_offset"), again
    assert again.value["offset"] == 3000
    assert (await connector.offset(request_id)).value == {"offset": 3000}
    assert (await connector.complete(request_id)).status == 200


async def test_b5_one_chunk_may_wait_behind_the_one_that_is_relayed(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, 3000)
    first = await connector.held_chunk(request_id, 0, 1000)
    await first.send(BODY[:400])
    await queued(connector, request_id, 1000)
    second = asyncio.create_task(connector.chunk(request_id, 1000, BODY[1000:2000]))
    await queued(connector, request_id, 2000)
    full = await connector.chunk(request_id, 2000, BODY[2000:])
    assert (full.status, full.code) == (409, "wrong_offset")
    await first.send(BODY[400:1000])
    done = await first.reply()
    assert done is not None
    assert (done.status, done.value["offset"] in (1000, 2000)) == (200, True)
    assert await second == Reply(200, {"offset": 2000})
    assert (await connector.chunk(request_id, 2000, BODY[2000:])).status == 200
    await connector.complete(request_id)
    assert (await client).body == BODY


async def test_b5_a_chunk_past_the_length_is_400_and_the_transfer_goes_on(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, 3000)
    for offset in ("-1", "0x10", "nine", "9" * 40):
        path = f"stream/chunk?request_id={request_id}&offset={offset}"
        assert (await connector.post(path, b"x")).status == 400
    too_long = await connector.chunk(request_id, 0, BODY + b"more")
    assert (too_long.status, too_long.code) == (400, "bad_request")
    assert (await connector.chunk(request_id, 0, BODY[:2999])).status == 200
    assert (await connector.chunk(request_id, 2999, b"xy")).status == 400
    assert (await connector.chunk(request_id, 2999, BODY[2999:])).status == 200
    await connector.complete(request_id)
    assert (await client).body == BODY


async def test_b5_chunks_without_a_length_are_taken_too(connector: PlayedConnector) -> None:
    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100):
            yield data[start : start + 100]

    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, 3000)
    assert (await connector.chunk(request_id, 0, pieces(BODY[:1500]))).value == {"offset": 1500}
    assert (await connector.chunk(request_id, 0, pieces(BODY))).value["offset"] == 1500
    assert (await connector.chunk(request_id, 1500, pieces(BODY[1500:]))).status == 200
    await connector.complete(request_id)
    assert (await client).body == BODY


async def test_b5_a_range_past_the_end_is_416_with_the_size(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert (await connector.init(request_id, 0, status=416, size=3000)).status == 200
    answer = await client
    assert (answer.status, answer.code) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */3000"
    assert (await connector.complete(request_id)).status == 200


# --- a broken upload ----------------------------------------------------------------------------


async def test_b12_the_offset_detaches_the_chunk_and_no_byte_is_lost_or_doubled(
    connector: PlayedConnector,
) -> None:
    body = content(4 * MIB)
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, len(body))
    at, part = 0, 300 * KIB + 7
    while at + part < len(body):
        held = await connector.held_chunk(request_id, at, len(body) - at)
        await held.send(body[at : at + part])
        await relayed(connector, request_id, at + 1)
        reply = await connector.offset(request_id)
        assert at < reply.value["offset"] <= at + part
        at = reply.value["offset"]
        answered = await held.reply()
        assert answered is None or answered.status == 409, answered
    assert (await connector.chunk(request_id, at, body[at:])).value == {"offset": len(body)}
    await connector.complete(request_id)
    answer = await client
    assert is_whole(answer)
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()


async def test_b12_uploads_that_break_by_themselves_are_gone_on_with(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, 3000)
    for _ in range(5):
        at = (await connector.offset(request_id)).value["offset"]
        held = await connector.held_chunk(request_id, at, 3000 - at)
        await held.send(BODY[at : at + 300])
        held.close()
    async with asyncio.timeout(20):
        while True:  # a broken request may still be on its way to the router
            at = (await connector.offset(request_id)).value["offset"]
            assert at <= 1500
            reply = await connector.chunk(request_id, at, BODY[at:])
            if reply.status == 200:
                break
            assert reply.code == "wrong_offset"
    await connector.complete(request_id)
    assert (await client).body == BODY


async def test_b12_a_connector_that_does_not_come_back_is_a_break(system: System) -> None:
    url = system.router(resume_seconds=0.3).url
    async with played(url, another_mac()) as connector:
        client = wanting(url, connector.mac)
        request_id = await connector.command("get_dataset_stream")
        await connector.init(request_id, 3000)
        assert (await connector.chunk(request_id, 0, BODY[:1000])).status == 200
        held = await connector.held_chunk(request_id, 1000, 2000)
        await held.send(BODY[1000:1500])
        held.close()
        answer = await client
        assert not is_whole(answer)
        told = await receipt(connector, request_id)
        assert (told["outcome"], told["error"]["code"]) == ("broken", "broken_off")
        assert "0.3 s" in told["error"]["message"]
        assert (await connector.chunk(request_id, 1000, BODY[1000:])).status == 410
