"""Mode offload in segments, with a played router and store: no lie of either reaches the target."""

import asyncio
import base64
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from yarl import URL

from played_router import MAC, MODIFIED_NS, content, digests_of, json, played
from tunnelsync import frames, protocol
from tunnelsync.client import TunnelSync, offload
from tunnelsync.client.journal import Version
from tunnelsync.client.link import Link
from tunnelsync.client.offload import Known, _Run
from tunnelsync.client.pieces import FAR_SECONDS, Offer, Piece
from tunnelsync.errors import (
    ConnectorUnknown,
    DatasetChanged,
    ProtocolError,
    StoreUnavailable,
    StoreUntrusted,
    TunnelSyncError,
    VerificationFailed,
)
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.identity import mac_address
from tunnelsync.protocol import Mode
from tunnelsync.settings import ClientSettings

DATA = content(6 * BLOCK_BYTES + 9)
STEP = 2 * BLOCK_BYTES
Change = Callable[[dict[str, Any]], dict[str, Any]]


class Line:
    """A store of segments, and a router that tells of one in each answer."""

    def __init__(self, change: Change = dict, data: Callable[[int, bytes], bytes] | None = None):
        self.change = change
        self.data = data or (lambda _, data: data)
        self.url = ""
        self.asked: list[int] = []
        self.got: list[int] = []
        self.ranges: list[str] = []
        self.connections: set[object] = set()
        self.far_seconds = 0.0
        self.refuse: dict[int, int] = {}
        self.held: dict[int, asyncio.Event] = {}
        self.had: dict[int, asyncio.Event] = {}
        self.given: dict[int, asyncio.Event] = {}
        self.rest: dict[int, asyncio.Event] = {}

    async def store(self, request: web.BaseRequest) -> web.StreamResponse:
        at = int(request.path[1:])
        self.got.append(at)
        self.connections.add(request.transport)
        await asyncio.sleep(self.far_seconds)
        if at in self.had:
            self.had[at].set()
        if self.refuse.get(at, 0) > 0:
            self.refuse[at] -= 1
            return web.Response(status=403)
        if at in self.given:
            self.given[at].set()
        body = self.data(at, DATA[at : at + STEP])
        if at in self.rest:
            return await self._slowly(request, body, self.rest[at])
        if (part := request.headers.get("Range")) is None:
            return web.Response(body=body)
        self.ranges.append(part)
        first, last = map(int, part.removeprefix("bytes=").split("-"))
        return web.Response(status=206, body=body[first : last + 1])

    async def _slowly(
        self, request: web.BaseRequest, body: bytes, rest: asyncio.Event
    ) -> web.StreamResponse:
        """Send a block, and the rest when the test says."""
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[:BLOCK_BYTES])
        await rest.wait()
        await response.write(body[BLOCK_BYTES:])
        return response

    async def router(self, request: web.BaseRequest) -> web.StreamResponse:
        said = orjson.loads(await request.read())
        at = said["segments_from"] // STEP * STEP
        assert said.get("if_match") == ("v1" if self.asked else None)
        self.asked.append(said["segments_from"])
        if at in self.held:
            await self.held[at].wait()
        part = DATA[at : at + STEP]
        segment = {
            "offset": at,
            "length": len(part),
            "download_url": f"{self.url}/{at}?X-Amz-Signature=geheim",
            "blocks": base64.b64encode(b"".join(digests_of(part))).decode(),
        }
        answer = {
            "segments": [segment],
            "dataset": "d",
            "size": len(DATA),
            "etag": "v1",
            "modified_ns": MODIFIED_NS,
            "expires_seconds": 60,
            "store_origins": [self.url],
        }
        if at + STEP >= len(DATA):
            answer["root"] = frames.root(digests_of(DATA))
        return json(self.change(answer))

    async def fetch(self, target: Path, **settings: Any) -> Any:
        async with played(self.store) as self.url, played(self.router) as router:
            chosen = ClientSettings(router=router, **{"retry_for_seconds": 0.0, **settings})
            async with TunnelSync(settings=chosen) as ts:
                return await ts.fetch(MAC, "d", target, mode=Mode.OFFLOAD)


