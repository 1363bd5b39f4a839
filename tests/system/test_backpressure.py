"""Peers that do not read, or leave: nothing is read for them, and nothing of them stays."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import orjson
import pytest
from aiohttp import web

import raw_http
from harness import MAC, Router, System, make_file, sparse_file, wait_until
from held import HeldGet
from played_connector import asking
from played_connector_router import PlayedRouter, Stream, connected, served
from tunnelsync import protocol
from tunnelsync.protocol import Hello, ListDatasets, Welcome
from tunnelsync.router import app
from tunnelsync.settings import GIB, KIB, MIB, ConnectorSettings, RouterSettings, StoreSettings
from watched import bytes_read, descriptors, files_open, rss_bytes

PATH = f"/datasets/{MAC}/data"


@pytest.fixture(params=[True, False], ids=["spliced", "copied"])
def zero_copy(request: pytest.FixtureRequest) -> bool:
    """Both ways of the relay: they must not differ in what anybody sees."""
    value = request.param
    assert isinstance(value, bool)
    return value


def running(url: str) -> int:
    """Return how many transfers of the one connector are under way."""
    rows = raw_http.ask(url, "GET", "/connectors").json()["connectors"]
    count = rows[0]["transfers"]
    assert isinstance(count, int)
    return count


class Steady:
    """Tells when a number has not changed for a second."""

    def __init__(self) -> None:
        self._value, self._since = -1, time.monotonic()

    def __call__(self, value: int) -> bool:
        if value != self._value:
            self._value, self._since = value, time.monotonic()
        return time.monotonic() - self._since > 1


# --- P1, P2: a client that stops, or leaves -------------------------------------------------------


def test_p1_the_connector_reads_no_further_than_its_client(
    system: System, tmp_path: Path, zero_copy: bool
) -> None:
    """Until the client goes on: then what it gets goes on, too."""
    router = system.router(zero_copy=zero_copy)
    connector = system.connector()
    sparse_file(tmp_path / "datasets" / "data", 8 * GIB)
    with HeldGet(router.url, PATH) as get:
        get.read(8 * MIB)
        steady = Steady()
        wait_until(lambda: steady(bytes_read(connector.pid)), 20, "the connector to hold still")
        stood = bytes_read(connector.pid)
        assert stood < 128 * MIB
        before = rss_bytes(router), rss_bytes(connector)
        get.read(200 * MIB)
        assert bytes_read(connector.pid) > stood
        get.body.clear()
        after = rss_bytes(router), rss_bytes(connector)
        assert all(b - a < 32 * MIB for a, b in zip(before, after, strict=True)), (before, after)


def test_p1_at_the_deadline_all_three_let_go(
    system: System, tmp_path: Path, zero_copy: bool
) -> None:
    router = system.router(zero_copy=zero_copy, idle_seconds=1)
    connector = system.connector()
    sparse_file(tmp_path / "datasets" / "data", 8 * GIB)
    held = descriptors(router)
    gets = [HeldGet(router.url, PATH) for _ in range(5)]
    try:
        wait_until(lambda: running(router.url) == 0, 20, "the transfers to be over")
        wait_until(lambda: not files_open(connector), 10, "the dataset to be closed")
        # One of them may be the connection that asks, and some are kept by the connector's pool.
        wait_until(lambda: descriptors(router) <= held + 5, 10, "the sockets to be closed")
        for get in gets:
            _, whole = get.rest()  # at its end: a socket that is still open would time out
            assert not whole
    finally:
        for get in gets:
            get.close()


def test_p2_within_a_second_of_a_client_that_leaves_its_place_is_free(
    system: System, tmp_path: Path, zero_copy: bool
) -> None:
    """The best of three tries counts: of a busy machine this is no test."""
    router = system.router(zero_copy=zero_copy)
    system.connector(places=1)
    sparse_file(tmp_path / "datasets" / "data", 8 * GIB)
    first = HeldGet(router.url, PATH)
    took = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            first.read(1 * MIB)
            waiting = pool.submit(HeldGet, router.url, PATH)  # returns with its first bytes
            wait_until(lambda: running(router.url) == 2, 20, "the second to stand in line")
            left = time.monotonic()
            first.close()
            first = waiting.result(20)
            took.append(time.monotonic() - left)
    first.close()
    assert min(took) < 1, took


# --- P4: slow ones and a fast one -----------------------------------------------------------------

SLOW = 20
FAST_BYTES = 512 * MIB


def rate(url: str) -> float:
    """Return the bytes in a second at which a client that reads all it can gets a dataset."""
    began = time.monotonic()
    with raw_http.connect(url) as sock:
        sock.sendall(raw_http.head("GET", f"/datasets/{MAC}/fast", {}))
        buffer, came = memoryview(bytearray(MIB)), 0
        while count := sock.recv_into(buffer):
            came += count
    assert came > FAST_BYTES
    return came / (time.monotonic() - began)


def test_p4_a_fast_client_keeps_its_speed_beside_slow_ones(
    system: System, tmp_path: Path, zero_copy: bool
) -> None:
    """By the ratio to itself alone, and it is done while every slow one is under way.

    The best of three tries counts.
    """
    router = system.router(zero_copy=zero_copy)
    system.connector()
    sparse_file(tmp_path / "datasets" / "data", 8 * GIB)
    sparse_file(tmp_path / "datasets" / "fast", FAST_BYTES)
    with ThreadPoolExecutor(1) as pool:
        ratios: list[float] = []
        while len(ratios) < 3 and max(ratios, default=0) <= 0.25:  # of a busy machine it is no test
            alone = rate(router.url)
            with ExitStack() as stack:
                slow = [stack.enter_context(HeldGet(router.url, PATH)) for _ in range(SLOW)]
                beside = pool.submit(rate, router.url)
                while not beside.done():
                    for get in slow:
                        get.read(len(get.body) + 16 * KIB)
                    with suppress(TimeoutError):
                        beside.exception(0.05)  # the slow ones read every 50 ms
                wait_until(lambda: running(router.url) == SLOW, 10, "the fast one alone to be over")
                for get in slow:
                    at = len(get.body)
                    assert len(get.read(at + 1)) > at
            ratios.append(beside.result() / alone)
    assert max(ratios) > 0.25, ratios


# --- P6: thousands of clients that come and leave -------------------------------------------------

CYCLES = 10_000
CYCLES_SECONDS = 12.0
WARM_UP = 200
AT_ONCE = 4


async def abort(url: str, number: int) -> None:
    """Ask, and leave: at once, with the first bytes, or with a megabyte of the answer."""
    kind, coding = (("stream", "blocks"), ("stream", "raw"), ("auto", "blocks"), ("sync", "raw"))[
        number % 4
    ]
    name = "small" if kind == "sync" else "big"
    body = orjson.dumps({"mac": MAC, "dataset": name, "coding": coding})
    head = {"Content-Length": str(len(body))}
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw_http.head("POST", f"/datasets/request-{kind}", head) + body)
    came, wanted = 0, (0, 1, 1, MIB)[number // 4 % 4]
    while came < wanted and (part := await reader.read(MIB)):
        came += len(part)
    writer.transport.abort()


@asynccontextmanager
async def router_here(port: int) -> AsyncIterator[str]:
    """Run a router in this process, to see its tasks; its sockets are real ones."""
    task = asyncio.create_task(app.run(RouterSettings(port=port), StoreSettings()))
    url = f"http://127.0.0.1:{port}"
    try:
        yield url
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def connected_there(url: str) -> bool:
    """Tell whether the router listens and has its connector."""
    try:
        return b'"connected"' in (await asking(url, "GET", "/connectors")).body
    except ConnectionError:
        return False


async def test_p6_thousands_of_clients_leave_no_task_no_descriptor_and_no_memory(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    """Router and connector run in this process, where their tasks can be counted."""
    sparse_file(tmp_path / "big", 8 * GIB)
    make_file(tmp_path / "small", 256 * KIB)
    loop = asyncio.get_running_loop()
    settings = ConnectorSettings(
        router=f"http://127.0.0.1:{unused_tcp_port}", mac=MAC, root=str(tmp_path)
    )
    async with router_here(unused_tcp_port) as url, connected(settings):

        async def settled() -> tuple[int, int, int]:
            """Return tasks, descriptors and memory when all transfers are over."""
            async with asyncio.timeout(60):
                steady = Steady()
                while not steady(len(asyncio.all_tasks())):
                    await asyncio.sleep(0.05)
            metrics = (await asking(url, "GET", "/metrics")).body.decode()
            assert "tunnelsync_transfers_running 0.0\n" in metrics
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
                "SC_PAGE_SIZE"
            )
            return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), resident

        async def cycles(count: int) -> int:
            until, done = loop.time() + CYCLES_SECONDS, 0
            while done < count and loop.time() < until:
                await asyncio.gather(*(abort(url, done + n) for n in range(AT_ONCE)))
                done += AT_ONCE
            return done

        async with asyncio.timeout(20):
            while not await connected_there(url):
                await asyncio.sleep(0.01)
        await cycles(WARM_UP)
        tasks, fds, memory = await settled()
        done = await cycles(CYCLES)
        tasks_now, fds_now, memory_now = await settled()
        assert done > 2 * WARM_UP, "too few to see a leak"
        told = (done, tasks, tasks_now, fds, fds_now, memory, memory_now)
        assert tasks_now <= tasks + 8, told  # pooled connections have a task each at the router
        assert fds_now <= fds + 16, told
        assert memory_now < 1.3 * memory, told


# --- L2: peers that never read --------------------------------------------------------------------


@contextmanager
def let_go(router: Router) -> Iterator[socket.socket]:
    """Ask for a buffered answer and take nothing of it, until the router has let go of it."""
    asked = orjson.dumps({"mac": MAC, "dataset": "data"})
    head = raw_http.head("POST", "/datasets/request-sync", {"Content-Length": str(len(asked))})
    before = router.line_count()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", router.port))
        sock.sendall(head + asked)
        router.wait_for_line(r"transfer \w+: buffer of .*: timed_out, .*stalled", after=before)
        yield sock


def test_l2_a_client_that_takes_nothing_of_a_buffered_answer_is_let_go(
    system: System, tmp_path: Path
) -> None:
    router = system.router(idle_seconds=1)
    system.connector()
    make_file(tmp_path / "datasets" / "data", 40 * MIB)
    with let_go(router) as sock:
        metrics = raw_http.ask(router.url, "GET", "/metrics").body.decode()
        assert "tunnelsync_buffers_bytes 0.0\n" in metrics
        came = 0
        with suppress(ConnectionError):
            while part := sock.recv(MIB):
                came += len(part)
        assert came < 40 * MIB


def test_l2_what_such_a_client_was_to_get_is_not_kept_with_its_receipt(
    system: System, tmp_path: Path
) -> None:
    router = system.router(idle_seconds=1)
    system.connector()
    make_file(tmp_path / "datasets" / "data", 40 * MIB)
    for _ in range(6):
        with let_go(router):
            pass
    # As base64 each answer has 53 MiB.
    assert rss_bytes(router) < 200 * MIB


async def test_l2_a_router_that_takes_no_byte_is_left_and_costs_no_memory(system: System) -> None:
    """It answers where to go on, and reads nothing there either: the connector gives up."""
    source = system.tmp_path / "datasets" / "big"
    sparse_file(source, 8 * GIB)
    over = asyncio.Event()

    async def never_read(request: web.Request, stream: Stream) -> web.StreamResponse | None:
        played.faults.append(never_read)
        await over.wait()
        return None

    played = PlayedRouter()
    played.faults = [never_read]
    async with served(played):
        system.url = played.url
        connector = await asyncio.to_thread(
            lambda: system.connector(
                stall_seconds=0.5, resume_attempts=3, backoff_first_seconds=0.05
            )
        )
        ws = await played.socket()
        before, held = rss_bytes(connector), descriptors(connector)
        for number in range(10):
            command = protocol.GetDatasetStream(f"r{number}", "big", protocol.Coding.RAW)
            await ws.send_str(protocol.encode(command))
        for number in range(10):
            stream = await played.stream(f"r{number}")
            assert stream.complete is not None
            assert stream.complete.error is not None
            assert stream.complete.error.code == "broken_off"
            assert len(stream.chunks) == 4
        # Each has two blocks of 4 MiB in hand, and no more for each of its tries.
        assert rss_bytes(connector) - before < 160 * MIB
        await asyncio.to_thread(
            wait_until, lambda: not files_open(connector), 20, "the dataset to be closed"
        )
        await asyncio.to_thread(
            wait_until, lambda: descriptors(connector) <= held + 12, 20, "the sockets to be closed"
        )
        over.set()
        await asyncio.to_thread(connector.stop)


def masked(text: str) -> bytes:
    """Return a short text as a client's frame."""
    payload = text.encode()
    mask = secrets.token_bytes(4)
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81" + length + mask + bytes(b ^ mask[n % 4] for n, b in enumerate(payload))


