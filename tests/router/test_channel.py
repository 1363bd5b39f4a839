"""The link over a connector's socket: what it says, in which order, and what it costs when idle."""

import asyncio
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import ClientSession, web

from tunnelsync.errors import RouterBusy
from tunnelsync.protocol import Cancel
from tunnelsync.router.channel import SPARE_MESSAGES, UNREAD_BYTES, SocketLink
from tunnelsync.settings import RouterSettings

SETTINGS = RouterSettings(command_queue=3)


class Held:
    """A real socket of a real server, held open while a test uses its link."""

    def __init__(self) -> None:
        self.link: SocketLink
        self.opened = asyncio.Event()
        self.done = asyncio.Event()

    async def hold(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        self.link = SocketLink(socket, request, SETTINGS)
        self.opened.set()
        await self.done.wait()
        await self.link.ended()
        return socket


@pytest.fixture
async def held() -> AsyncIterator[tuple[SocketLink, "asyncio.Queue[str | bytes]", Held]]:
    """A link, and what its other end hears."""
    here, heard = Held(), asyncio.Queue[str | bytes]()
    app = web.Application()
    app.router.add_get("/", here.hold)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()

    async def hear() -> None:
        async for message in there:
            heard.put_nowait(message.data)
        heard.put_nowait(f"closed with {there.close_code}")

    async with (
        ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/", autoping=False) as there,
    ):
        await here.opened.wait()
        hearing = asyncio.create_task(hear())
        yield here.link, heard, here
        here.done.set()
        await hearing
    await runner.cleanup()


async def test_an_idle_link_has_no_task(
    held: tuple[SocketLink, "asyncio.Queue[str | bytes]", Held],
) -> None:
    link, heard, _ = held
    before = len(asyncio.all_tasks())
    link.send(Cancel("1"))
    assert len(asyncio.all_tasks()) == before + 1
    assert '"1"' in str(await heard.get())
    assert len(asyncio.all_tasks()) == before


async def test_messages_go_in_order_and_the_good_bye_is_the_last(
    held: tuple[SocketLink, "asyncio.Queue[str | bytes]", Held],
) -> None:
    link, heard, here = held
    for number in range(3):
        link.send(Cancel(str(number)))
    link.close(4001, "enough")
    link.send(Cancel("too late"))
    here.done.set()
    for number in range(3):
        assert f'"{number}"' in str(await heard.get())
    assert await heard.get() == "closed with 4001"


@pytest.mark.parametrize("reason", ["x" * 500, "ñ" * 500, "x" + "ñ" * 500])
async def test_a_reason_that_is_too_long_for_a_close_is_cut(
    held: tuple[SocketLink, "asyncio.Queue[str | bytes]", Held], reason: str
) -> None:
    """It may have 123 bytes; one with more would be told as an error of the protocol."""
    link, heard, here = held
    link.close(4004, reason)
    here.done.set()
    assert await heard.get() == "closed with 4004"


async def test_a_queue_that_nobody_empties_is_bounded(
    held: tuple[SocketLink, "asyncio.Queue[str | bytes]", Held],
) -> None:
    link, _, _ = held
    for number in range(SETTINGS.command_queue + SPARE_MESSAGES):
        link.send(Cancel(str(number)))
    with pytest.raises(RouterBusy):
        link.send(Cancel("one more"))


async def test_pings_are_whole_frames_between_messages_and_no_task(
    held: tuple[SocketLink, "asyncio.Queue[str | bytes]", Held],
) -> None:
    link, heard, _ = held
    before = len(asyncio.all_tasks())
    link.ping()
    link.pong(b"hi")
    assert len(asyncio.all_tasks()) == before
    link.send(Cancel("1"))
    assert await heard.get() == b""
    assert await heard.get() == b"hi"
    assert '"1"' in str(await heard.get())


async def test_pongs_for_a_peer_that_does_not_read_are_bounded() -> None:
    here, there = socket.socketpair()
    with there:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=here)
        request = SimpleNamespace(transport=transport, remote=None)
        link = SocketLink(web.WebSocketResponse(), cast(web.Request, request), SETTINGS)
        for _ in range(50_000):
            link.pong(b"x" * 125)
        assert transport.get_write_buffer_size() <= UNREAD_BYTES + 127
        transport.abort()


async def test_who_was_heard_since_the_ping_stays_and_the_silent_one_is_cut_off(
    held: tuple[SocketLink, "asyncio.Queue[str | bytes]", Held],
) -> None:
    link, heard, _ = held
    link.check()
    link.ping()
    link.heard()
    link.check()
    assert not link.silent
    link.ping()
    link.check()
    assert link.silent
    assert str([await heard.get() for _ in range(3)][-1]).startswith("closed with")
