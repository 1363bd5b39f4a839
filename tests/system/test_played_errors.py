"""A connector that fails in the middle of a stream, or answers what no head can tell."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from harness import System, wait_until
from held import HeldGet
from played_connector import (
    PlayedConnector,
    Reply,
    another_mac,
    asking,
    is_whole,
    played,
    wanting,
)
from played_router import blocks_of, content, framed
from played_transfer import decoded, queued, receipt, still_works
from tunnelsync import frames
from tunnelsync.errors import DatasetChanged
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import (
    Complete,
    Problem,
    Progress,
)
from tunnelsync.settings import KIB, MIB
from tunnelsync.wire import dumps
from watched import descriptors

BODY = content(3000)


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


@pytest.mark.parametrize("short_of", [1, 0])
async def test_a_frame_that_would_fill_the_body_is_left_out(
    connector: PlayedConnector, short_of: int
) -> None:
    """HTTP would have the body for whole, and only who reads its frames would know."""
    words = len(frames.encode_failure(CHANGED.error()))
    rest = words + short_of - frames.FRAME_OVERHEAD_BYTES - len(framed(b""))
    data = content(BLOCK_BYTES + rest)
    sent = framed(data[:BLOCK_BYTES], end=False)
    client = wanting(connector.url, connector.mac, coding="blocks")
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, len(framed(data)), size=len(data))
    assert (await connector.chunk(request_id, 0, sent)).value == {"offset": len(sent)}
    assert (await connector.complete(request_id, error=CHANGED)).status == 200
    answer = await client
    assert not is_whole(answer)
    blocks, error = decoded(answer.body)
    assert blocks == [data[:BLOCK_BYTES]]
    assert isinstance(error, DatasetChanged) is bool(short_of)
    assert (await receipt(connector, request_id))["error"]["code"] == "dataset_changed"


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
        {"length": 2},
        {"status": 206, "offset": 1},
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
    async with played(router.url, another_mac()) as connector:
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


@asynccontextmanager
async def unread_listing(
    system: System, **limits: Any
) -> AsyncIterator[tuple[PlayedConnector, HeldGet, str]]:
    """A listing of 30 MB, more than connections hold, and a client that does not read it yet."""
    count = 8000
    router = system.router(result_bytes=64 * MIB, list_entries=count, **limits)
    async with played(router.url, another_mac()) as connector:
        entries = [{"name": "n" * 3900 + str(number), "kind": "folder"} for number in range(count)]
        asked = asyncio.to_thread(HeldGet, router.url, f"/datasets/{connector.mac}/")
        client = asyncio.create_task(asked)
        request_id = await connector.command("list_datasets")
        listing = dumps({"entries": entries})
        reply = await connector.post("result", listing, request_id=request_id)
        assert reply.status == 200
        with await client as get:
            yield connector, get, request_id


async def test_a_client_that_does_not_read_its_listing_is_cut_off(system: System) -> None:
    async with unread_listing(system, idle_seconds=1) as (connector, _, request_id):
        said = await receipt(connector, request_id)
        assert (said["outcome"], said["error"]["code"]) == ("timed_out", "stalled")


async def test_an_error_after_the_result_is_refused_and_the_client_gets_all(
    system: System,
) -> None:
    async with unread_listing(system) as (connector, get, request_id):
        late = await connector.complete(request_id, error=CHANGED)
        assert (late.status, late.code) == (409, "conflict")
        _, is_all = await asyncio.to_thread(get.rest)
        assert is_all
        assert (await receipt(connector, request_id))["outcome"] == "delivered"


async def test_a_client_that_does_not_read_is_cut_off_after_an_error(system: System) -> None:
    router = system.router(zero_copy=False)  # so some of it waits in the router
    async with played(router.url, another_mac()) as connector:
        await still_works(connector)
        idle = descriptors(router)
        asked = asyncio.to_thread(HeldGet, router.url, f"/datasets/{connector.mac}/d")
        client = asyncio.create_task(asked)
        request_id = await connector.command("get_dataset_stream")
        await connector.init(request_id, 64 * MIB)
        held = await connector.held_chunk(request_id, 0, 64 * MIB)
        sending = asyncio.create_task(held.send(bytes(48 * MIB)))
        with await client:
            assert (await connector.complete(request_id, error=CHANGED)).status == 200
            assert (await receipt(connector, request_id))["error"]["code"] == "dataset_changed"
            await asyncio.to_thread(
                wait_until, lambda: descriptors(router) <= idle, 20, "the router to cut it off"
            )
        with suppress(ConnectionError):
            await sending


async def test_a_head_that_does_not_come_is_not_waited_for(system: System) -> None:
    router = system.router(keepalive_seconds=1)
    at = urlsplit(router.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127")
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()
