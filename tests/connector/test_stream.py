"""Mode stream against a played router: exact bytes, whatever breaks on the way."""

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web

from played_connector_router import (
    PlayedRouter,
    Stream,
    connected,
    refusal,
    served,
    settings_for,
)
from played_router import content, digests_of, framed
from tunnelsync import frames, protocol
from tunnelsync.connector.body import Body
from tunnelsync.connector.outgoing import Span
from tunnelsync.connector.source import Root
from tunnelsync.errors import Conflict, DatasetChanged, WrongOffset
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Coding, Conditions, GetDatasetStream, Init

RAW, BLOCKS = Coding.RAW, Coding.BLOCKS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture(params=[True, False], ids=["from-file", "copied"])
async def router(request: pytest.FixtureRequest) -> AsyncIterator[PlayedRouter]:
    """The connector has two ways to send what it read; to the router they are one."""
    async with served(PlayedRouter()) as played:
        played.zero_copy = request.param
        yield played


async def ask(router: PlayedRouter, folder: Path, command: GetDatasetStream) -> Stream:
    async with connected(settings_for(router, folder)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(command))
        return await router.stream(command.request_id)


def whole(name: str, coding: Coding = BLOCKS) -> GetDatasetStream:
    return GetDatasetStream("r1", name, coding)


SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, 9_000_001]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("coding", [BLOCKS, RAW])
async def test_B9_each_size_arrives_exactly(
    router: PlayedRouter, folder: Path, size: int, coding: Coding
) -> None:
    data = content(size)
    (folder / "a").write_bytes(data)
    found = (folder / "a").stat()
    stream = await ask(router, folder, whole("a", coding))
    assert stream.body == (framed(data) if coding is BLOCKS else data)
    etag = f"{size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"
    assert stream.init == Init("r1", 200, size, etag, len(stream.body), found.st_mtime_ns, 0)
    digests = digests_of(data)
    assert stream.complete == protocol.Complete("r1", frames.root(digests), len(digests))
    assert stream.chunks == [0]


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        (Conditions(range="bytes=10-19"), 206, slice(10, 20)),
        (Conditions(range="bytes=-5"), 206, slice(-5, None)),
        (Conditions(range=f"bytes={BLOCK_BYTES - 3}-"), 206, slice(BLOCK_BYTES - 3, None)),
        (Conditions(range="bytes=99999999-"), 416, slice(0, 0)),
        (Conditions(if_none_match="*"), 304, slice(0, 0)),
        (Conditions(if_match='"other"'), 412, slice(0, 0)),
        (Conditions(range="bytes=1-2", if_range='"other"'), 200, slice(None)),
    ],
)
async def test_raw_conditions_decide_status_and_part(
    router: PlayedRouter, folder: Path, wanted: Conditions, status: int, part: slice
) -> None:
    data = content(BLOCK_BYTES + 100)
    (folder / "a").write_bytes(data)
    stream = await ask(router, folder, GetDatasetStream("r1", "a", RAW, conditions=wanted))
    assert stream.init is not None
    assert (stream.init.status, stream.init.size) == (status, len(data))
    assert stream.body == data[part]
    assert stream.init.length == len(stream.body)
    assert stream.complete is not None
    assert (stream.complete.root is None) == (status != 200)


async def test_raw_offset_and_length_are_a_range(router: PlayedRouter, folder: Path) -> None:
    data = content(1000)
    (folder / "a").write_bytes(data)
    stream = await ask(router, folder, GetDatasetStream("r1", "a", RAW, offset=7, length=11))
    assert stream.body == data[7:18]
    assert stream.init is not None
    assert (stream.init.status, stream.init.offset, stream.init.length) == (206, 7, 11)


async def test_blocks_of_a_part_carry_the_root_of_the_part(
    router: PlayedRouter, folder: Path
) -> None:
    data = content(3 * BLOCK_BYTES + 5)
    (folder / "a").write_bytes(data)
    command = GetDatasetStream("r1", "a", BLOCKS, offset=BLOCK_BYTES, length=2 * BLOCK_BYTES)
    stream = await ask(router, folder, command)
    part = data[BLOCK_BYTES : 3 * BLOCK_BYTES]
    assert stream.body == framed(part)
    assert stream.complete == protocol.Complete("r1", frames.root(digests_of(part)), 2)
    assert stream.init is not None
    assert (stream.init.status, stream.init.offset) == (206, BLOCK_BYTES)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (GetDatasetStream("r1", "absent", BLOCKS), "dataset_not_found"),
        (GetDatasetStream("r1", "../a", BLOCKS), "bad_name"),
        (GetDatasetStream("r1", "a", BLOCKS, offset=5), "range_not_satisfiable"),
        (GetDatasetStream("r1", "a", RAW, length=0), "range_not_satisfiable"),
        (GetDatasetStream("r1", "a", "gzip"), "unsupported"),
        (
            GetDatasetStream("r1", "a", BLOCKS, conditions=Conditions(if_match='"x"')),
            "precondition_failed",
        ),
    ],
)
async def test_what_fails_before_the_first_byte_is_a_result(
    router: PlayedRouter, folder: Path, command: GetDatasetStream, code: str
) -> None:
    (folder / "a").write_bytes(b"0123456789")
    async with connected(settings_for(router, folder)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(command))
        answer = await router.result("r1")
    assert (answer["status"], answer["error"]["code"]) == ("error", code)
    assert not router.streams


