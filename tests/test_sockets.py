"""Sockets of transports, past asyncio."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

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


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what the system does by default for a control that paces, whichever it is."""
    control = "".join(setting("tcp_congestion_control"))
    if "reno" not in setting("tcp_allowed_congestion_control") or control == "reno":
        pytest.skip(f"reno cannot be told from what this system does: {control!r}")
    monkeypatch.setattr(sockets, "PACED", control.encode())


@pytest.mark.parametrize(
    ("here", "there", "stays"),
    [
        ("127.0.0.1", "127.0.0.2", True),
        ("::1", "::1", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2", False),
    ],
)
def test_what_stays_on_this_machine(here: str, there: str, stays: bool) -> None:
    assert sockets.stays_here(here, there) is stays


@pytest.mark.usefixtures("paced")
@pytest.mark.parametrize("stays", [True, False])
async def test_only_what_stays_on_this_machine_is_not_paced(
    monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    if not stays:
        monkeypatch.setattr(sockets, "stays_here", lambda here, there: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        own = socket.create_connection(server.getsockname())
        before = control_of(own)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            asyncio.Protocol, own
        )
        with sockets.dup_of(transport) as dup:
            assert control_of(dup) == control_of(own) == ("reno" if stays else before)
        transport.close()


def test_a_control_that_does_not_pace_is_left_alone() -> None:
    with socket.socket() as one:
        if "cubic" not in setting("tcp_allowed_congestion_control"):
            pytest.skip("this system has no cubic")
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        sockets.unpace(one)
        assert control_of(one) == "cubic"


@pytest.mark.usefixtures("paced")
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


@pytest.mark.usefixtures("paced")
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_what_a_router_on_loopback_accepts_is_not_paced(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[asyncio.Server] = []
    accepted: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    create = loop.create_server

    async def kept(*args: Any, **options: Any) -> asyncio.Server:
        made.append(await create(*args, **options))
        return made[0]

    async def told(request: web.Request) -> web.Response:
        assert request.transport is not None
        accepted.put_nowait(control_of(request.transport.get_extra_info("socket")))
        return web.Response()

    monkeypatch.setattr(loop, "create_server", kept)
    app = web.Application()
    app.router.add_get("/", told)
    runner = web.AppRunner(app)
    await runner.setup()
    async with listening(runner, RouterSettings(host=host, port=0)), ClientSession() as session:
        port = made[0].sockets[0].getsockname()[1]
        async with session.get(f"http://127.0.0.1:{port}/") as response:
            assert response.status == 200
    by_default = "".join(setting("tcp_congestion_control"))
    assert accepted.get_nowait() == ("reno" if host == "127.0.0.1" else by_default)
    await runner.cleanup()