async def test_l2_a_connector_that_reads_no_command_is_let_go(system: System) -> None:
    """Its commands fill every buffer on the way: at the deadline its socket is reset."""
    ack_seconds = 2.0
    router = await asyncio.to_thread(
        lambda: system.router(
            ack_seconds=ack_seconds, heartbeat_seconds=600, return_grace_seconds=0
        )
    )
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", router.port))
        upgrade = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Protocol": protocol.SUBPROTOCOL,
            protocol.H_CONNECTOR: MAC,
        }
        sock.sendall(raw_http.head("GET", "/connectors/ws", upgrade))
        sock.sendall(masked(protocol.encode(Hello(MAC, "played", "i"))))
        await asyncio.to_thread(router.wait_for_line, f"connector {MAC} is here")
        held, before = descriptors(router), rss_bytes(router)
        name = "/".join(["n" * 200] * 20)
        asked = {"mac": MAC, "dataset": name}
        clients = [
            asking(router.url, "POST", "/datasets/request-stream", asked) for _ in range(800)
        ]
        answers = await asyncio.gather(*clients)
        assert {one.status for one in answers} <= {503, 504}
        await asyncio.to_thread(router.wait_for_line, f"connector {MAC} is offline")
        assert rss_bytes(router) - before < 64 * MIB
        await asyncio.to_thread(
            wait_until, lambda: descriptors(router) < held, 20, "the router to close the socket"
        )
        came = 0  # what the kernel had taken; the rest was dropped, and did not linger
        with suppress(ConnectionResetError):
            while part := sock.recv(MIB):
                came += len(part)
        assert came < len(clients) * len(name)
        gone = await asking(router.url, "POST", "/datasets/request-stream", asked)
        assert gone.code == "connector_offline"