# --- what breaks on the way ---------------------------------------------------------------


FULL = BLOCK_BYTES + frames.FRAME_OVERHEAD_BYTES


@pytest.mark.parametrize("coding", [BLOCKS, RAW])
@pytest.mark.parametrize(
    "cuts",
    [
        [0],
        [1],
        [FULL],
        [FULL - 1, 1, 1],
        [FULL + 4],
        [5_000_000, 1_000_000, 4_000_000],
        [3 * FULL + 3],
        [3 * FULL + 3 + 36 + 40],
    ],
    ids=str,
)
async def test_B12_a_cut_connection_is_resumed_with_exact_bytes(
    router: PlayedRouter, folder: Path, cuts: list[int], coding: Coding
) -> None:
    data = content(3 * BLOCK_BYTES + 3)
    (folder / "a").write_bytes(data)
    router.faults = [cutting(router, after) for after in cuts]
    stream = await ask(router, folder, whole("a", coding))
    assert stream.body == (framed(data) if coding is BLOCKS else data)
    assert stream.complete is not None
    assert stream.complete.root == frames.root(digests_of(data))


@pytest.mark.parametrize("coding", [BLOCKS, RAW])
@pytest.mark.parametrize("size", [0, 10])
async def test_B12_a_small_stream_whose_answer_is_lost_is_sent_or_closed_again(
    router: PlayedRouter, folder: Path, size: int, coding: Coding
) -> None:
    data = content(size)
    (folder / "a").write_bytes(data)
    router.faults = [cutting(router, 1000)]
    stream = await ask(router, folder, whole("a", coding))
    assert stream.body == (framed(data) if coding is BLOCKS else data)
    assert stream.complete is not None
    assert stream.complete.error is None


async def test_b2_an_edit_after_the_reading_never_has_a_right_digest(
    router: PlayedRouter, folder: Path
) -> None:
    data = content(4 * BLOCK_BYTES)
    (folder / "a").write_bytes(data)
    edited = bytes([data[BLOCK_BYTES - 1] ^ 1])

    async def edit(request: web.Request, stream: Stream) -> None:
        # The first block was read, for its chunk request is here; nothing of it was taken yet.
        with (folder / "a").open("r+b") as file:
            file.seek(BLOCK_BYTES - 1)
            file.write(edited)

    router.faults = [edit]
    stream = await ask(router, folder, whole("a"))
    block, digest = stream.body[4 : 4 + BLOCK_BYTES], stream.body[4 + BLOCK_BYTES : FULL]
    assert (block == data[:BLOCK_BYTES]) == (frames.digest(block) == digest)
    assert (block[-1:] == edited) == router.zero_copy
    assert stream.complete is not None
    assert stream.complete.error is not None
    assert stream.complete.error.code == "dataset_changed"


def cutting(router: PlayedRouter, after: int):  # type: ignore[no-untyped-def]
    async def fault(request: web.Request, stream: Stream) -> web.StreamResponse | None:
        if int(request.query["offset"]) != stream.taken:
            return refusal(WrongOffset("another offset"))
        await router.take(request, stream, after)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return fault


@pytest.mark.parametrize("status", [409, 413, 502, 503, 504, 522])
async def test_B12_a_refused_chunk_is_a_reason_to_go_on(
    router: PlayedRouter, folder: Path, status: int
) -> None:
    data = content(2 * BLOCK_BYTES + 7)
    (folder / "a").write_bytes(data)
    html = web.Response(status=status, body=b"<html>no</html>")
    answers = [refusal(WrongOffset("x")) if status == 409 else html]

    async def refuse(request: web.Request, stream: Stream) -> web.Response:
        return answers.pop()

    router.faults = [refuse]
    stream = await ask(router, folder, whole("a"))
    assert stream.body == framed(data)


