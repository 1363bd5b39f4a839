"""A real router, and a connector that a test plays: wrong, twice, out of order, silent, or gone."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest

import raw_http
from harness import Router, System
from held import HeldGet
from played_connector import (
    PlayedConnector,
    Reply,
    asking,
    init,
    is_whole,
    played,
    wanting,
)
from played_router import blocks_of, content, digests_of, framed
from tunnelsync import frames
from tunnelsync.errors import DatasetChanged, TunnelSyncError
from tunnelsync.frames import BLOCK_BYTES, Claimed, Decoder
from tunnelsync.protocol import (
    CLOSE_PROTOCOL,
    CLOSE_REPLACED,
    Ack,
    Complete,
    Fault,
    Problem,
    Progress,
)
from tunnelsync.settings import KIB, MIB
from tunnelsync.wire import dumps

BODY = content(3000)
MACS = (f"cc-28-aa-01-{n >> 8:02x}-{n & 255:02x}" for n in count())


@pytest.fixture(scope="module", params=[True, False], ids=["zero copy", "copies"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Router]:
    """One router for all tests that leave it as it is: each brings a connector of its own."""
    started = System(tmp_path_factory.mktemp("played"))
    try:
        yield started.router(zero_copy=request.param)
    finally:
        started.stop()


@pytest.fixture
async def connector(shared: Router) -> AsyncIterator[PlayedConnector]:
    async with played(shared.url, next(MACS)) as one:
        yield one


async def receipt(connector: PlayedConnector, request_id: str) -> dict[str, Any]:
    """Return the receipt of a transfer that ends."""
    answer = await asking(connector.url, "GET", f"/transfers/{request_id}?wait=20")
    return answer.json()


async def still_works(connector: PlayedConnector) -> None:
    """Prove that the next command comes on the socket, and its answer to the client."""
    client = asking(connector.url, "GET", f"/datasets/{connector.mac}/")
    request_id = await connector.command("list_datasets")
    assert (await connector.result(request_id, {"entries": []})).status == 200
    assert (await client).json()["entries"] == []


def decoded(body: bytes) -> tuple[list[bytes], TunnelSyncError | None]:
    """Return the proven blocks of a framed body, and the error that it ends with, if any."""
    decoder, blocks = Decoder(), []
    events = decoder.feed(body)
    try:
        while isinstance(event := next(events, None), Claimed):
            blocks.append(b"".join(event.verified()))
        decoder.finish()
    except TunnelSyncError as error:
        return blocks, error
    return blocks, None


async def queued(connector: PlayedConnector, request_id: str, until: int) -> None:
    """Wait until the router has the chunk request that ends there: a wrong one is told so."""
    async with asyncio.timeout(20):
        while True:
            probe = await connector.chunk(request_id, 10**15, b"x")
            assert (probe.status, probe.code) == (409, "wrong_offset"), probe
            if probe.value["offset"] == until:
                return


async def relayed(connector: PlayedConnector, request_id: str, size: int) -> None:
    """Wait until so many bytes have gone to the client."""
    async with asyncio.timeout(20):
        while (await asking(connector.url, "GET", f"/transfers/{request_id}")).json()[
            "bytes"
        ] < size:
            pass


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


# --- lost answers -------------------------------------------------------------------------------


async def test_init_and_complete_twice_get_the_first_answer_and_others_409(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    first = await connector.init(request_id, 3000)
    assert first.status == 200
    assert await connector.init(request_id, 3000) == first
    other = await connector.init(request_id, 2999)
    assert (other.status, other.code) == (409, "conflict")
    early = await connector.complete(request_id)
    assert (early.status, early.code) == (409, "conflict")
    assert (await connector.chunk(request_id, 0, BODY)).status == 200
    assert await connector.init(request_id, 3000) == first
    root = frames.root(digests_of(BODY))
    done = await connector.complete(request_id, root=root, count=1)
    assert done.status == 200
    assert (await client).body == BODY
    assert await connector.complete(request_id, root=root, count=1) == done
    assert await connector.init(request_id, 3000) == first
    assert (await connector.complete(request_id, root=root, count=2)).status == 409
    problem = Problem("read_failed", "after the end")
    assert (await connector.complete(request_id, error=problem)).status == 409
    assert (await connector.init(request_id, 2999)).status == 409
    told = await receipt(connector, request_id)
    assert (told["outcome"], told["root"], told["bytes"]) == ("delivered", root, 3000)


async def test_a2_a_result_twice_gets_the_first_answer_and_another_409(
    connector: PlayedConnector,
) -> None:
    value = {"status": "success", "data": "one"}
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    first = await connector.result(request_id, value)
    assert first.status == 200
    assert await connector.result(request_id, value) == first
    assert (await client).json() == value
    assert await connector.result(request_id, value) == first
    other = await connector.result(request_id, value | {"data": "two"})
    assert (other.status, other.code) == (409, "conflict")
    failed = {"status": "error", "error": {"code": "read_failed", "message": "late"}}
    assert (await connector.result(request_id, failed)).status == 409
    assert (await receipt(connector, request_id))["outcome"] == "delivered"


async def test_an_error_result_twice_gets_the_first_answer_and_success_409(
    connector: PlayedConnector,
) -> None:
    failed = {"status": "error", "error": {"code": "read_failed", "message": "the disk"}}
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    first = await connector.result(request_id, failed)
    assert first.status == 200
    answer = await client
    assert (answer.status, answer.code) == (500, "read_failed")
    assert await connector.result(request_id, failed) == first
    assert (await connector.result(request_id, {"status": "success"})).status == 409
    assert (await connector.init(request_id, 3000)).status == 410


async def test_a_result_may_name_its_request_inside(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    value = {"request_id": request_id, "status": "success", "data": "x"}
    assert (await connector.post("result", value)).status == 200
    assert (await client).json() == value


async def test_messages_in_the_headers_cost_one_request_and_may_come_again(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    begin, end = init(request_id, 3000), init_end(request_id)
    reply = await connector.chunk(request_id, 0, BODY, init=begin, complete=end)
    assert reply == Reply(200, {"offset": 3000})
    assert (await client).body == BODY
    again = await connector.chunk(request_id, 0, BODY, init=begin, complete=end)
    assert (again.status, again.code) == (410, "gone")
    assert (await connector.complete(request_id, root=end.root, count=end.count)).status == 200


def init_end(request_id: str) -> Complete:
    """Return the closing word for the whole body."""
    return Complete(request_id, frames.root(digests_of(BODY)), 1)


async def test_headers_that_contradict_are_refused_and_the_transfer_goes_on(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    begin = init(request_id, 3000)
    foreign = replace(begin, request_id="0" * 32)
    assert (await connector.chunk(request_id, 0, BODY, init=foreign)).status == 400
    first = await connector.chunk(request_id, 0, BODY[:1000], init=begin)
    assert first == Reply(200, {"offset": 1000})
    other = replace(begin, etag="v2")
    assert (await connector.chunk(request_id, 1000, BODY[1000:], init=other)).status == 409
    assert (await connector.chunk(request_id, 1000, BODY[1000:], init=begin)).status == 200
    await connector.complete(request_id)
    assert (await client).body == BODY


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": 500},
        {"status": 100},
        {"size": -1},
        {"offset": -1},
        {"etag": 'a"b'},
        {"etag": "a\r\nX: y"},
        {"etag": "\u00e9"},
    ],
)
async def test_an_init_that_cannot_be_is_400_and_the_right_one_goes_on(
    connector: PlayedConnector, wrong: dict[str, Any]
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    refused = await connector.init(request_id, 3000, **wrong)
    assert (refused.status, refused.code) == (400, "bad_request")
    reply = await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000))
    assert reply.status == 200
    await connector.complete(request_id)
    assert (await client).body == BODY


async def test_what_is_out_of_order_or_of_another_kind_is_409(connector: PlayedConnector) -> None:
    streamed = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert (await connector.chunk(request_id, 0, BODY)).code == "conflict"
    assert (await connector.complete(request_id)).code == "conflict"
    assert (await connector.result(request_id, {"status": "success"})).code == "conflict"
    assert (await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000))).status == 200
    assert (await connector.result(request_id, {"status": "success"})).status == 409
    await connector.complete(request_id)
    assert (await streamed).body == BODY

    buffered = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    assert (await connector.init(request_id, 3000)).code == "conflict"
    assert (await connector.chunk(request_id, 0, BODY)).code == "conflict"
    assert (await connector.result(request_id, {"data": "x"})).status == 200
    assert (await buffered).json() == {"data": "x"}


async def test_after_the_end_everything_is_410(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000))
    await connector.complete(request_id)
    assert (await client).body == BODY
    for reply in (
        await connector.chunk(request_id, 0, BODY),
        await connector.chunk(request_id, 3000, b""),
        await connector.offset(request_id),
        await connector.result(request_id, {"data": "x"}),
    ):
        assert (reply.status, reply.code) == (410, "gone"), reply
    assert (await connector.offset("f" * 32)).status == 404


async def test_a1_another_connector_cannot_touch_a_transfer(
    connector: PlayedConnector, shared: Router
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.chunk(request_id, 0, BODY[:1000], init=init(request_id, 3000))
    async with played(connector.url, next(MACS)) as other:
        problem = Problem("read_failed", "ha")
        for reply in (
            await other.init(request_id, 3000),
            await other.chunk(request_id, 1000, b"evil"),
            await other.result(request_id, {"data": "evil"}),
            await other.complete(request_id, error=problem),
            await other.offset(request_id),
        ):
            assert (reply.status, reply.code) == (403, "forbidden"), reply
        await other.say(Ack(request_id))
        await other.say(Progress(request_id, "reading"))
        shared.wait_for_line(f"refused: connector {other.mac} answered request {request_id}")
        await still_works(other)
    await connector.chunk(request_id, 1000, BODY[1000:])
    await connector.complete(request_id)
    assert (await client).body == BODY


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
    async with played(url, next(MACS)) as connector:
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
        assert (await connector.chunk(request_id, 1000, BODY[1000:])).status == 410


# --- an error in mid-stream ---------------------------------------------------------------------

BLOCKS = content(2 * BLOCK_BYTES) + b"and a bit"
CHANGED = Problem("dataset_changed", "it grew while it was read", "again")


async def test_an_error_in_mid_stream_comes_after_all_that_was_sent(
    connector: PlayedConnector,
) -> None:
    """Two blocks of three were sent, the chunk request is open: the client gets both, and why."""
    whole = framed(BLOCKS)
    sent = framed(BLOCKS[: 2 * BLOCK_BYTES], end=False)
    client = wanting(connector.url, connector.mac, coding="blocks")
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, len(whole), size=len(BLOCKS))
    held = await connector.held_chunk(request_id, 0, len(whole))
    await held.send(sent[:-1000])
    await queued(connector, request_id, len(whole))
    assert (await connector.complete(request_id, error=CHANGED, sent=len(sent))).status == 200
    await held.send(sent[-1000:])
    answer = await client
    assert answer.status == 200
    assert not is_whole(answer)
    blocks, error = decoded(answer.body)
    assert blocks == blocks_of(BLOCKS)[:2]
    assert isinstance(error, DatasetChanged)
    assert (error.message, error.hint) == ("it grew while it was read", "again")
    ended = await held.reply()
    assert ended is None or ended.status in (409, 410), ended
    again = await connector.complete(request_id, error=CHANGED, sent=len(sent))
    assert again.status == 200
    told = await receipt(connector, request_id)
    assert (told["outcome"], told["error"]["code"]) == ("broken", "dataset_changed")


@pytest.mark.parametrize("open_chunk", [True, False])
async def test_an_error_after_whole_chunks_is_told_in_a_frame(
    connector: PlayedConnector, open_chunk: bool
) -> None:
    """All that was sent is taken already; with or without another chunk request just begun."""
    whole = framed(BLOCKS)
    sent = framed(BLOCKS[:BLOCK_BYTES], end=False)
    client = wanting(connector.url, connector.mac, coding="blocks")
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, len(whole), size=len(BLOCKS))
    assert (await connector.chunk(request_id, 0, sent)).value == {"offset": len(sent)}
    held = await connector.held_chunk(request_id, len(sent), 10) if open_chunk else None
    members = {"error": CHANGED, "sent": len(sent)} if open_chunk else {"error": CHANGED}
    assert (await connector.complete(request_id, **members)).status == 200
    blocks, error = decoded((await client).body)
    assert blocks == blocks_of(BLOCKS)[:1]
    assert isinstance(error, DatasetChanged)
    if held is not None:
        ended = await held.reply()
        assert ended is None or ended.status in (409, 410), ended


async def test_an_error_before_the_first_chunk_is_told_in_a_frame(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac, coding="blocks")
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, 5000, size=4000)
    assert (await connector.complete(request_id, error=CHANGED, sent=0)).status == 200
    blocks, error = decoded((await client).body)
    assert blocks == []
    assert isinstance(error, DatasetChanged)


async def test_an_error_inside_a_frame_is_a_cut(connector: PlayedConnector) -> None:
    """There is no place for a reason inside a frame: the client asks the receipt for it."""
    whole = framed(BLOCKS)
    client = wanting(connector.url, connector.mac, coding="blocks")
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, len(whole), size=len(BLOCKS))
    assert (await connector.chunk(request_id, 0, whole[: BLOCK_BYTES + 500])).status == 200
    assert (await connector.complete(request_id, error=CHANGED)).status == 200
    answer = await client
    assert answer.body == whole[: len(answer.body)]
    assert not is_whole(answer)
    told = await receipt(connector, request_id)
    assert told["error"]["code"] == "dataset_changed"


async def test_an_error_in_a_raw_stream_is_a_cut(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, 3000)
    held = await connector.held_chunk(request_id, 0, 3000)
    await queued(connector, request_id, 3000)
    assert (await connector.complete(request_id, error=CHANGED, sent=1000)).status == 200
    await held.send(BODY[:1000])
    answer = await client
    assert not is_whole(answer)
    assert answer.body == BODY[:1000]
    told = await receipt(connector, request_id)
    assert (told["outcome"], told["error"]["code"]) == ("broken", "dataset_changed")
    held.close()


# --- M1: what is on the socket ------------------------------------------------------------------

WRONG: dict[str, str | bytes] = {
    "deep": "[" * 30_000,
    "deep and closed": '{"type":"ack","request_id":' + "[" * 20_000 + "]" * 20_000 + "}",
    "deep objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "NaN": '{"type":"progress","request_id":"RID","state":"x","done":NaN}',
    "Infinity": '{"type":"progress","request_id":"RID","state":"x","done":-Infinity}',
    "a huge number": '{"type":"progress","request_id":"RID","state":"x","done":' + "9" * 400 + "}",
    "2**63": '{"type":"progress","request_id":"RID","state":"x","done":9223372036854775808}',
    "1e999": '{"type":"progress","request_id":"RID","state":"x","done":1e999}',
    "a fraction": '{"type":"progress","request_id":"RID","state":"x","done":1.5}',
    "a boolean": '{"type":"progress","request_id":"RID","state":"x","done":true}',
    "duplicate keys": '{"type":"ack","request_id":"RID","request_id":["RID"]}',
    "two types": '{"type":"ack","type":"nothing","request_id":"RID"}',
    "a list for a text": '{"type":"ack","request_id":["RID"]}',
    "a number for a text": '{"type":"ack","request_id":1}',
    "a missing member": '{"type":"ack"}',
    "null for a member": '{"type":"ack","request_id":null}',
    "a type that is none": '{"type":"reboot","request_id":"RID"}',
    "a type of another type": '{"type":{"ack":1},"request_id":"RID"}',
    "no type": '{"request_id":"RID"}',
    "a command": '{"command":"cancel","request_id":"RID"}',
    "a list": "[1,2,3]",
    "a text": '"ack"',
    "nothing": "",
    "no JSON": "hello?",
    "half a character": '{"type":"ack","request_id":"\\ud800"}',
    "a second hello": '{"type":"hello","mac":"cc-28-aa-00-11-22","version":"1","instance":"x"}',
    "an unknown protocol": (
        '{"type":"hello","mac":"cc-28-aa-00-11-22","version":"1","instance":"x","protocol":99}'
    ),
    "binary": b'{"type":"ack","request_id":"RID"}',
    "binary nonsense": bytes(range(256)),
}


async def test_m1_what_is_not_understood_is_answered_and_everything_goes_on(
    connector: PlayedConnector,
) -> None:
    """Each in the middle of a transfer; before the ack, which does come in the end."""
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream", ack=False)
    await connector.chunk(request_id, 0, BODY[:1000], init=init(request_id, 3000))
    for name, wrong in WRONG.items():
        if isinstance(wrong, bytes):
            await connector.say(wrong.replace(b"RID", request_id.encode()))
        else:
            await connector.say(wrong.replace("RID", request_id))
        heard = await connector.hear()
        assert heard["type"] == "error", (name, heard)
        assert heard["code"] in ("bad_request", "unsupported"), (name, heard)
        assert len(dumps(heard)) < 4 * KIB, (name, heard)
    # What is understood, and means nothing here: no answer, and no harm.
    await connector.say(Ack("f" * 32))
    await connector.say(Progress(request_id, "x" * 1000, -1))
    await connector.say('{"type":"error","code":"\\u001b[2J","message":"\\n\\u0000forged"}')
    await connector.say('{"type":"ack","request_id":"' + request_id + '","later":[[[]]]}')
    await still_works(connector)
    await connector.chunk(request_id, 1000, BODY[1000:])
    await connector.complete(request_id)
    assert (await client).body == BODY


async def test_m1_a_message_over_the_limit_ends_the_socket_and_not_the_transfer(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.chunk(request_id, 0, BODY[:1000], init=init(request_id, 3000))
    await connector.say('"' + "x" * 70_000 + '"')
    assert await connector.close_code() == 1009
    await connector.connect()
    await still_works(connector)
    await connector.chunk(request_id, 1000, BODY[1000:])
    await connector.complete(request_id)
    assert (await client).body == BODY


GOOD = '{"type":"hello","mac":"MAC","version":"1","instance":"i","protocol":1}'


@pytest.mark.parametrize(
    "hello",
    [
        GOOD.replace('"protocol":1', '"protocol":2'),
        GOOD.replace('"protocol":1', '"protocol":"1"'),
        GOOD.replace('"MAC"', '"nothing"'),
        GOOD.replace('"MAC"', '"cc-28-aa-ff-ff-ff"'),
        GOOD.replace('"instance":"i",', ""),
        '{"type":"ack","request_id":"x"}',
        "{",
        GOOD.encode(),
    ],
)
async def test_a_wrong_hello_closes_with_4004(shared: Router, hello: str | bytes) -> None:
    mac = next(MACS)
    async with PlayedConnector(shared.url, mac) as connector:
        await connector.open()
        if isinstance(hello, bytes):
            await connector.say(hello.replace(b"MAC", mac.encode()))
        else:
            await connector.say(hello.replace("MAC", mac))
        assert await connector.close_code() == CLOSE_PROTOCOL
        rows = (await asking(shared.url, "GET", "/connectors")).json()["connectors"]
        assert mac not in [row["mac"] for row in rows]
        await connector.connect()
        await still_works(connector)


def test_a_socket_without_the_subprotocol_is_refused(shared: Router) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for offered in ({}, {"Sec-WebSocket-Protocol": "tunnelsync.v2"}):
        with raw_http.connect(shared.url) as sock:
            sock.sendall(raw_http.head("GET", "/connectors/ws", upgrade | offered))
            answer = raw_http.parsed(sock.recv(65536))
        assert (answer.status, answer.code) == (501, "unsupported")


async def test_no_hello_within_the_deadline_closes_with_4004(system: System) -> None:
    url = system.router(ack_seconds=0.3).url
    async with PlayedConnector(url, next(MACS)) as connector:
        await connector.open()
        assert await connector.close_code() == CLOSE_PROTOCOL


# --- deadlines ----------------------------------------------------------------------------------


async def test_a_connector_that_never_acknowledges_is_told_of(system: System) -> None:
    url = system.router(ack_seconds=0.5).url
    async with played(url, next(MACS)) as connector:
        target = system.tmp_path / "out"
        fetch = asyncio.create_task(
            asyncio.to_thread(system.cli, "fetch", connector.mac, "d", "-o", target)
        )
        request_id = await connector.command("get_dataset_auto", ack=False)
        done = await fetch
        assert done.code == 6, done.err
        assert "acknowledge" in done.err
        assert connector.mac in done.err
        assert not target.exists()
        cancel = await connector.hear()
        assert (cancel["command"], cancel["request_id"]) == ("cancel", request_id)
        await still_works(connector)


async def test_a_connector_that_acknowledges_and_falls_silent_is_told_of(system: System) -> None:
    url = system.router(ack_seconds=10, answer_seconds=0.5).url
    async with played(url, next(MACS)) as connector:
        target = system.tmp_path / "out"
        fetch = asyncio.create_task(
            asyncio.to_thread(system.cli, "fetch", connector.mac, "d", "-o", target)
        )
        request_id = await connector.command("get_dataset_auto")
        done = await fetch
        assert done.code == 6, done.err
        assert "its answer, or a sign of life" in done.err
        assert not target.exists()
        told = await receipt(connector, request_id)
        assert (told["outcome"], told["state"]) == ("timed_out", "ended")


async def test_signs_of_life_keep_a_request_alive(system: System) -> None:
    """Eight times a quarter of the deadline: twice that in all."""
    url = system.router(answer_seconds=1).url
    async with played(url, next(MACS)) as connector:
        client = wanting(url, connector.mac, "sync")
        request_id = await connector.command("get_dataset")
        for done in range(8):
            await connector.say(Progress(request_id, "reading", done))
            await asyncio.wait({client}, timeout=0.25)
            assert not client.done()
        told = (await asking(url, "GET", f"/transfers/{request_id}")).json()
        assert (told["progress"], told["progress_done"]) == ("reading", 7)
        await connector.result(request_id, {"data": "x"})
        assert (await client).json() == {"data": "x"}


async def test_l2_an_upload_that_stops_is_broken_off(system: System) -> None:
    url = system.router(idle_seconds=0.5).url
    async with played(url, next(MACS)) as connector:
        client = wanting(url, connector.mac)
        request_id = await connector.command("get_dataset_stream")
        await connector.init(request_id, 3000)
        held = await connector.held_chunk(request_id, 0, 3000)
        await held.send(BODY[:1000])
        answer = await client
        assert answer.body == BODY[:1000]
        assert not is_whole(answer)
        told = await receipt(connector, request_id)
        assert (told["outcome"], told["error"]["code"]) == ("timed_out", "stalled")
        ended = await held.reply()
        assert ended is None or ended.status == 410


async def test_without_a_closing_word_what_came_whole_is_delivered(system: System) -> None:
    url = system.router(complete_seconds=0.3).url
    async with played(url, next(MACS)) as connector:
        client = wanting(url, connector.mac)
        request_id = await connector.command("get_dataset_stream")
        await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000))
        assert (await client).body == BODY
        assert (await receipt(connector, request_id))["outcome"] == "delivered"
        assert (await connector.complete(request_id)).status == 410


async def test_a_client_that_leaves_cancels_at_the_connector(connector: PlayedConnector) -> None:
    at = f"/datasets/{connector.mac}/d"
    with raw_http.connect(connector.url) as sock:
        sock.sendall(raw_http.head("GET", at, {}))
        request_id = await connector.command("get_dataset_stream")
    cancel = await connector.hear()
    assert (cancel["command"], cancel["request_id"]) == ("cancel", request_id)
    for reply in (
        await connector.init(request_id, 3000),
        await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000)),
        await connector.result(request_id, {"data": "x"}),
        await connector.complete(request_id),
    ):
        assert (reply.status, reply.code) == (410, "gone"), reply
    assert (await receipt(connector, request_id))["outcome"] == "cancelled"


# --- L8: the socket goes and comes back ---------------------------------------------------------


async def state_of(connector: PlayedConnector) -> tuple[str, int]:
    """Return what the router says of the connector: its state, and its transfers under way."""
    rows = (await asking(connector.url, "GET", "/connectors")).json()["connectors"]
    found = [row for row in rows if row["mac"] == connector.mac]
    return (found[0]["state"], found[0]["transfers"]) if found else ("offline", 0)


async def until(connector: PlayedConnector, state: str, transfers: int) -> None:
    """Wait until the router says so."""
    async with asyncio.timeout(20):
        while await state_of(connector) != (state, transfers):
            pass


async def test_l8_a_command_waits_for_the_socket_and_comes_once(connector: PlayedConnector) -> None:
    await connector.lose()
    await until(connector, "returning", 0)
    client = wanting(connector.url, connector.mac, "sync")
    await until(connector, "returning", 1)
    await connector.connect()
    request_id = await connector.command("get_dataset")
    await connector.result(request_id, {"data": "x"})
    assert (await client).json() == {"data": "x"}
    await still_works(connector)  # the next command is another one


async def test_l8_a_command_that_cannot_be_sent_fails_alone_when_the_connector_returns(
    system: System,
) -> None:
    router = system.router(message_bytes=1000)
    async with played(router.url, next(MACS)) as connector:
        await connector.lose()
        await until(connector, "returning", 0)
        long = wanting(connector.url, connector.mac, dataset="d" * 900)
        await until(connector, "returning", 1)
        client = wanting(connector.url, connector.mac, "sync")
        await until(connector, "returning", 2)
        await connector.connect()
        assert ((answer := await long).status, answer.code) == (413, "too_large")
        request_id = await connector.command("get_dataset")
        await connector.result(request_id, {"data": "x"})
        assert (await client).json() == {"data": "x"}
        await still_works(connector)


async def test_l8_what_was_not_acknowledged_comes_again_and_nothing_else(
    connector: PlayedConnector,
) -> None:
    clients = [wanting(connector.url, connector.mac, "sync") for _ in range(2)]
    acked = await connector.command("get_dataset")
    unacked = await connector.command("get_dataset", ack=False)
    await connector.say("fence")
    assert (await connector.hear())["type"] == "error"  # so the ack was read
    for _ in range(3):
        await connector.lose()
        await until(connector, "returning", 2)
        await connector.connect()
        assert await connector.command("get_dataset", ack=False) == unacked
    await still_works(connector)
    for request_id in (acked, unacked):
        await connector.result(request_id, {"data": "x"})
    for client in clients:
        assert (await client).json() == {"data": "x"}


async def test_l8_a_second_hello_of_the_same_process_takes_over(connector: PlayedConnector) -> None:
    """The router has not noticed yet that the first socket is dead; nothing ends for that."""
    flowing = wanting(connector.url, connector.mac)
    flowing_id = await connector.command("get_dataset_stream")
    await connector.chunk(flowing_id, 0, BODY[:1000], init=init(flowing_id, 3000))
    waiting = wanting(connector.url, connector.mac, "sync")
    waiting_id = await connector.command("get_dataset", ack=False)
    async with connector.another() as second:
        second.instance = connector.instance
        await second.open()
        await second.say(second.hello())
        welcome = await second.hear()
        assert (welcome["type"], welcome["epoch"], welcome["protocol"]) == ("welcome", 2, 1)
        assert await second.command("get_dataset") == waiting_id
        assert await connector.close_code() == CLOSE_REPLACED
        await second.result(waiting_id, {"data": "x"})
        assert (await waiting).json() == {"data": "x"}
        await second.chunk(flowing_id, 1000, BODY[1000:])
        await second.complete(flowing_id)
        assert (await flowing).body == BODY
        await still_works(second)


async def test_l8_a_transfer_that_flows_outlives_the_socket_and_its_grace(system: System) -> None:
    router = system.router(return_grace_seconds=0.2)
    async with played(router.url, next(MACS)) as connector:
        flowing = wanting(router.url, connector.mac)
        flowing_id = await connector.command("get_dataset_stream")
        await connector.chunk(flowing_id, 0, BODY[:1000], init=init(flowing_id, 3000))
        waiting = wanting(router.url, connector.mac, "sync")
        await connector.command("get_dataset")
        await connector.lose()
        answer = await waiting
        assert (answer.status, answer.code) == (503, "connector_offline")
        assert int(answer.headers["retry-after"]) >= 0
        assert await state_of(connector) == ("offline", 0)
        await connector.chunk(flowing_id, 1000, BODY[1000:])
        await connector.complete(flowing_id)
        assert (await flowing).body == BODY
        await connector.connect()
        await still_works(connector)


async def test_l6_another_process_replaces_and_both_commands_in_flight_end(
    connector: PlayedConnector,
) -> None:
    framed_body = framed(BLOCKS)
    flowing = wanting(connector.url, connector.mac, coding="blocks")
    flowing_id = await connector.command("get_dataset_stream")
    sent = framed(BLOCKS[:BLOCK_BYTES], end=False)
    begin = init(flowing_id, len(framed_body), size=len(BLOCKS))
    await connector.chunk(flowing_id, 0, sent, init=begin)
    waiting = wanting(connector.url, connector.mac, "sync")
    waiting_id = await connector.command("get_dataset")
    async with connector.another() as second:
        await second.connect()
        assert await connector.close_code() == CLOSE_REPLACED
        answer = await waiting
        assert (answer.status, answer.code) == (503, "connector_replaced")
        blocks, error = decoded((await flowing).body)
        assert blocks == blocks_of(BLOCKS)[:1]
        assert error is not None
        assert error.code == "connector_replaced"
        for request_id in (waiting_id, flowing_id):
            told = await receipt(second, request_id)
            assert (told["outcome"], told["error"]["code"]) == ("offline", "connector_replaced")
        assert (await second.result(waiting_id, {"data": "x"})).status == 410
        assert (await second.chunk(flowing_id, len(sent), b"x")).status == 410
        await still_works(second)


async def test_l2_a_connector_that_takes_no_more_commands_is_told_as_busy(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    await connector.say(Fault("connector_busy", "2000 commands are in hand already", request_id))
    answer = await client
    assert (answer.status, answer.code) == (503, "connector_busy")
    assert (await connector.hear())["command"] == "cancel"
    await still_works(connector)


# --- what no head can tell ----------------------------------------------------------------------


async def test_a_body_in_chunked_coding_arrives_without_it(connector: PlayedConnector) -> None:
    body = content(9 * MIB)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 64 * KIB):
            yield body[at : at + 64 * KIB]

    client = asking(connector.url, "GET", f"/datasets/{connector.mac}/d")
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, len(body))
    reply = await connector.chunk(request_id, 0, pieces())
    assert reply == Reply(200, {"offset": len(body)})
    answer = await client
    assert is_whole(answer)
    assert answer.body == body


@pytest.mark.parametrize("status", [304, 412, 416])
async def test_a_status_without_a_body_has_none(connector: PlayedConnector, status: int) -> None:
    """Else its bytes would be the next answer on the client's connection."""
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    reply = await connector.init(request_id, 8 * MIB, status=status)
    assert (reply.status, reply.code) == (400, "bad_request")
    assert (await connector.init(request_id, 0, status=status)).status == 200
    assert (await client).status == status
    await still_works(connector)


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": 42},
        {"status": 101},
        {"status": 304},
        {"size": -1},
        {"length": -5},
        {"etag": "a\r\nX-Evil: 1"},
        {"etag": "\u4e00"},
    ],
    ids=str,
)
async def test_a_stat_that_no_head_can_tell_is_the_connectors_fault(
    connector: PlayedConnector, wrong: dict[str, object]
) -> None:
    stat = {"status": 200, "size": 3, "etag": "v1", "modified_ns": 1, "offset": 0, "length": 3}
    client = asking(connector.url, "HEAD", f"/datasets/{connector.mac}/d")
    request_id = await connector.command("stat_dataset")
    await connector.result(request_id, stat | wrong)
    assert (await client).status == 502
    await still_works(connector)