async def test_each_segment_is_asked_for_and_got_once(tmp_path: Path) -> None:
    line = Line()
    fetched = await line.fetch(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == DATA
    assert line.asked == line.got == [0, STEP, 2 * STEP, 3 * STEP]
    assert (fetched.repaired_blocks, fetched.retries) == (0, 0)


async def test_what_is_known_is_got_while_the_next_is_not_there_yet(tmp_path: Path) -> None:
    line, event = Line(), asyncio.Event()
    line.had[STEP] = line.held[2 * STEP] = event
    async with asyncio.timeout(20):
        await line.fetch(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == DATA


async def test_the_next_segment_is_begun_while_one_comes(tmp_path: Path) -> None:
    line, event = Line(), asyncio.Event()
    line.rest[0] = line.had[STEP] = event
    async with asyncio.timeout(20):
        await line.fetch(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == DATA
    assert line.got == [0, STEP, 2 * STEP, 3 * STEP]


async def test_segments_share_connections_to_a_store_that_is_far(tmp_path: Path) -> None:
    line = Line()
    line.far_seconds = 2 * FAR_SECONDS
    await line.fetch(tmp_path / "d")
    assert len(line.got) == 4
    assert len(line.connections) <= 2  # of the one that comes, and of the next


async def test_a_next_segment_that_fails_is_told_when_it_is_its_turn(tmp_path: Path) -> None:
    line, event = Line(), asyncio.Event()
    line.rest[0] = line.had[STEP] = event
    line.refuse = {STEP: 9}
    with pytest.raises(StoreUnavailable):
        await line.fetch(tmp_path / "d")
    assert line.got == [0, STEP, STEP, STEP]
    assert (tmp_path / "d.tunnelsync.part").stat().st_size == STEP


async def test_several_streams_bring_parts_of_segments(tmp_path: Path) -> None:
    line = Line()
    await line.fetch(tmp_path / "d", parallel=5, parallel_least_bytes=BLOCK_BYTES)
    assert (tmp_path / "d").read_bytes() == DATA
    assert len(line.asked) <= 8
    assert line.ranges


async def test_an_address_that_has_expired_is_asked_for_again(tmp_path: Path) -> None:
    line = Line()
    line.refuse = {2 * STEP: 1}
    await line.fetch(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == DATA
    assert line.asked.count(2 * STEP) == 2


async def test_an_address_is_asked_for_again_before_it_expires() -> None:
    line, clock = Line(lambda answer: answer | {"expires_seconds": 100}), asyncio.get_running_loop()
    line.url = "http://127.0.0.1:9"
    async with played(line.router) as url, Link(ClientSettings(router=url)) as link:
        began = clock.time()
        got = await Known(link, mac_address(MAC), "d").ask(0, None)
        assert began + 50 < got.renew_at < clock.time() + 100


async def test_a_connector_that_is_not_back_yet_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else asks while a long segment comes, and an upload that nobody asks for ends."""
    monkeypatch.setattr(offload, "ASK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(offload, "AHEAD_BLOCKS", 0)
    line = Line()
    questions, line.rest[0], answer = 0, asyncio.Event(), line.router

    async def router(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal questions
        questions += 1
        if questions == 2:
            return json(protocol.error_answer(ConnectorUnknown("none")), status=404)
        if questions == 3:
            line.rest[0].set()
        return await answer(request)

    monkeypatch.setattr(line, "router", router)
    async with asyncio.timeout(20):
        await line.fetch(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == DATA


async def test_a_segment_that_is_up_does_not_wait_for_one_that_is_not(tmp_path: Path) -> None:
    line, event = Line(), asyncio.Event()
    line.refuse = {STEP: 1}
    line.held[2 * STEP] = line.given[STEP] = event
    async with asyncio.timeout(20):
        await line.fetch(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == DATA
    assert line.asked.count(STEP) == 2


def piece(offset: int, length: int, at: str = "a") -> Piece:
    """A piece that holds for long."""
    return Piece(offset, length, URL(f"http://s/{at}"), b"", math.inf)


def offer(*pieces: Piece) -> Offer:
    """An answer of one version."""
    return Offer("r", Version(800, "v1", 0), pieces, None)


async def test_pieces_are_found_at_once_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, looked, holds = Known(None, None, "d"), 0, Piece.holds  # type: ignore[arg-type]

    def counted(one: Piece, at: int) -> bool:
        nonlocal looked
        looked += 1
        return holds(one, at)

    monkeypatch.setattr(Piece, "holds", counted)
    known.take(offer(*(piece(at, 1) for at in range(800))))
    assert all(known.find(at, "v1") for at in range(800))
    assert looked == 800


class Whole(Known):
    """All pieces of a dataset are known, and whether it ends well is told when the test says."""

    asked: list[int]
    told: asyncio.Event

    async def ask(self, at: int, etag: str | None) -> Piece:
        self.asked.append(at)
        await self.told.wait()
        assert self.offer is not None
        self.offer = replace(self.offer, root="root")
        raise ProtocolError("no piece begins at the end")


async def test_of_several_streams_one_asks_for_the_end() -> None:
    known = Whole(None, None, "d")  # type: ignore[arg-type]
    known.asked, known.told = [], asyncio.Event()
    known.take(offer(piece(0, 800)))
    streams = [_Run(known, None, "v1", 800) for _ in range(4)]  # type: ignore[arg-type]
    learning = [asyncio.create_task(one._learn(0, 800)) for one in streams]
    while not known.asked:
        await asyncio.sleep(0)
    learning[0].cancel()  # its stream has come to its end, and the next one asks in its place
    while len(known.asked) < 2:
        await asyncio.sleep(0)
    known.told.set()
    await asyncio.gather(*learning, return_exceptions=True)
    assert known.asked == [800, 800]


async def test_what_was_told_last_is_what_is_known() -> None:
    known = Known(None, None, "d")  # type: ignore[arg-type]
    known.take(offer(*(piece(at, 100) for at in range(0, 800, 100))))
    whole = piece(0, 800, "whole")
    known.take(offer(whole))
    assert known.find(0, "v1") is known.find(100, "v1") is known.find(799, "v1") is whole
    known.forget(whole)
    assert known.find(100, "v1") is None


async def test_an_address_that_is_about_to_expire_is_not_begun_with() -> None:
    known = Known(None, None, "d")  # type: ignore[arg-type]
    known.take(offer(replace(piece(0, 800), renew_at=asyncio.get_running_loop().time())))
    assert known.find(0, "v1") is None


async def test_of_another_version_no_piece_is_taken_for_one_of_this() -> None:
    known = Known(None, None, "d")  # type: ignore[arg-type]
    known.take(offer(piece(0, 400), piece(400, 400)))
    known.take(replace(offer(piece(0, 400)), version=Version(800, "v2", 0)))
    assert known.find(0, "v2") is not None
    assert known.find(400, "v2") is None


def later(**members: Any) -> Change:
    """Change the members of every answer but the first."""
    return lambda answer: answer if answer["segments"][0]["offset"] == 0 else answer | members


def segment(**members: Any) -> Change:
    """Change the segment of every answer but the first."""

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        (one,) = answer["segments"]
        return answer | {"segments": [one | members]} if one["offset"] else answer

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (segment(download_url="http://127.0.0.2:9/x?geheim"), StoreUntrusted),
        (segment(download_url="http://169.254.169.254/x?geheim"), StoreUntrusted),
        (segment(offset=BLOCK_BYTES), ProtocolError),
        (segment(offset=100 * STEP), ProtocolError),
        (segment(offset=0), ProtocolError),
        (segment(length=STEP + BLOCK_BYTES), ProtocolError),
        (segment(blocks=""), ProtocolError),
        (segment(blocks=base64.b64encode(bytes(64)).decode()), VerificationFailed),
        (later(segments=[]), ProtocolError),
        (later(segments=[{}]), ProtocolError),
        (later(etag="v2"), DatasetChanged),
        (later(root=frames.root([])), DatasetChanged),
        (later(size=-1), ProtocolError),
        (later(size=2**62), ProtocolError),
    ],
)
async def test_an_answer_that_is_not_right_is_refused(
    tmp_path: Path, change: Change, error: type[TunnelSyncError]
) -> None:
    line = Line(change)
    with pytest.raises(error) as caught:
        await line.fetch(tmp_path / "d")
    assert type(caught.value) is error
    assert "geheim" not in caught.value.message + caught.value.hint
    assert not (tmp_path / "d").exists()


async def test_a_size_beyond_all_measure_is_refused_before_the_store_is_asked(
    tmp_path: Path,
) -> None:
    line = Line(lambda answer: answer | {"size": 2**62})
    with pytest.raises(ProtocolError, match="digests_bytes"):
        await line.fetch(tmp_path / "d")
    assert (line.asked, line.got) == ([0], [])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda data: data[:-1], StoreUnavailable),
        (lambda data: data + b"x", StoreUnavailable),
        (lambda data: b"X" + data[1:], VerificationFailed),
        (lambda _: b"", StoreUnavailable),
    ],
    ids=["short", "long", "altered", "empty"],
)
async def test_a_segment_that_is_not_right_is_found(
    tmp_path: Path, wrong: Callable[[bytes], bytes], error: type[TunnelSyncError]
) -> None:
    line = Line(data=lambda at, data: wrong(data) if at == STEP else data)
    with pytest.raises(error) as caught:
        await line.fetch(tmp_path / "d", repairs=1)
    assert type(caught.value) is error
    assert not (tmp_path / "d").exists()