class DeafRouter(PlayedRouter):
    """Gives commands without end, and hears nothing after the hello."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0
        self.transports: list[asyncio.BaseTransport] = []

    def hang_up(self) -> None:
        """Drop what is still to be written: nobody reads it any more."""
        for transport in self.transports:
            assert isinstance(transport, asyncio.WriteTransport)
            transport.abort()

    async def on_socket(self, request: web.Request) -> web.StreamResponse:
        self.handshakes += 1
        assert request.transport is not None
        self.transports.append(request.transport)
        ws = web.WebSocketResponse(protocols=(protocol.SUBPROTOCOL,), compress=False)
        await ws.prepare(request)
        await ws.receive()
        await ws.send_str(protocol.encode(Welcome(self.handshakes)))
        self.sockets.put_nowait(ws)
        with suppress(ConnectionError):
            while self.handshakes < 2:
                self.given += 1
                await ws.send_str(protocol.encode(ListDatasets(f"r{self.given}", "")))
        await asyncio.Event().wait()
        return ws

    async def on_result(self, request: web.Request) -> web.Response:
        return web.Response(status=410)


async def test_l2_a_router_that_hears_nothing_on_the_socket_is_left(system: System) -> None:
    """The connector's acks fill every buffer on the way; it reads no further commands then."""
    make_file(system.tmp_path / "datasets" / "a", 1)
    deaf = DeafRouter()
    async with served(deaf), AsyncExitStack() as stack:
        stack.callback(deaf.hang_up)
        system.url = deaf.url
        connector = await asyncio.to_thread(
            lambda: system.connector(
                heartbeat_seconds=2, backoff_first_seconds=0.05, stall_seconds=5
            )
        )
        await deaf.socket()
        held, before = descriptors(connector), rss_bytes(connector)
        async with asyncio.timeout(60):
            await deaf.sockets.get()  # the connector has come again, by a new one
        assert deaf.given > 1000
        assert rss_bytes(connector) - before < 64 * MIB  # 2000 commands in hand, and no more
        await asyncio.to_thread(
            wait_until, lambda: descriptors(connector) <= held + 2, 20, "the old one to be closed"
        )
        await asyncio.to_thread(connector.stop)