async def test_a_chunk_that_is_wholly_here_before_its_turn_is_copied(system: System) -> None:
    """As it is where much is read at once: there is nothing left on its socket."""
    router = system.router(read_bytes=8 * MIB)
    body, first = content(7 * MIB), 1000
    async with played(router.url, next(MACS)) as connector:
        client = asking(connector.url, "GET", f"/datasets/{connector.mac}/d")
        request_id = await connector.command("get_dataset_stream")
        await connector.init(request_id, len(body))
        begin = await connector.held_chunk(request_id, 0, first)
        await begin.send(body[: first - 1])
        await queued(connector, request_id, first)
        rest = await connector.held_post(
            f"stream/chunk?request_id={request_id}&offset={first}&after=0", len(body) - first
        )
        await rest.send(body[first:])
        for _ in range(200):  # in each of which the router reads what there is
            await asking(connector.url, "GET", "/healthz")
        await begin.send(body[first - 1 : first])
        answer = await client
        assert is_whole(answer)
        assert answer.body == body


@pytest.mark.parametrize("limit", ["0" * 17 + "1" + "0" * 30, "0000000019999", "9" * 5000, "1001"])
async def test_a_limit_that_is_none_reaches_no_connector(
    connector: PlayedConnector, limit: str
) -> None:
    path = f"/datasets/{connector.mac}/?limit={limit}"
    assert (await asking(connector.url, "GET", path)).status == 400
    await still_works(connector)


