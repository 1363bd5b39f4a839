"""Mode buffer over real sockets: one JSON, taken only if it agrees with itself."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from played_router import MAC, MODIFIED_NS, client, content, digests_of, json, played, played_raw
from tunnelsync import frames
from tunnelsync.client import TunnelSync
from tunnelsync.errors import (
    BrokenOff,
    ProtocolError,
    TooLarge,
    TunnelSyncError,
    VerificationFailed,
)
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode, error_answer
from tunnelsync.settings import ClientSettings

SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES]


def answer(data: bytes, *, encoding: str = "base64") -> dict[str, Any]:
    digests = digests_of(data)
    return {
        "status": "success",
        "dataset": "d",
        "size": len(data),
        "etag": "v1",
        "modified_ns": MODIFIED_NS,
        "root": frames.root(digests),
        "blocks": [one.hex() for one in digests],
        "encoding": encoding,
        "data": data.decode() if encoding == "utf-8" else base64.b64encode(data).decode(),
    }


async def refused(value: object, folder: Path, error: type[TunnelSyncError]) -> None:
    async def router(request: web.BaseRequest) -> web.Response:
        return json(value)

    async with played(router) as url, client(url) as ts:
        with pytest.raises(error):
            await ts.fetch(MAC, "d", folder / "d", mode=Mode.BUFFER)
    assert not (folder / "d").exists()


@pytest.mark.parametrize("size", SIZES)
async def test_every_size_arrives_whole(tmp_path: Path, size: int) -> None:
    data, seen = content(size), []

    async def router(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        return json(answer(data))

    async with played(router) as url, client(url) as ts:
        done = await ts.fetch(MAC, "d", tmp_path, mode=Mode.BUFFER)
        assert await ts.read(MAC, "d") == data
    assert (tmp_path / "d").read_bytes() == data
    assert done.mode_used is Mode.BUFFER
    assert set(seen) == {"/datasets/request-sync"}


async def test_text_comes_as_text(tmp_path: Path) -> None:
    data = "año,naïve\r\n\u2028\U0001f600\0".encode()

    async def router(request: web.BaseRequest) -> web.Response:
        return json(answer(data, encoding="utf-8"))

    async with played(router) as url, client(url) as ts:
        assert await ts.read(MAC, "d") == data


DATA = content(BLOCK_BYTES + 5)
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], type[TunnelSyncError]]] = {
    "size": (lambda a: a | {"size": a["size"] + 1}, VerificationFailed),
    "negative size": (lambda a: a | {"size": -1}, VerificationFailed),
    "root": (lambda a: a | {"root": frames.root([])}, VerificationFailed),
    "one digest less": (lambda a: a | {"blocks": a["blocks"][:1]}, VerificationFailed),
    "a digest of another": (
        lambda a: a | {"blocks": ["00" * 32] * 2, "root": frames.root([b"\0" * 32, b"\0" * 32])},
        VerificationFailed,
    ),
    "digests in another order": (lambda a: a | {"blocks": a["blocks"][::-1]}, VerificationFailed),
    "other data": (
        lambda a: a | {"data": base64.b64encode(content(len(DATA) - 1) + b"x").decode()},
        VerificationFailed,
    ),
    "no hex": (lambda a: a | {"blocks": ["zz"]}, ProtocolError),
    "odd hex": (lambda a: a | {"blocks": ["ab"]}, ProtocolError),
    "no base64": (lambda a: a | {"data": "a b"}, ProtocolError),
    "another encoding": (lambda a: a | {"encoding": "rot13"}, ProtocolError),
    "a number as data": (lambda a: a | {"data": 7}, ProtocolError),
    "nothing": (lambda a: {}, ProtocolError),
    "a list": (lambda a: [a], ProtocolError),
    "an error after all": (lambda a: error_answer(TooLarge("too large")), TooLarge),
}


@pytest.mark.parametrize(("spoil", "error"), WRONG.values(), ids=WRONG.keys())
async def test_an_answer_that_contradicts_itself_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], error: type[TunnelSyncError]
) -> None:
    await refused(spoil(answer(DATA)), tmp_path, error)


async def test_an_answer_cut_short_is_broken_off(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n"
    async with played_raw(head + b'{"status": "success"') as url, client(url) as ts:
        with pytest.raises(BrokenOff):
            await ts.fetch(MAC, "d", tmp_path / "d", mode=Mode.BUFFER)
    assert not (tmp_path / "d").exists()


async def test_an_answer_over_the_limit_is_not_kept() -> None:
    async def router(request: web.BaseRequest) -> web.Response:
        return json(answer(DATA))

    async with played(router) as url:
        settings = ClientSettings(router=url, json_bytes=1000)
        async with TunnelSync(settings=settings) as ts:
            with pytest.raises(ProtocolError, match="1000"):
                await ts.read(MAC, "d")
