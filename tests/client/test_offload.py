"""Mode offload with a played store: nothing that the store does reaches the target unproven."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from played_router import MAC, MODIFIED_NS, Handler, content, digests_of, json, played
from tunnelsync import frames
from tunnelsync.client import TunnelSync
from tunnelsync.errors import (
    ProtocolError,
    Stalled,
    StoreUnavailable,
    StoreUntrusted,
    TunnelSyncError,
    VerificationFailed,
)
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode
from tunnelsync.settings import ClientSettings, Secret

SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES]
DATA = content(2 * BLOCK_BYTES + 9)


class Store:
    """A store that has one object and its digests, and remembers what it was asked."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.digests = b"".join(digests_of(data))
        self.asked: list[web.BaseRequest] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request)
        body = self.digests if request.path == "/blocks" else self.data
        if (part := request.headers.get("Range")) is None:
            return web.Response(body=body)
        first, last = map(int, part.removeprefix("bytes=").split("-"))
        return web.Response(status=206, body=body[first : last + 1])


def told(store: str, data: bytes) -> dict[str, Any]:
    return {
        "status": "success",
        "download_url": f"{store}/data?X-Amz-Signature=geheim",
        "blocks_url": f"{store}/blocks?X-Amz-Signature=geheim",
        "dataset": "d",
        "size": len(data),
        "etag": "v1",
        "modified_ns": MODIFIED_NS,
        "root": frames.root(digests_of(data)),
        "count": frames.block_count(len(data)),
        "expires_seconds": 60,
        "store_origins": [store],
    }


async def fetched(
    store: Handler,
    target: Path,
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    data: bytes = DATA,
    **settings: Any,
) -> Mode:
    async with played(store) as store_url:

        async def router(request: web.BaseRequest) -> web.Response:
            assert request.path == "/datasets/request-offload"
            return json(change(told(store_url, data)))

        async with played(router) as url:
            chosen = ClientSettings(
                router=url, token=Secret("canary"), **{"retry_for_seconds": 0.0, **settings}
            )
            async with TunnelSync(settings=chosen) as ts:
                return (await ts.fetch(MAC, "d", target, mode=Mode.OFFLOAD)).mode_used


async def refused(
    store: Handler,
    folder: Path,
    error: type[TunnelSyncError],
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    **settings: Any,
) -> None:
    with pytest.raises(error) as caught:
        await fetched(store, folder / "d", change, **settings)
    assert type(caught.value) is error
    assert "geheim" not in caught.value.message + caught.value.hint
    assert not (folder / "d").exists()


@pytest.mark.parametrize("size", SIZES)
async def test_every_size_arrives_whole_and_the_store_never_sees_our_token(
    tmp_path: Path, size: int
) -> None:
    data = content(size)
    store = Store(data)
    assert await fetched(store, tmp_path / "d", data=data) is Mode.OFFLOAD
    assert (tmp_path / "d").read_bytes() == data
    assert [one.path for one in store.asked] == ["/blocks", "/data"][: 2 if size else 1]
    assert not any("Authorization" in one.headers for one in store.asked)


@pytest.mark.parametrize("member", ["download_url", "blocks_url"])
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.2:9/data",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/data",
    ],
)
async def test_another_place_is_refused_before_a_byte(
    tmp_path: Path, member: str, url: str
) -> None:
    store = Store(DATA)

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        origins = [*answer["store_origins"]]
        if "169.254" in url or "fe80" in url:
            origins.append(url.rsplit("/", 1)[0])
        return answer | {member: url, "store_origins": origins}

    await refused(store, tmp_path, StoreUntrusted, change)
    assert store.asked == []


async def test_a_pinned_store_is_the_only_one(tmp_path: Path) -> None:
    store = Store(DATA)
    await refused(store, tmp_path, StoreUntrusted, store_origin="https://store.example.org")
    assert store.asked == []