async def test_a_listing_of_more_than_was_asked_for_is_the_connectors_fault(
    connector: PlayedConnector,
) -> None:
    client = asking(connector.url, "GET", f"/datasets/{connector.mac}/?limit=2")
    request_id = await connector.command("list_datasets")
    entries = [{"name": f"d{number}", "kind": "dataset"} for number in range(3)]
    await connector.result(request_id, {"entries": entries})
    assert (await client).status == 502
    await still_works(connector)


async def test_what_a_receipt_keeps_is_short(connector: PlayedConnector) -> None:
    long, client = "v" * 5000, wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert (await connector.init(request_id, 3000, etag=long)).status == 400
    await connector.init(request_id, 3000)
    await connector.say(Progress(request_id, "s" * 1000, 1))
    await connector.chunk(request_id, 0, BODY)
    refused = await connector.post("stream/complete", Complete(request_id, root=long))
    assert refused.status == 400
    await connector.post("stream/complete", Complete(request_id))
    assert (await client).status == 200
    assert len(dumps(await receipt(connector, request_id))) < 1000
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    problem = {"code": "internal", "message": long * 4, "hint": long * 4}
    await connector.result(request_id, {"error": problem})
    assert len((await client).body) < 10_000
    assert len(dumps(await receipt(connector, request_id))) < 10_000


async def test_a_client_that_does_not_read_its_listing_is_cut_off(system: System) -> None:
    count = 8000  # 30 MB, more than connections hold
    router = system.router(idle_seconds=1, result_bytes=64 * MIB, list_entries=count)
    async with played(router.url, next(MACS)) as connector:
        entries = [{"name": "n" * 3900 + str(number), "kind": "folder"} for number in range(count)]
        asked = asyncio.to_thread(HeldGet, router.url, f"/datasets/{connector.mac}/")
        client = asyncio.create_task(asked)
        request_id = await connector.command("list_datasets")

        async def page() -> AsyncIterator[bytes]:
            yield dumps({"entries": entries})

        reply = await connector.post("result", page(), request_id=request_id)
        assert reply.status == 200
        with await client:
            said = await receipt(connector, request_id)
            assert (said["outcome"], said["error"]["code"]) == ("timed_out", "stalled")


async def test_a_head_that_does_not_come_is_not_waited_for(system: System) -> None:
    router = system.router(keepalive_seconds=1)
    at = urlsplit(router.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127")
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()