async def test_a_proxy_that_takes_one_mebibyte_gets_chunks_of_that(
    router: PlayedRouter, folder: Path
) -> None:
    data = content(2 * BLOCK_BYTES + 7)
    (folder / "a").write_bytes(data)

    async def nginx(request: web.Request, stream: Stream) -> web.Response | None:
        router.faults.append(nginx)
        assert request.content_length is not None
        return web.Response(status=413) if request.content_length > 1024 * 1024 else None

    router.faults = [nginx]
    stream = await ask(router, folder, whole("a"))
    assert stream.body == framed(data)
    assert stream.chunks == [0, 0, *range(0, len(stream.body), 1024 * 1024)]


async def test_the_next_chunk_does_not_wait_for_the_answer_to_the_one_before(
    router: PlayedRouter, folder: Path
) -> None:
    """Two are open at a time and no third: the answer to one takes as long as the client does."""
    data = content(5 * 1024 * 1024)
    (folder / "a").write_bytes(data)
    follows: dict[int, str | None] = {}
    came = asyncio.Condition()

    async def slow(request: web.Request, stream: Stream) -> web.Response | None:
        router.faults.append(slow)
        assert request.content_length is not None
        if request.content_length > 1024 * 1024:
            return web.Response(status=413)
        offset, end = int(request.query["offset"]), request.content_length
        await router.take(request, stream)
        async with came:
            follows[offset] = request.query.get("after")
            came.notify_all()
        async with stream.moved:
            stream.moved.notify_all()
        async with came:  # no answer before the next one has come, whole
            await came.wait_for(lambda: offset + end in follows or stream.taken == len(wanted))
        return web.json_response({"status": "ok"})

    wanted = framed(data)
    router.faults = [slow]
    stream = await ask(router, folder, whole("a"))
    assert stream.body == wanted
    step = 1024 * 1024
    assert follows == {0: None} | {at: str(at - step) for at in range(step, len(wanted), step)}


async def test_a_stalled_router_is_left_for_a_new_connection(
    router: PlayedRouter, folder: Path
) -> None:
    data = content(16 * BLOCK_BYTES)
    (folder / "a").write_bytes(data)
    over = asyncio.Event()

    async def stall(request: web.Request, stream: Stream) -> web.StreamResponse | None:
        await router.take(request, stream, 1000)
        await over.wait()
        return web.Response()

    router.faults = [stall]
    async with connected(settings_for(router, folder, stall_seconds=0.3)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(whole("a")))
        stream = await router.stream("r1")
    over.set()
    assert stream.body == framed(data)
    assert stream.chunks == [0, 1000]


async def test_attempts_without_progress_end_with_an_error(
    router: PlayedRouter, folder: Path
) -> None:
    (folder / "a").write_bytes(content(2 * BLOCK_BYTES))
    router.faults = [cutting(router, after) for after in (10, *[0] * 20)]
    stream = await ask(router, folder, whole("a"))
    assert stream.complete is not None
    assert stream.complete.error is not None
    assert stream.complete.error.code == "broken_off"
    assert stream.complete.sent == 10
    assert stream.chunks == [0, 10, *[10] * 5]


