"""Sockets of transports, past asyncio."""

import asyncio
import os
import platform
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from harness import LISTENING
from tunnelsync import sockets
from tunnelsync.client.body import DIRECT_READ_BYTES
from tunnelsync.dial import http_session
from tunnelsync.errors import BadSetting
from tunnelsync.router.listening import listening
from tunnelsync.settings import RouterSettings

SYSTEM = Path("/proc/sys/net/ipv4")
MALLOC = """
import asyncio, ctypes, socket, sys

class Info(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in "arena ordblks smblks mapped hblkhd usmblks fsmblks used free keepcost".split()
    ]

libc = ctypes.CDLL(None)
info = libc.mallinfo
info.restype = Info
libc.malloc.restype = libc.realloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

async def main(what):
    from aiohttp import web
    from tunnelsync.client.body import _Direct
    from tunnelsync.dial import http_session
    from tunnelsync.router.listening import listening
    from tunnelsync.settings import RouterSettings

    runner = web.AppRunner(web.Application())
    await runner.setup()
    session = http_session(
        connections=1, connect_seconds=1, dead_after_seconds=1, read_bytes=65536
    )
    works = {"router": listening(runner, RouterSettings(port=0), None), "session": session}
    if what in works:
        async with works[what]:
            pass
    if what == "block":
        _Direct(socket.socket(), 1)
    await runner.cleanup()

what, count, size, used = sys.argv[1], *map(int, sys.argv[2:])
if what != "nothing":  # not even an import, which may have large memory to free
    asyncio.run(main(what))
for turn in range(3):
    before = info()
    held = [libc.malloc(size) for _ in range(count)]
    while_held = info()
    for one in [libc.realloc(one, used) for one in held]:
        libc.free(one)
    after = info()
print(while_held.mapped - before.mapped, while_held.arena - after.arena)
"""
IS_GLIBC = platform.libc_ver()[0] == "glibc" and sys.maxsize > 2**32


def asked_of_the_system(what: str, count: int, size: int, used: int) -> list[int]:
    """Return how many of `count` buffers were mapped, and the bytes of heap given back after.

    Each is cut down to what was used before it is freed, as `recv` does.
    """
    done = subprocess.run(
        [sys.executable, "-c", MALLOC, what, str(count), str(size), str(used)],
        env={
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not IS_GLIBC, reason="only the malloc of a glibc of 64 bits works so")
@pytest.mark.parametrize(
    ("what", "count", "size", "used"),
    [
        ("router", 1, 256 * 1024, 100),  # what asyncio asks the system for, and a small message
        ("session", 1, 256 * 1024, 100),
        ("block", 12, DIRECT_READ_BYTES, DIRECT_READ_BYTES),
    ],
)
def test_memory_is_kept_for_the_next(what: str, count: int, size: int, used: int) -> None:
    assert any(asked_of_the_system("nothing", count, size, used))
    assert not any(asked_of_the_system(what, count, size, used))


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
def paced(monkeypatch: pytest.MonkeyPatch) -> str:
    """Take what the system does by default for a control that paces, whichever it is; its name."""
    control = "".join(setting("tcp_congestion_control"))
    if "reno" not in setting("tcp_allowed_congestion_control") or control == "reno":
        pytest.skip(f"reno cannot be told from what this system does: {control!r}")
    monkeypatch.setattr(sockets, "PACED", control.encode())
    return control


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


@pytest.mark.parametrize("stays", [True, False])
async def test_only_what_stays_on_this_machine_is_not_paced(
    monkeypatch: pytest.MonkeyPatch, paced: str, stays: bool
) -> None:
    if not stays:
        monkeypatch.setattr(sockets, "stays_here", lambda here, there: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        own = socket.create_connection(server.getsockname())
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            asyncio.Protocol, own
        )
        with sockets.dup_of(transport) as dup:
            assert control_of(dup) == control_of(own) == ("reno" if stays else paced)
        transport.close()


def test_a_control_that_does_not_pace_is_left_alone() -> None:
    with socket.socket() as one:
        if "cubic" not in setting("tcp_allowed_congestion_control"):
            pytest.skip("this system has no cubic")
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        sockets.unpace(one)
        assert control_of(one) == "cubic"


@asynccontextmanager
async def both_ends(
    caplog: pytest.LogCaptureFixture, settings: RouterSettings
) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Connect as clients do to where a router listens; yield our socket, and the one accepted."""
    accepted: list[socket.socket] = []
    done = asyncio.Event()

    async def held(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        accepted.append(request.transport.get_extra_info("socket"))
        response = web.StreamResponse()
        await response.prepare(request)
        await done.wait()
        return response

    app = web.Application()
    app.router.add_get("/", held)
    runner = web.AppRunner(app)
    await runner.setup()
    limits = {"connections": 1, "connect_seconds": 10, "dead_after_seconds": 30}
    with caplog.at_level("INFO"):
        async with (
            listening(runner, settings, None),
            http_session(**limits, read_bytes=65536) as session,
        ):
            found = LISTENING.search(caplog.text)
            assert found
            async with session.get(f"http://127.0.0.1:{found[2]}/") as response:
                assert response.connection is not None
                transport = response.connection.transport
                assert transport is not None
                yield transport.get_extra_info("socket"), accepted[0]
                done.set()
    await runner.cleanup()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_neither_what_we_make_to_loopback_nor_what_a_router_accepts_there_is_paced(
    host: str, paced: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with both_ends(caplog, RouterSettings(host=host, port=0)) as (ours, accepted):
        assert control_of(ours) == "reno"
        assert control_of(accepted) == ("reno" if host == "127.0.0.1" else paced)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system knows none")
async def test_a_peer_that_takes_nothing_any_more_is_given_up_by_the_system(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = RouterSettings(host="127.0.0.1", port=0, idle_seconds=7)
    async with both_ends(caplog, settings) as ends:
        patience_ms = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for one in ends]
    assert patience_ms == [30_000, 14_000]


async def test_many_that_come_at_one_moment_wait_until_they_are_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    with caplog.at_level("INFO"), ExitStack() as waiting:
        async with listening(runner, RouterSettings(host="127.0.0.1", port=0), None):
            found = LISTENING.search(caplog.text)
            assert found
            for _ in range(100):  # of which none is taken before all are there
                one = socket.create_connection(("127.0.0.1", int(found[2])), timeout=10)
                waiting.enter_context(one)
    await runner.cleanup()


async def test_a_host_that_is_not_known_is_told_in_words() -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    with pytest.raises(BadSetting, match=r"cannot listen on nosuch\.invalid:0: [A-Z][a-z ]+$"):
        async with listening(runner, RouterSettings(host="nosuch.invalid", port=0), None):
            pass
    await runner.cleanup()