@pytest.mark.parametrize("where", ["/blocks", "/data"])
async def test_a_redirect_is_not_followed(tmp_path: Path, where: str) -> None:
    store = Store(DATA)

    async def redirecting(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == where:
            return web.Response(status=302, headers={"Location": "/else"})
        return await store(request)

    await refused(redirecting, tmp_path, StoreUntrusted)
    assert all(one.path == "/blocks" for one in store.asked)


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x"], ids=["short", "longer"])
async def test_an_object_of_another_size_is_found_before_its_first_byte(
    tmp_path: Path, data: bytes
) -> None:
    store = Store(DATA)
    store.data = data
    await refused(store, tmp_path, StoreUnavailable)


@pytest.mark.parametrize("data", [b"X" + DATA[1:], DATA[:-1] + b"\0"], ids=["first", "last"])
async def test_an_object_that_was_altered_is_found(tmp_path: Path, data: bytes) -> None:
    store = Store(DATA)
    store.data = data
    await refused(store, tmp_path, VerificationFailed)


@pytest.mark.parametrize("digests", [b"", b"\0" * 32 * 3, b"\0" * 32 * 4])
async def test_digests_that_were_altered_are_found(tmp_path: Path, digests: bytes) -> None:
    store = Store(DATA)
    store.digests = digests
    await refused(store, tmp_path, VerificationFailed)
    assert {one.path for one in store.asked} == {"/blocks"}


async def test_digests_of_an_odd_length_are_none(tmp_path: Path) -> None:
    store = Store(DATA)
    store.digests = b"\0" * 33
    await refused(store, tmp_path, ProtocolError)


@pytest.mark.parametrize("where", ["/blocks", "/data"])
@pytest.mark.parametrize("status", [403, 404, 500, 503])
async def test_an_absent_object_or_an_expired_address_says_so(
    tmp_path: Path, where: str, status: int
) -> None:
    store = Store(DATA)

    async def lacking(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status) if request.path == where else await store(request)

    await refused(lacking, tmp_path, StoreUnavailable)


@pytest.mark.parametrize(
    "members", [{"count": 2}, {"size": -1}, {"size": 2**62, "count": 2**40}, {"root": 7}]
)
async def test_an_answer_that_cannot_be_is_a_protocol_error(
    tmp_path: Path, members: dict[str, Any]
) -> None:
    await refused(Store(DATA), tmp_path, ProtocolError, lambda answer: answer | members)


async def _silent(request: web.BaseRequest, after: bytes, length: int) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": str(length)})
    await answer.prepare(request)
    if after:
        await answer.write(after)
    await asyncio.Event().wait()
    return answer


@pytest.mark.parametrize(("begun", "error"), [(b"", StoreUnavailable), (b"x", Stalled)])
async def test_a_store_that_falls_silent_is_unavailable_and_once_begun_stalled(
    tmp_path: Path, begun: bytes, error: type[TunnelSyncError]
) -> None:
    store = Store(DATA)

    async def silent(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/blocks":
            return await store(request)
        return await _silent(request, begun, len(DATA))

    await refused(silent, tmp_path, error, idle_seconds=0.3)


@pytest.mark.parametrize("where", ["/blocks", "/data"])
async def test_a_store_that_never_answers_is_not_waited_for(tmp_path: Path, where: str) -> None:
    store = Store(DATA)

    async def mute(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == where:
            await asyncio.Event().wait()
        return await store(request)

    async with asyncio.timeout(10):
        await refused(mute, tmp_path, StoreUnavailable, idle_seconds=0.3)


async def test_a_store_that_is_down_is_unavailable(tmp_path: Path) -> None:
    def elsewhere(answer: dict[str, Any]) -> dict[str, Any]:
        down = "http://127.0.0.1:1"
        return (
            answer
            | {"store_origins": [down], "blocks_url": f"{down}/blocks?s=geheim"}
            | {"download_url": f"{down}/data?s=geheim"}
        )

    await refused(Store(DATA), tmp_path, StoreUnavailable, elsewhere)