async def test_a_router_that_stands_past_the_end_is_told_so(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(content(1000))

    async def past(request: web.Request) -> web.Response:
        return web.json_response({"offset": 1001})

    monkeypatch.setattr(router, "on_offset", past)
    router.faults = [cutting(router, 10)]
    async with served(router):
        stream = await ask(router, folder, whole("a", RAW))
    assert stream.complete is not None
    assert stream.complete.error is not None
    assert stream.complete.error.code == "protocol_error"
    assert stream.complete.error.message == "the router has 1001 of 1000 bytes"


async def test_P2_a_stream_that_nobody_wants_is_dropped(router: PlayedRouter, folder: Path) -> None:
    (folder / "a").write_bytes(content(20 * BLOCK_BYTES))
    (folder / "b").write_bytes(b"next")

    async def leave(request: web.Request, stream: Stream) -> web.StreamResponse | None:
        await router.take(request, stream, 1000)
        router.gone.add("r1")
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    router.faults = [leave]
    async with connected(settings_for(router, folder, places=1)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(whole("a")))
        await ws.send_str(protocol.encode(GetDatasetStream("r2", "b", RAW)))
        assert (await router.stream("r2")).body == b"next"
    assert router.streams["r1"].complete is None
    assert not router.results


async def test_another_init_than_before_ends_the_stream(router: PlayedRouter, folder: Path) -> None:
    (folder / "a").write_bytes(content(10))
    conflict = refusal(Conflict("another init came first"))

    async def refuse(request: web.Request, stream: Stream) -> web.Response:
        return conflict

    router.faults = [refuse]
    stream = await ask(router, folder, whole("a"))
    assert stream.complete is not None
    assert stream.complete.error is not None
    assert stream.complete.error.code == "protocol_error"


@pytest.mark.parametrize("change", ["shrink", "grow", "edit"])
@pytest.mark.parametrize("coding", [BLOCKS, RAW])
async def test_B2_a_change_in_mid_stream_ends_it_between_frames(
    router: PlayedRouter, folder: Path, coding: Coding, change: str
) -> None:
    data = content(8 * BLOCK_BYTES)
    path = folder / "a"
    path.write_bytes(data)
    (folder / "b").write_bytes(b"next")

    async def meddle(request: web.Request, stream: Stream) -> None:
        first = await request.content.readany()
        stream.body += first
        stream.taken += len(first)
        with path.open("r+b") as file:
            if change == "shrink":
                file.truncate(6 * BLOCK_BYTES + 9)
            elif change == "grow":
                file.seek(0, os.SEEK_END)
                file.write(b"more")
            else:
                file.seek(len(data) - 100)
                file.write(b"!")

    router.faults = [meddle]
    async with connected(settings_for(router, folder, places=1)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(whole("a", coding)))
        await ws.send_str(protocol.encode(GetDatasetStream("r2", "b", RAW)))
        await router.stream("r2")  # it had to wait until the first one was over
    stream = router.streams["r1"]
    assert stream.complete is not None
    assert stream.complete.error is not None
    assert stream.complete.error.code == "dataset_changed"
    assert stream.complete.sent is not None
    blocks, rest = divmod(stream.complete.sent, FULL if coding is BLOCKS else BLOCK_BYTES)
    assert rest == 0
    assert 1 <= blocks <= 7
    assert stream.body == (framed(data) if coding is BLOCKS else data)[: stream.complete.sent]
    assert stream.chunks == [0]


async def test_a_router_that_never_lets_go_of_a_broken_stream_is_left(
    router: PlayedRouter, folder: Path
) -> None:
    path, over = folder / "a", asyncio.Event()
    path.write_bytes(content(4 * BLOCK_BYTES))
    (folder / "b").write_bytes(b"next")

    async def hold(request: web.Request, stream: Stream) -> None:
        await request.content.readany()
        with path.open("ab") as file:
            file.write(b"more")
        await router.take(request, stream)
        await over.wait()

    router.faults = [hold]
    async with (
        connected(settings_for(router, folder, places=1, stall_seconds=1.0)),
        asyncio.timeout(15),
    ):
        ws = await router.socket()
        await ws.send_str(protocol.encode(whole("a")))
        await ws.send_str(protocol.encode(GetDatasetStream("r2", "b", RAW)))
        assert (await router.stream("r2")).body == b"next"
        over.set()
    complete = router.streams["r1"].complete
    assert complete is not None
    assert complete.error is not None
    assert complete.error.code == "dataset_changed"


async def test_B2_a_small_dataset_that_cannot_be_read_is_a_result_error(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(b"0123456789")

    def broken(fd: int, length: int, at: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    async with connected(settings_for(router, folder)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(whole("a")))
        assert (await router.result("r1"))["error"]["code"] == "read_failed"


async def rest_of(body: Body, start: int) -> bytes:
    rest = bytearray()
    async for piece in body.pieces(start, body.length):
        assert not isinstance(piece, Span)
        rest += piece
    return bytes(rest)


async def test_b2_a_block_of_which_some_was_not_sent_is_read_again(tmp_path: Path) -> None:
    """Where the kernel sends it, the dataset may have been cut short in between."""
    (tmp_path / "a").write_bytes(content(BLOCK_BYTES))
    with ThreadPoolExecutor(2) as executor:
        root = Root(tmp_path, executor, list_entries=10, folder_entries=10)
        async with await root.open("a") as source:
            body = Body(source, 0, BLOCK_BYTES, Coding.BLOCKS, from_file=True)
            pieces = body.pieces(0, body.length)
            while not isinstance(await anext(pieces), Span):
                pass
            await pieces.aclose()  # as when the connection breaks
            os.truncate(tmp_path / "a", 1000)
            with pytest.raises(DatasetChanged, match="shrank"):
                await anext(body.pieces(0, body.length))
            await body.close()
        root.close()


@pytest.mark.parametrize("size", [100, BLOCK_BYTES - 10, BLOCK_BYTES, 2 * BLOCK_BYTES - 1])
async def test_b12_a_body_goes_on_from_any_of_its_last_bytes(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(content(size))
    with ThreadPoolExecutor(2) as executor:
        root = Root(tmp_path, executor, list_entries=10, folder_entries=10)
        async with await root.open("a") as source:
            body = Body(source, 0, size, Coding.BLOCKS)
            await body.prepare()
            whole = await rest_of(body, 0)
            for at in range(max(0, body.length - 2 * frames.framed_length(0)), body.length):
                assert await rest_of(body, at) == whole[at:], at - body.length
            await body.close()
        root.close()
