"""Sockets of transports, past asyncio."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tunnelsync import sockets
from tunnelsync.dial import http_session
from tunnelsync.router.app import listening
from tunnelsync.settings import RouterSettings

SYSTEM = Path("/proc/sys/net/ipv4")


async def test_a_connection_that_was_closed_with_something_to_send_can_be_aborted_later() -> None:
    ours, theirs = socket.socketpair()
    lost = asyncio.Event()

    class Sender(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(Sender, ours)
    while not transport.get_write_buffer_size():
        transport.write(bytes(65536))
    transport.close()
    theirs.setblocking(False)
    async with asyncio.timeout(10):
        while await loop.sock_recv(theirs, 1 << 20):
            pass
        await lost.wait()
    sockets.abort(transport)
    sockets.abort(None)
    theirs.close()


async def test_a_connection_that_is_there_is_broken_off() -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    assert sockets.is_plain(transport)
    sockets.abort(transport)
    theirs.setblocking(False)
    async with asyncio.timeout(10):
        assert await loop.sock_recv(theirs, 1) == b""
    assert not sockets.is_plain(transport)
    theirs.close()


def setting(name: str) -> list[str]:
    file = SYSTEM / name
    return file.read_text().split() if file.exists() else []


def control_of(one: socket.socket) -> str:
    found = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return found.rstrip(b"\0").decode()


@pytest.mark.parametrize(
    ("here", "there", "before", "after"),
    [
        ("127.0.0.1", "127.0.0.1", "bbr", "reno"),
        ("127.0.0.1", "127.0.0.1", "cubic", "cubic"),
        ("127.0.0.1", "127.0.0.2", "bbr", "bbr"),
    ],
)
async def test_only_what_stays_on_this_machine_is_not_paced(
    here: str, there: str, before: str, after: str
) -> None:
    if before not in setting("tcp_available_congestion_control"):
        pytest.skip(f"this system has no congestion control {before}")
    with socket.create_server((there, 0)) as server:
        own = socket.create_connection(server.getsockname(), source_address=(here, 0))
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, before.encode())
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, own)
        with sockets.dup_of(transport) as dup:
            assert control_of(dup) == control_of(own) == after
        transport.close()


paced = pytest.mark.skipif(
    setting("tcp_congestion_control") != ["bbr"], reason="this system does not pace connections"
)


@paced
async def test_a_connection_that_we_make_to_this_machine_is_never_paced() -> None:
    done = asyncio.Event()

    async def held(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await done.wait()
        return response

    app = web.Application()
    app.router.add_get("/", held)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = "http://{}:{}/".format(*runner.addresses[0])
    limits = {"connections": 1, "connect_seconds": 10, "dead_after_seconds": 30}
    async with http_session(**limits, read_bytes=65536) as session, session.get(url) as response:
        assert response.connection is not None
        transport = response.connection.transport
        assert transport is not None
        assert control_of(transport.get_extra_info("socket")) == "reno"
        done.set()
    await runner.cleanup()


@paced
@pytest.mark.parametrize(("host", "control"), [("127.0.0.1", "reno"), ("0.0.0.0", "bbr")])
async def test_a_router_paces_what_may_leave_this_machine(
    host: str, control: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[asyncio.Server] = []
    loop = asyncio.get_running_loop()
    create = loop.create_server

    async def kept(*args: Any, **options: Any) -> asyncio.Server:
        made.append(await create(*args, **options))
        return made[0]

    monkeypatch.setattr(loop, "create_server", kept)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    async with listening(runner, RouterSettings(host=host, port=0)):
        where = made[0].sockets[0]
        with socket.socket(fileno=os.dup(where.fileno())) as listener:
            assert control_of(listener) == control
    await runner.cleanup()
