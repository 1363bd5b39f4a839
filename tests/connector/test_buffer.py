"""Mode buffer: one JSON, as text where that is shorter, within a cap and a budget."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from played_connector_router import PlayedRouter, connected, refusal, served, settings_for
from played_router import content, digests_of
from tunnelsync import frames, protocol
from tunnelsync.connector.outgoing import PIECE_BYTES
from tunnelsync.errors import TooLarge, WrongOffset
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Conditions, GetDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
async def router() -> AsyncIterator[PlayedRouter]:
    async with served(PlayedRouter()) as played:
        yield played


async def ask(
    router: PlayedRouter,
    folder: Path,
    name: str,
    conditions: Conditions | None = None,
    **limits: int,
) -> dict[str, Any]:
    async with connected(settings_for(router, folder, **limits)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(GetDataset("r1", name, conditions or Conditions())))
        return await router.result("r1")


def plain(answer: dict[str, Any]) -> bytes:
    text: str = answer["data"]
    return text.encode() if answer["encoding"] == "utf-8" else base64.b64decode(text, validate=True)


EURO = "€".encode()
DATA = {
    "empty": (b"", "utf-8"),
    "text": (b'plain "text" with \\ and\nlines\n', "utf-8"),
    "wide": ("äöü 🙂 \u2028".encode() * 1000, "utf-8"),
    "a character over the edge of a block": (b"x" * (BLOCK_BYTES - 1) + EURO + b"end", "utf-8"),
    "a character cut at the end": (b"abc" + EURO[:2], "base64"),
    "binary": (b"\xff\xfe\x00", "base64"),
    "control characters": (b"\x01" * 1000, "base64"),
    "one byte": (b"\x80", "base64"),
    "block": (content(BLOCK_BYTES), "base64"),
    "blocks": (content(2 * BLOCK_BYTES + 1), "base64"),
    "late": (b"x" * (BLOCK_BYTES + 5) + b"\xff", "base64"),
}


@pytest.mark.parametrize("which", DATA)
async def test_B9_any_data_comes_whole(router: PlayedRouter, folder: Path, which: str) -> None:
    data, encoding = DATA[which]
    (folder / 'a "data":"" b').write_bytes(data)
    found = (folder / 'a "data":"" b').stat()
    answer = await ask(router, folder, 'a "data":"" b')
    assert (answer["status"], answer["dataset"]) == ("success", 'a "data":"" b')
    assert (answer["encoding"], answer["size"]) == (encoding, len(data))
    assert plain(answer) == data
    assert answer["blocks"] == [one.hex() for one in digests_of(data)]
    assert answer["root"] == frames.root(digests_of(data))
    assert answer["modified_ns"] == found.st_mtime_ns


async def test_P5_over_the_cap_is_refused_before_a_byte_is_read(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(bytes(1001))

    def unread(fd: int, length: int, at: int) -> bytes:
        raise AssertionError("it was read")

    monkeypatch.setattr(os, "pread", unread)
    answer = await ask(router, folder, "a", dataset_buffer_bytes=1000)
    assert answer["error"]["code"] == "too_large"
    assert "stream and offload" in answer["error"]["message"]


async def test_if_match_is_honoured(router: PlayedRouter, folder: Path) -> None:
    (folder / "a").write_bytes(b"x")
    answer = await ask(router, folder, "a", Conditions(if_match='"other"'))
    assert answer["error"]["code"] == "precondition_failed"


async def test_P5_the_sum_of_all_buffers_has_a_budget(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(b"x" * 100_000)
    go_on, came, whole = asyncio.Event(), asyncio.Event(), router.on_result

    async def held(request: web.Request) -> web.Response:
        if request.query["request_id"] == "r1":
            came.set()
            await go_on.wait()
        return await whole(request)

    monkeypatch.setattr(router, "on_result", held)
    async with (
        served(router),
        connected(settings_for(router, folder, buffers_bytes=300_000)),
    ):
        ws = await router.socket()
        await ws.send_str(protocol.encode(GetDataset("r1", "a")))
        await came.wait()
        await ws.send_str(protocol.encode(GetDataset("r2", "a")))
        assert (await router.result("r2"))["error"]["code"] == "connector_busy"
        go_on.set()
        assert (await router.result("r1"))["status"] == "success"
        await ws.send_str(protocol.encode(GetDataset("r3", "absent")))
        await router.result("r3")
        await ws.send_str(protocol.encode(GetDataset("r4", "a")))
        assert (await router.result("r4"))["status"] == "success"


async def test_B2_a_change_while_it_is_read_is_an_error(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "a"
    path.write_bytes(b"0123456789")
    pread = os.pread

    def meddled(fd: int, length: int, at: int) -> bytes:
        data = pread(fd, length, at)
        path.write_bytes(b"9876543210")
        return data

    monkeypatch.setattr(os, "pread", meddled)
    assert (await ask(router, folder, "a"))["error"]["code"] == "dataset_changed"


async def test_a_proxy_that_refuses_the_body_becomes_an_error_that_says_so(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(b"x" * 3000)
    whole = router.on_result

    async def nginx(request: web.Request) -> web.Response:
        assert request.content_length is not None
        return web.Response(status=413) if request.content_length > 2000 else await whole(request)

    monkeypatch.setattr(router, "on_result", nginx)
    async with served(router):
        answer = await ask(router, folder, "a")
    assert answer["error"]["code"] == "too_large"


async def test_a_body_that_the_router_itself_refuses_is_not_sent_in_parts(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No proxy is to blame, so none is remembered, and smaller parts change nothing."""
    (folder / "a").write_bytes(b"x" * 3_000_000)
    whole, sizes = router.on_result, list[int]()

    async def full(request: web.Request) -> web.Response:
        sizes.append(request.content_length or 0)
        return refusal(TooLarge("too long")) if sizes[-1] > 10_000 else await whole(request)

    monkeypatch.setattr(router, "on_result", full)
    async with served(router):
        answer = await ask(router, folder, "a")
    assert answer["error"]["code"] == "too_large"
    assert len(sizes) == 2


