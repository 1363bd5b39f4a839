"""The socket to the router and its return, against a played router on real sockets."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from played_connector_router import (
    MAC,
    PlayedRouter,
    Stream,
    connected,
    served,
    settings_for,
)
from tunnelsync import __version__, backoff, protocol
from tunnelsync.connector import session
from tunnelsync.errors import BadMac, BadSetting, PlaintextRefused
from tunnelsync.protocol import Ack, Coding, Fault, GetDatasetStream, ListDatasets, Welcome
from tunnelsync.settings import ConnectorSettings, Secret, StoreSettings

LONGEST_ID = "r" * 128


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"0123456789")
    return tmp_path / "data"


@pytest.fixture
async def router() -> AsyncIterator[PlayedRouter]:
    async with served(PlayedRouter()) as played:
        yield played


def stream(request_id: str) -> GetDatasetStream:
    return GetDatasetStream(request_id, "a", Coding.RAW)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    shown = logging.INFO
    return [one.getMessage() for one in caplog.records if one.levelno >= shown]


async def test_hello_welcome_command_and_ack(
    router: PlayedRouter, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(
        router, folder, mac="CC:28:AA:00:11:22", token=Secret("canary"), ack_delay_seconds=0.0
    )
    async with connected(settings):
        ws = await router.socket()
        assert ws.ws_protocol == protocol.SUBPROTOCOL
        await ws.send_str(protocol.encode(stream("r1")))
        assert await router.heard_next(Ack, Fault) == Ack("r1")
        assert (await router.stream("r1")).body == b"0123456789"
        hello = router.hellos[0]
        assert (hello.mac, hello.version, hello.protocol) == (MAC, __version__, 1)
        assert hello.capabilities == ("buffer", "stream", "auto")
        assert len(hello.instance) == 32
    assert router.headers[0][protocol.H_CONNECTOR] == MAC
    assert router.headers[0]["Authorization"] == "Bearer canary"
    assert router.headers[0]["User-Agent"] == f"tunnelsync/{__version__}"
    assert lines(caplog)[0] == f"connected to {router.url}/ as {MAC}"
    assert ws.close_code == 1000
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    ("garbage", "request_id"),
    [
        ("[" * 30_000, None),
        ("not json", None),
        ("[]", None),
        ('{"command": NaN}', None),
        ('{"command": "format_disk", "request_id": "r9"}', "r9"),
        ('{"command": "get_dataset", "request_id": "r9"}', "r9"),
        ('{"command": "get_dataset", "request_id": 7, "dataset_name": "a"}', None),
        ('{"command": "stat_dataset", "request_id": "a\\nb", "dataset_name": "a"}', None),
        ('{"command": "list_datasets", "request_id": "r9", "limit": 99999999999999999999}', "r9"),
        (protocol.encode(ListDatasets(LONGEST_ID + "r")), None),
        (protocol.encode(ListDatasets("")), None),
        ('{"type": "hello"}', None),
        (b"bytes", None),
    ],
    ids=range(13),
)  # fmt: skip
async def test_M1_garbage_is_answered_and_the_socket_goes_on(
    router: PlayedRouter, folder: Path, garbage: str | bytes, request_id: str | None
) -> None:
    async with connected(settings_for(router, folder, ack_delay_seconds=0.0)):
        ws = await router.socket()
        await (ws.send_str(garbage) if isinstance(garbage, str) else ws.send_bytes(garbage))
        fault = await router.heard_next(Fault, Ack)
        assert isinstance(fault, Fault)
        assert (fault.code, fault.request_id) == ("bad_request", request_id)
        await ws.send_str(protocol.encode(stream(LONGEST_ID)))
        await router.stream(LONGEST_ID)
    assert len(router.hellos) == 1


async def test_L2_one_command_too_many_is_told_on_the_socket(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an answer would be work again; those in hand end, and the next one is taken."""
    plain, go_on = router.on_result, asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        await go_on.wait()
        return await plain(request)

    monkeypatch.setattr(router, "on_result", hold)
    settings = settings_for(router, folder, commands=2, ack_delay_seconds=0.0)
    async with served(router), connected(settings):
        ws = await router.socket()
        for request_id in ("r1", "r2", "r3"):
            await ws.send_str(protocol.encode(ListDatasets(request_id, "")))
        fault = await router.heard_next(Fault)
        assert (fault.code, fault.request_id) == ("connector_busy", "r3")
        go_on.set()
        await router.result("r1")
        await router.result("r2")
        async with asyncio.timeout(10):
            while True:
                await ws.send_str(protocol.encode(ListDatasets("r3", "")))
                if isinstance(await router.heard_next(Fault, Ack), Ack):
                    break
        await router.result("r3")


