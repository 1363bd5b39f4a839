"""Mode stream over real sockets: whole and verified, or an error that says why."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from played_router import (
    MAC,
    MODIFIED_NS,
    Flipping,
    Streaming,
    client,
    content,
    framed,
    json,
    played,
    played_raw,
    raw_answer,
    stream_headers,
    streamed,
)
from tunnelsync import frames
from tunnelsync.errors import (
    BrokenOff,
    DatasetChanged,
    ProtocolError,
    Stalled,
    TransferGone,
    TunnelSyncError,
    VerificationFailed,
)
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import H_OFFSET, H_REQUEST_ID, H_SIZE, Mode, error_answer

SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES]
DATA = content(2 * BLOCK_BYTES + 77)


async def fetched(router: str, target: Path, **settings: Any) -> None:
    async with client(router, **settings) as ts:
        await ts.fetch(MAC, "d", target, mode=Mode.STREAM)


async def refused(router: str, folder: Path, error: type[TunnelSyncError]) -> str:
    """Fetch, see the error, and see that nothing is left in the folder."""
    with pytest.raises(error) as caught:
        await fetched(router, folder / "d")
    assert type(caught.value) is error
    assert not (folder / "d").exists()
    return caught.value.message


@pytest.mark.parametrize("size", SIZES)
async def test_every_size_arrives_whole(tmp_path: Path, size: int) -> None:
    data, seen = content(size), []

    async def router(request: web.BaseRequest) -> web.Response:
        seen.append((request.method, request.path, await request.json()))
        return streamed(data)

    async with played(router) as url, client(url) as ts:
        done = await ts.fetch(MAC.upper().replace("-", ":"), "a/d", tmp_path, mode=Mode.STREAM)
    assert (tmp_path / "d").read_bytes() == data
    assert (tmp_path / "d").stat().st_mtime_ns == MODIFIED_NS
    assert [one.name for one in tmp_path.iterdir()] == ["d"]
    assert done.root == frames.root(frames.digest(b) for b in _blocks(data))
    assert (done.bytes, done.request_id, done.etag, done.mac) == (size, "r1", "v1", MAC)
    ((method, path, body),) = seen
    assert (method, path) == ("POST", "/datasets/request-stream")
    assert (body["mac"], body["dataset"], body["coding"]) == (MAC, "a/d", "blocks")


def _blocks(data: bytes) -> list[bytes]:
    return [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]


@pytest.mark.parametrize("at", [0, 4, 4 + BLOCK_BYTES, -45, -1])
async def test_a_flipped_bit_is_found(tmp_path: Path, at: int) -> None:
    async with played(Flipping(DATA, at)) as url:
        await refused(url, tmp_path, VerificationFailed)


WHOLE = framed(DATA)
CUTS = {
    "nothing": 0,
    "in the head": 3,
    "after the head": 4,
    "in the payload": 1000,
    "after the payload": 4 + BLOCK_BYTES,
    "in the digest": 4 + BLOCK_BYTES + 31,
    "after a block": BLOCK_BYTES + 36,
    "before the end": len(WHOLE) - frames.END.size,
    "in the end": len(WHOLE) - 1,
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("kind", ["closed", "reset", "well-formed"])
async def test_a_body_cut_short_is_never_a_clean_end(tmp_path: Path, cut: int, kind: str) -> None:
    announced = cut if kind == "well-formed" else len(WHOLE)
    answer = raw_answer(WHOLE[:cut], announced=announced, size=len(DATA))
    async with played_raw(answer, reset=kind == "reset") as url:
        await refused(url, tmp_path, BrokenOff)


@pytest.mark.parametrize("blocks", [0, 1])
async def test_a_failure_frame_is_told_even_if_a_break_follows(tmp_path: Path, blocks: int) -> None:
    """Also of a body of which little is left, which is not read past aiohttp."""
    body = framed(DATA[: blocks * BLOCK_BYTES], end=False)
    body += frames.encode_failure(DatasetChanged("it changed"))
    announced = len(WHOLE) if blocks else len(body) + 9
    async with played_raw(raw_answer(body, announced=announced, size=len(DATA))) as url:
        assert await refused(url, tmp_path, DatasetChanged) == "it changed"


class Announcing(Streaming):
    """A router that tells another size than the dataset has."""

    def __init__(self, size: int) -> None:
        super().__init__(DATA)
        self.size = size

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        return await super().send(request, headers | {H_SIZE: str(self.size)}, body)


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, len(DATA) - 1, len(DATA) + 1])
async def test_an_announced_size_that_is_not_the_real_one_is_an_error(
    tmp_path: Path, size: int
) -> None:
    async with played(Announcing(size)) as url:
        await refused(url, tmp_path, VerificationFailed)


@pytest.mark.parametrize("first", [0, 2])
async def test_another_part_than_was_asked_for_is_never_taken(tmp_path: Path, first: int) -> None:
    wrong = first * BLOCK_BYTES

    class Deaf(Streaming):
        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            if headers[H_OFFSET] == "0":
                return await super().send(request, headers, body[: BLOCK_BYTES + 99])
            return await super().send(
                request, headers | {H_OFFSET: str(wrong)}, framed(DATA[wrong:])
            )

    async with played(Deaf(DATA)) as url:
        with pytest.raises(ProtocolError, match="another part"):
            await fetched(url, tmp_path / "d", retry_for_seconds=2.0)
    assert not (tmp_path / "d").exists()


async def test_blocks_cut_elsewhere_are_refused_since_their_root_is_not_the_files(
    tmp_path: Path,
) -> None:
    halves = [DATA[:1000], DATA[1000:2000]]
    digests = [frames.digest(one) for one in halves]
    body = b"".join(
        frames.encode_head(len(one)) + one + digest
        for one, digest in zip(halves, digests, strict=True)
    ) + frames.encode_end(2, frames.root(digests))

    async def router(request: web.BaseRequest) -> web.Response:
        return web.Response(body=body, headers=stream_headers(2000))

    async with played(router) as url:
        await refused(url, tmp_path, VerificationFailed)


async def test_what_is_no_frame_fails_verification(tmp_path: Path) -> None:
    async def router(request: web.BaseRequest) -> web.Response:
        return web.Response(body=b"\x7fhello world", headers=stream_headers(11))

    async with played(router) as url:
        await refused(url, tmp_path, VerificationFailed)


class Breaking:
    """A router that breaks a stream off, and then answers for the receipt as told."""

    def __init__(self, receipt: web.Response | None) -> None:
        self.receipt = receipt
        self.asked: list[str] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            self.asked.append(str(request.rel_url))
            if self.receipt is None:
                assert request.transport is not None
                request.transport.abort()
            return self.receipt or web.Response()
        answer = web.StreamResponse(
            headers=stream_headers(len(DATA)) | {"Content-Length": str(len(WHOLE))}
        )
        await answer.prepare(request)
        await answer.write(WHOLE[: BLOCK_BYTES + 99])
        assert request.transport is not None
        request.transport.close()
        return answer


def receipt(error: TunnelSyncError | None) -> web.Response:
    members = {"request_id": "r1", "mac": MAC, "dataset": "d", "mode": "stream", "state": "ended"}
    problem = {} if error is None else {"error": error.to_wire()}
    if error is None:
        return json(members)
    return web.json_response({**members, "outcome": "broken"} | problem)


async def test_a_break_asks_the_receipt_for_its_reason(tmp_path: Path) -> None:
    # Over HTTP a receipt is a success whose member `error` tells of the transfer.
    router = Breaking(receipt(DatasetChanged("the dataset changed")))
    async with played(router) as url:
        assert await refused(url, tmp_path, DatasetChanged) == "the dataset changed"
    assert router.asked == ["/transfers/r1?wait=2"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda: receipt(None), id="no error"),
        pytest.param(lambda: receipt(TransferGone("the client left")), id="it saw us leave"),
        pytest.param(lambda: web.Response(text="<html>"), id="no receipt"),
        pytest.param(lambda: json(error_answer(ProtocolError("x")), 404), id="an error"),
        pytest.param(lambda: None, id="the router is gone"),
    ],
)
async def test_a_break_without_a_known_reason_is_told_as_it_is(tmp_path: Path, answer) -> None:  # type: ignore[no-untyped-def]
    router = Breaking(answer())
    async with played(router) as url:
        await refused(url, tmp_path, BrokenOff)
    assert set(router.asked) == {"/transfers/r1?wait=2"}  # HTTP may ask a second time


async def test_without_a_request_id_there_is_nothing_to_ask(tmp_path: Path) -> None:
    answer = raw_answer(b"", announced=9, size=9).replace(f"{H_REQUEST_ID}: r1".encode(), b"X: y")
    async with played_raw(answer) as url:
        await refused(url, tmp_path, BrokenOff)


async def test_a_silent_stream_is_stalled(tmp_path: Path) -> None:
    over = asyncio.Event()

    async def router(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse(headers=stream_headers(len(DATA)))
        await answer.prepare(request)
        await answer.write(WHOLE[:100])
        await over.wait()
        return answer

    async with played(router) as url:
        with pytest.raises(Stalled, match=r"0\.2 s") as caught:
            await fetched(url, tmp_path / "d", idle_seconds=0.2)
        over.set()
    assert caught.value.request_id == "r1"  # so that the logs tell more
    assert not (tmp_path / "d").exists()


async def test_blocks_and_read_give_verified_bytes() -> None:
    async def router(request: web.BaseRequest) -> web.Response:
        return streamed(DATA)

    async with played(router) as url, client(url) as ts:
        blocks = [block async for block in ts.blocks(MAC, "d", mode=Mode.STREAM)]
    assert [len(one) for one in blocks] == [BLOCK_BYTES, BLOCK_BYTES, 77]
    assert b"".join(blocks) == DATA