async def test_b12_parts_go_on_where_the_router_stands(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy takes a mebibyte; the answer to one part is lost, and one part does not arrive."""
    data = content(3 * 1024 * 1024)
    (folder / "a").write_bytes(data)
    came, faults = bytearray(), ["", "answer lost", "", "part lost"]

    async def behind_nginx(request: web.Request) -> web.Response:
        assert request.content_length is not None
        if request.content_length > 1024 * 1024:
            return web.Response(status=413)
        body = await request.read()
        fault = faults.pop(0) if faults else ""
        if int(request.query["offset"]) != len(came):
            wrong = protocol.error_answer(WrongOffset("another")) | {"offset": len(came)}
            return web.json_response(wrong, status=409)
        if fault != "part lost":
            came.extend(body)
        if fault:
            assert request.transport is not None
            request.transport.abort()
        elif len(came) == int(request.query["length"]):
            async with router.result_came:
                router.results["r1"].append(orjson.loads(came))
                router.result_came.notify_all()
        return web.json_response({"offset": len(came)})

    monkeypatch.setattr(router, "on_result", behind_nginx)
    async with served(router):
        answer = await ask(router, folder, "a")
    assert plain(answer) == data
    assert not faults


async def test_parts_that_a_router_never_takes_are_given_up(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(content(1024 * 1024))
    (folder / "b").write_bytes(b"next")
    whole, parts = router.on_result, 0

    async def behind_nginx(request: web.Request) -> web.Response:
        nonlocal parts
        assert request.content_length is not None
        if request.content_length > 1024 * 1024:
            return web.Response(status=413)
        if "offset" not in request.query:
            return await whole(request)
        parts += 1
        await request.read()
        wrong = protocol.error_answer(WrongOffset("another")) | {"offset": 0}
        return web.json_response(wrong, status=409)

    monkeypatch.setattr(router, "on_result", behind_nginx)
    async with (
        served(router),
        connected(settings_for(router, folder, places=1, resume_attempts=2)),
        asyncio.timeout(10),
    ):
        ws = await router.socket()
        await ws.send_str(protocol.encode(GetDataset("r1", "a")))
        await ws.send_str(protocol.encode(GetDataset("r2", "b")))
        assert plain(await router.result("r2")) == b"next"
    assert parts == 3


async def test_a_large_result_on_a_line_that_stalls_is_not_sent_again(
    router: PlayedRouter,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (folder / "a").write_bytes(content(2 * PIECE_BYTES))
    came, over = 0, asyncio.Event()

    async def stalled(request: web.Request) -> web.Response:
        nonlocal came
        came += 1
        await over.wait()
        return web.Response()

    monkeypatch.setattr(router, "on_result", stalled)
    async with served(router), connected(settings_for(router, folder, stall_seconds=0.3)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(GetDataset("r1", "a")))
        async with asyncio.timeout(20):
            while "datasets/result gave up" not in caplog.text:
                await asyncio.sleep(0.01)
        over.set()
    assert came == 1