async def test_L8_jobs_survive_a_lost_socket_and_are_not_worked_twice(
    router: PlayedRouter, folder: Path
) -> None:
    came, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request, stream: Stream) -> None:
        came.set()
        await go_on.wait()

    router.faults = [hold]
    async with connected(settings_for(router, folder)):
        first = await router.socket()
        await first.send_str(protocol.encode(stream("r1")))
        await came.wait()
        await first.close(code=protocol.CLOSE_RESTART)
        second = await router.socket()
        await second.send_str(protocol.encode(stream("r1")))
        await second.send_str(protocol.encode(stream("r2")))
        await router.stream("r2")
        go_on.set()
        assert (await router.stream("r1")).body == b"0123456789"
    assert router.streams["r1"].chunks == [0]
    assert router.hellos[0].instance == router.hellos[1].instance


async def test_L8_what_was_owed_on_a_lost_socket_is_not_said_on_the_next(
    router: PlayedRouter, folder: Path
) -> None:
    came, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request, stream: Stream) -> None:
        came.set()
        await go_on.wait()

    router.faults = [hold, hold]
    async with connected(settings_for(router, folder, ack_delay_seconds=0.5)):
        first = await router.socket()
        await first.send_str(protocol.encode(stream("r1")))
        await came.wait()
        await first.close(code=protocol.CLOSE_RESTART)
        second = await router.socket()
        while not router.heard.empty():  # on a busy machine it was in time
            router.heard.get_nowait()
        await second.send_str(protocol.encode(stream("r2")))
        assert await router.heard_next(Ack) == Ack("r2")
        go_on.set()
        await router.stream("r1")
        await router.stream("r2")


