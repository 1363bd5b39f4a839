"""An answer that takes long: 202 is followed to the answer, told about, and let go of."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from played_router import MAC, content, json, played, streamed
from tunnelsync.client import TunnelSync
from tunnelsync.client.link import WAIT_AGAIN_SECONDS, Link
from tunnelsync.errors import DatasetNotFound, RouterUnreachable, TimedOut, TransferUnknown
from tunnelsync.protocol import DatasetRequest, Mode, Receipt, error_answer
from tunnelsync.settings import ClientSettings
from tunnelsync.wire import dumps

DATA = content(5_000_000)
LATER = Receipt("r1", MAC, "d", "stream", "accepted", progress="queued", progress_done=3)
READY = replace(LATER, state="flowing", progress="reading", result="/elsewhere/r1/result")
ENDED = replace(LATER, state="ended", outcome="refused")
Step = Receipt | Callable[[], Awaitable[Any]]


PREFERENCES = ("respond-async, wait=25", "respond-async, wait=5")
"""When nobody is told how it goes, and when somebody is."""


class Played:
    """A router that answers 202, then one receipt after the other, and then the result."""

    def __init__(self, *receipts: Step, result: Callable[[], web.StreamResponse]) -> None:
        self.receipts = list(receipts)
        self.result = result
        self.seen: list[str] = []
        self.polled = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(f"{request.method} {request.path}")
        if request.method == "POST":
            assert request.headers["Prefer"] in PREFERENCES
            return web.Response(status=202, body=dumps(LATER), headers={"Location": "http://x/"})
        if request.method == "DELETE":
            return json({})
        if request.path.endswith("/result"):
            return self.result()
        assert 0 < float(request.query["wait"]) < 60
        self.polled.set()
        step = self.receipts.pop(0) if self.receipts else asyncio.Event().wait
        if not isinstance(step, Receipt):
            answer = await step()
            assert isinstance(answer, web.StreamResponse)
            return answer
        return web.Response(body=dumps(step))


async def test_202_is_followed_to_the_answer() -> None:
    router = Played(LATER, READY, result=lambda: streamed(DATA))
    async with played(router) as url, TunnelSync(url) as ts:
        blocks = [block async for block in ts.blocks(MAC, "d", mode=Mode.STREAM)]
    assert b"".join(blocks) == DATA
    ways = ["POST /datasets/request-stream", "GET /transfers/r1", "GET /transfers/r1"]
    assert router.seen == [*ways, "GET /transfers/r1/result"]


async def test_each_receipt_is_told_of() -> None:
    heard: list[Receipt] = []
    router = Played(LATER, READY, result=lambda: streamed(DATA))
    async with played(router) as url, Link(ClientSettings(router=url)) as link:
        link.waiting = heard.append
        async with link.request("POST", "datasets/request-stream", DatasetRequest(MAC, "d")) as got:
            assert got.status == 200
    assert [(one.progress, one.progress_done) for one in heard] == [("queued", 3)] * 2


async def test_the_error_of_the_transfer_is_raised() -> None:
    missing = json(error_answer(DatasetNotFound("no d")), 404)
    router = Played(ENDED, result=lambda: missing)
    async with played(router) as url, TunnelSync(url) as ts:
        with pytest.raises(DatasetNotFound, match="no d"):
            await ts.read(MAC, "d")
    assert router.seen[-1] == "GET /transfers/r1/result"


async def test_p2_a_client_that_is_cancelled_while_it_asks_ends_the_transfer() -> None:
    router = Played(LATER, result=lambda: streamed(DATA))
    async with played(router) as url, TunnelSync(url) as ts:
        reading = asyncio.create_task(ts.read(MAC, "d"))
        await router.polled.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert router.seen[-1] == "DELETE /transfers/r1"


async def test_all_of_the_wait_is_under_one_deadline() -> None:
    router = Played(*[LATER] * 100, result=lambda: streamed(DATA))
    async with (
        played(router) as url,
        TunnelSync(settings=ClientSettings(router=url, answer_seconds=0.6)) as ts,
    ):
        with pytest.raises(TimedOut, match=r"0\.6 s"):
            await ts.read(MAC, "d")
    assert router.seen[-1] == "DELETE /transfers/r1"


async def test_a_router_that_does_not_wait_is_not_asked_without_a_pause() -> None:
    router = Played(*[LATER] * 3, READY, result=lambda: streamed(DATA))
    began = asyncio.get_running_loop().time()
    async with played(router) as url, TunnelSync(url) as ts:
        assert b"".join([block async for block in ts.blocks(MAC, "d", mode=Mode.STREAM)]) == DATA
    assert asyncio.get_running_loop().time() - began >= 3 * WAIT_AGAIN_SECONDS


async def test_b11_a_router_that_is_gone_meanwhile_is_unreachable() -> None:
    async def restarted() -> web.StreamResponse:
        return json(error_answer(TransferUnknown("no transfer")), 404)

    async def proxy() -> web.StreamResponse:
        return web.Response(status=502, text="<html>nginx</html>")

    for step in (restarted, proxy):
        router = Played(LATER, step, result=lambda: streamed(DATA))
        async with played(router) as url, TunnelSync(url) as ts:
            with pytest.raises(RouterUnreachable):
                await ts.read(MAC, "d")