async def test_a_router_that_is_away_is_told_of_once_and_on_its_return(
    folder: Path, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    router = PlayedRouter()
    settings = settings_for(router, folder, router=f"http://127.0.0.1:{unused_tcp_port}")
    async with connected(settings):
        for _ in range(2):
            async with served(router, unused_tcp_port):
                await router.socket()
    told = [line for line in lines(caplog) if "aborted" not in line]
    assert [line for line in told if "connected to" in line] == [
        f"connected to {router.url}/ as {MAC}"
    ] * 2
    assert 2 <= len([line for line in told if "is away" in line]) <= 3
    assert len(told) <= 5


@pytest.mark.parametrize("status", [401, 403])
async def test_L5_a_refused_token_is_told_once_and_not_hammered_with(
    router: PlayedRouter, folder: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    router.refuse_status = status
    settings = settings_for(router, folder, backoff_refused_seconds=0.2)
    async with connected(settings):
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(10):
            while router.handshakes < 3:
                await asyncio.sleep(0.01)
        assert loop.time() - began >= 2 * 0.2
    assert len(lines(caplog)) == 1
    assert "and not as a TunnelSync router does" in lines(caplog)[0]  # it says nothing of a token


@pytest.mark.parametrize(
    ("code", "heeded", "limit"),
    [
        (protocol.CLOSE_REVOKED, True, "backoff_refused_seconds"),
        (protocol.CLOSE_REPLACED, True, "backoff_cap_seconds"),
        (protocol.CLOSE_CLASH, True, "backoff_cap_seconds"),
        (protocol.CLOSE_REPLACED, False, "backoff_refused_seconds"),
    ],
)
async def test_L6_a_socket_closed_for_a_reason_backs_off_for_long(
    router: PlayedRouter,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    code: int,
    heeded: bool,
    limit: str,
) -> None:
    """Who lost its MAC to another comes sooner, and takes it only when it is free: of a router
    that heeds that."""
    router.heeds_yielding = heeded
    async with connected(settings_for(router, folder, **{limit: 0.3})):
        ws = await router.socket()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await ws.close(code=code)
        await router.socket()
        assert loop.time() - began >= 0.3
    assert len([line for line in lines(caplog) if "refuses this connector" in line]) == 1
    assert [hello.yields for hello in router.hellos] == [False, limit == "backoff_cap_seconds"]


async def test_L8_a_router_that_restarts_gets_the_time_it_asks_for_however_hard_it_was_to_reach(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    router.refuse_status = 503
    settings = settings_for(router, folder, backoff_first_seconds=0.001, backoff_cap_seconds=0.5)
    async with connected(settings):
        async with asyncio.timeout(20):
            while router.handshakes < 3:
                await asyncio.sleep(0)
        router.refuse_status = 0
        ws = await router.socket()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await ws.close(code=protocol.CLOSE_RESTART, message=backoff.restarting(100, 1.0).encode())
        await router.socket()
        assert loop.time() - began >= 0.5


@pytest.mark.parametrize("silent_after", ["the hello", "its welcome"])
async def test_a_silent_router_is_left_and_tried_again(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch, silent_after: str
) -> None:
    """One that is silent keeps the connection, and answers no ping either."""
    plain, first = router.on_socket, asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        if first.is_set():
            return await plain(request)
        first.set()
        ws = web.WebSocketResponse(protocols=(protocol.SUBPROTOCOL,))
        await ws.prepare(request)
        await ws.receive()
        if silent_after == "its welcome":
            await ws.send_str(protocol.encode(Welcome(1)))
        await asyncio.Event().wait()
        return ws

    monkeypatch.setattr(router, "on_socket", silent)
    async with served(router):
        settings = settings_for(router, folder, answer_seconds=0.5, heartbeat_seconds=0.5)
        async with connected(settings), asyncio.timeout(10):
            await router.socket()


@pytest.mark.parametrize("status", [301, 307])
async def test_a_router_that_redirects_its_connectors_is_not_followed(
    router: PlayedRouter,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    """Another place would command, and the results still go to this one."""
    elsewhere, said = PlayedRouter(), list[web.WSMsgType]()

    async def redirect(request: web.Request) -> web.StreamResponse:
        router.handshakes += 1
        place = f"{elsewhere.url}{request.rel_url}"
        return web.Response(status=status, headers={"Location": place})

    async def listen(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(protocols=(protocol.SUBPROTOCOL,))
        await ws.prepare(request)
        said.append((await ws.receive()).type)
        return ws

    monkeypatch.setattr(router, "on_socket", redirect)
    monkeypatch.setattr(elsewhere, "on_socket", listen)
    async with served(elsewhere), served(router), connected(settings_for(router, folder)):
        async with asyncio.timeout(10):
            while router.handshakes < 3:
                await asyncio.sleep(0.01)
    assert web.WSMsgType.TEXT not in said
    assert [line for line in lines(caplog) if "it redirects" in line]


async def test_settings_that_cannot_work_are_told_at_once(tmp_path: Path) -> None:
    bad: list[tuple[type[Exception], dict[str, object]]] = [
        (BadSetting, {"router": "ftp://x"}),
        (PlaintextRefused, {"router": "http://192.0.2.1"}),
        (BadMac, {"mac": "nobody"}),
        (BadSetting, {"root": str(tmp_path / "absent")}),
        (BadSetting, {"token": Secret("a b")}),
        (BadSetting, {"mac": ""}),
    ]
    for error, change in bad:
        values: dict[str, object] = {"mac": MAC, "root": str(tmp_path)} | change
        with pytest.raises(error):
            await session.run(ConnectorSettings(**values), StoreSettings())  # type: ignore[arg-type]


async def test_loopback_is_no_default_for_the_mac(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="lo reaches the router") as caught:
        await session.run(ConnectorSettings(root=str(tmp_path)), StoreSettings())
    assert "--mac" in caught.value.hint
