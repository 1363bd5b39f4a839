"""Commands worked once, in line, and answered whatever happens: against a played router."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from played_connector_router import (
    PlayedRouter,
    Stream,
    connected,
    served,
    settings_for,
)
from tunnelsync import protocol
from tunnelsync.connector.buffer import Buffer
from tunnelsync.connector.offload import Offload
from tunnelsync.connector.outbox import Outbox
from tunnelsync.connector.source import Root
from tunnelsync.connector.upload import Upload
from tunnelsync.connector.worker import Job, Modes, Worker
from tunnelsync.identity import mac_address
from tunnelsync.protocol import (
    Ack,
    Cancel,
    Coding,
    Conditions,
    GetDatasetAuto,
    GetDatasetOffload,
    GetDatasetStream,
    ListDatasets,
    Progress,
    StatDataset,
)
from tunnelsync.settings import MIB, ConnectorSettings, StoreSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"0123456789")
    return tmp_path / "data"


@pytest.fixture
async def router() -> AsyncIterator[PlayedRouter]:
    async with served(PlayedRouter()) as played:
        yield played


def stream(request_id: str, name: str = "a") -> GetDatasetStream:
    return GetDatasetStream(request_id, name, Coding.RAW)


class Gate:
    """A fault that holds each chunk request until the test lets go, and tells which came."""

    def __init__(self, router: PlayedRouter) -> None:
        self.came: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Semaphore(0)
        self._router = router
        router.faults = [self]

    async def __call__(self, request: web.Request, stream: Stream) -> None:
        self._router.faults.append(self)
        self.came.put_nowait(request.query["request_id"])
        await self.go.acquire()


async def test_a_command_sent_twice_is_acked_twice_and_worked_once(
    router: PlayedRouter, folder: Path
) -> None:
    gate = Gate(router)
    async with connected(settings_for(router, folder, ack_delay_seconds=0.0)):
        ws = await router.socket()
        for _ in range(2):
            await ws.send_str(protocol.encode(stream("r1")))
            assert await router.heard_next(Ack) == Ack("r1")
        await ws.send_str(protocol.encode(stream("r2")))
        assert await router.heard_next(Ack) == Ack("r2")
        for _ in range(4):
            gate.go.release()
        await router.stream("r2")
        await router.stream("r1")
        await ws.send_str(protocol.encode(stream("r1")))
        await ws.send_str(protocol.encode(stream("r3")))
        await router.stream("r3")
    assert router.streams["r1"].chunks == [0]


async def test_L7_the_51st_waits_in_order_and_a_cancelled_one_leaves_the_line(
    router: PlayedRouter, folder: Path
) -> None:
    gate = Gate(router)
    async with connected(settings_for(router, folder, ack_delay_seconds=0.0)):
        ws = await router.socket()
        for number in range(54):
            await ws.send_str(protocol.encode(stream(f"r{number}")))
        first = {await gate.came.get() for _ in range(50)}
        assert first == {f"r{number}" for number in range(50)}
        await ws.send_str(protocol.encode(ListDatasets("list")))
        await router.result("list")
        await ws.send_str(protocol.encode(Cancel("r51")))
        assert [(await router.heard_next(Ack)).request_id for _ in range(56)][-1] == "r51"
        assert gate.came.empty()
        for expected in ("r50", "r52", "r53"):
            gate.go.release()
            assert await asyncio.wait_for(gate.came.get(), 10) == expected
        for _ in range(50):
            gate.go.release()
        for number in {*range(54)} - {51}:
            await router.stream(f"r{number}")
    assert not router.results["r51"]
    assert "r51" not in router.streams


async def test_P3_cancelling_one_leaves_the_others_running(
    router: PlayedRouter, folder: Path
) -> None:
    gate = Gate(router)
    async with connected(settings_for(router, folder, places=2)):
        ws = await router.socket()
        for name in ("r1", "r2", "r3"):
            await ws.send_str(protocol.encode(stream(name)))
        assert {await gate.came.get(), await gate.came.get()} == {"r1", "r2"}
        await ws.send_str(protocol.encode(Cancel("r1")))
        assert await gate.came.get() == "r3"
        for _ in range(3):
            gate.go.release()
        await router.stream("r2")
        await router.stream("r3")
    assert not router.results


async def test_a_cancel_that_comes_first_wins(router: PlayedRouter, folder: Path) -> None:
    async with connected(settings_for(router, folder)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(Cancel("r1")))
        await ws.send_str(protocol.encode(stream("r1")))
        await ws.send_str(protocol.encode(stream("r2")))
        await router.stream("r2")
    assert "r1" not in router.streams


async def test_one_that_is_cancelled_before_it_begins_is_not_in_hand_for_ever(
    router: PlayedRouter, folder: Path
) -> None:
    async with connected(settings_for(router, folder, commands=1)):
        ws = await router.socket()
        for number in range(3):
            # In one write, as they come when the connector has been busy for a moment.
            both = stream(f"r{number}"), Cancel(f"r{number}")
            await asyncio.gather(*(ws.send_str(protocol.encode(one)) for one in both))
        while True:
            await ws.send_str(protocol.encode(StatDataset(f"s{number}", "a")))
            if "size" in await router.result(f"s{number}"):
                break
            number += 1
            assert number < 50, "the connector stays busy"


async def test_the_line_is_bounded_and_its_wait_too(router: PlayedRouter, folder: Path) -> None:
    gate = Gate(router)
    settings = settings_for(router, folder, places=1, waiting=1, queue_wait_seconds=0.2)
    async with connected(settings):
        ws = await router.socket()
        await ws.send_str(protocol.encode(stream("r1")))
        await gate.came.get()
        await ws.send_str(protocol.encode(stream("r2")))
        await ws.send_str(protocol.encode(stream("r3")))
        assert (await router.result("r3"))["error"]["code"] == "connector_busy"
        assert (await router.result("r2"))["error"]["code"] == "queue_timed_out"
        gate.go.release()
        await router.stream("r1")


async def test_jobs_give_signs_of_life_with_their_place_or_bytes(
    router: PlayedRouter, folder: Path
) -> None:
    gate = Gate(router)
    async with connected(settings_for(router, folder, places=1, progress_seconds=0.05)):
        ws = await router.socket()
        for name in ("r1", "r2", "r3"):
            await ws.send_str(protocol.encode(stream(name)))
        await gate.came.get()
        seen: set[Progress] = set()
        wanted = {
            Progress("r1", "reading", 10),
            Progress("r2", "queued", 1),
            Progress("r3", "queued", 2),
        }
        while not wanted <= seen:
            seen.add(await router.heard_next(Progress))
        for _ in range(3):
            gate.go.release()
        await router.stream("r3")


async def test_list_and_stat_are_answered(router: PlayedRouter, folder: Path) -> None:
    (folder / "sub").mkdir()
    found = (folder / "a").stat()
    etag = f"a-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"
    async with connected(settings_for(router, folder)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(ListDatasets("r1")))
        assert await router.result("r1") == {
            "entries": [
                {
                    "name": "a",
                    "kind": "dataset",
                    "size": 10,
                    "etag": etag,
                    "modified_ns": found.st_mtime_ns,
                },
                {"name": "sub", "kind": "folder"},
            ],
            "unlisted": 0,
        }
        part = Conditions(range="bytes=2-4")
        await ws.send_str(protocol.encode(StatDataset("r2", "a", part)))
        answer = await router.result("r2")
        assert (answer["status"], answer["size"], answer["etag"]) == (206, 10, etag)
        assert (answer["offset"], answer["length"]) == (2, 3)
        await ws.send_str(protocol.encode(ListDatasets("r3", limit=0)))
        assert (await router.result("r3"))["error"]["code"] == "bad_request"
        await ws.send_str(protocol.encode(StatDataset("r4", "absent")))
        assert (await router.result("r4"))["error"]["code"] == "dataset_not_found"


async def test_auto_without_a_store_streams_and_offload_says_so(
    router: PlayedRouter, folder: Path
) -> None:
    async with connected(settings_for(router, folder, auto_offload_bytes=1)):
        ws = await router.socket()
        both = ("stream", "offload")
        await ws.send_str(protocol.encode(GetDatasetAuto("r1", "a", both)))
        assert (await router.stream("r1")).body == b"0123456789"
        await ws.send_str(protocol.encode(GetDatasetOffload("r2", "a")))
        assert (await router.result("r2"))["error"]["code"] == "store_not_configured"
        await ws.send_str(protocol.encode(GetDatasetAuto("r3", "a", ("offload",))))
        assert (await router.result("r3"))["error"]["code"] == "unsupported"


async def test_a_result_is_given_again_until_it_is_taken(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as it is set to be tried, and here no try is to spare."""
    plain, failing = router.on_result, [502, 0, 522, 503]
    attempts = len(failing)

    async def flaky(request: web.Request) -> web.StreamResponse:
        if not failing:
            return await plain(request)
        status = failing.pop()
        if not status:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status or 200)

    monkeypatch.setattr(router, "on_result", flaky)
    async with (
        served(router),
        connected(settings_for(router, folder, resume_attempts=attempts)),
        asyncio.timeout(10),
    ):
        ws = await router.socket()
        await ws.send_str(protocol.encode(StatDataset("r1", "a")))
        assert (await router.result("r1"))["size"] == 10
    assert not failing


async def test_an_answer_without_an_end_is_not_read_to_it(
    router: PlayedRouter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, over = 0, asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal written
        answer = web.StreamResponse()
        await answer.prepare(request)
        with suppress(ConnectionError, aiohttp.ClientError):
            while written < 64 * MIB:
                await answer.write(bytes(MIB))
                written += MIB
        over.set()
        return answer

    monkeypatch.setattr(router, "on_result", endless)
    async with served(router), connected(settings_for(router, folder, message_bytes=MIB)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(StatDataset("r1", "a")))
        await asyncio.wait_for(over.wait(), 20)
    assert written < 64 * MIB


@pytest.mark.parametrize("status", [302, 307])
async def test_a_result_goes_nowhere_else_though_a_redirect_says_so(
    router: PlayedRouter,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    elsewhere = PlayedRouter()

    async def redirect(request: web.Request) -> web.StreamResponse:
        place = f"{elsewhere.url}{request.rel_url}"
        return web.Response(status=status, headers={"Location": place})

    monkeypatch.setattr(router, "on_result", redirect)
    async with served(elsewhere), served(router), connected(settings_for(router, folder)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(StatDataset("r1", "a")))
        async with asyncio.timeout(10):
            while "datasets/result was refused" not in caplog.text and not elsewhere.results:
                await asyncio.sleep(0.01)
    assert f"datasets/result was refused: {status}" in caplog.text
    assert not elsewhere.results


async def test_a_result_that_nobody_waits_for_is_dropped_quietly(
    router: PlayedRouter, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router.gone.add("r1")
    async with connected(settings_for(router, folder)):
        ws = await router.socket()
        await ws.send_str(protocol.encode(StatDataset("r1", "a")))
        await ws.send_str(protocol.encode(StatDataset("r2", "a")))
        await router.result("r2")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_what_falls_free_goes_to_the_client_that_holds_less_and_no_place_is_lost(
    router: PlayedRouter, folder: Path
) -> None:
    gate = Gate(router)
    async with connected(settings_for(router, folder, places=2)):
        ws = await router.socket()
        for name in ("a1", "a2", "a3", "a4", "b1"):
            await ws.send_str(protocol.encode(GetDatasetStream(name, "a", client=name[0])))
        assert {await gate.came.get(), await gate.came.get()} == {"a1", "a2"}
        await ws.send_str(protocol.encode(Cancel("a1")))
        assert await asyncio.wait_for(gate.came.get(), 10) == "b1"
        await ws.send_str(protocol.encode(Cancel("b1")))
        assert await asyncio.wait_for(gate.came.get(), 10) == "a3"
        for _ in range(5):
            gate.go.release()
        for name in ("a2", "a3", "a4"):
            await router.stream(name)


class Called(asyncio.Event):
    """A turn in whose very moment the job is cancelled: it holds a place, and does not know it."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job, self._awaited = job, job.turn

    def set(self) -> None:
        super().set()
        self._awaited.set()
        self._job.task.cancel()


async def test_one_cancelled_in_the_moment_of_its_turn_leaves_the_place_to_the_next(
    router: PlayedRouter, folder: Path
) -> None:
    gate = Gate(router)
    settings = settings_for(router, folder, places=1)
    async with working(settings) as worker:
        for name in ("r1", "r2", "r3"):
            worker.take(stream(name))
        assert await asyncio.wait_for(gate.came.get(), 10) == "r1"
        called = worker._jobs["r2"].turn = Called(worker._jobs["r2"])
        worker.take(Cancel("r1"))
        assert await asyncio.wait_for(gate.came.get(), 10) == "r3"
        assert called.is_set()
        for _ in range(2):
            gate.go.release()
        await router.stream("r3")
    assert not router.results
    assert "r2" not in router.streams


@asynccontextmanager
async def working(settings: ConnectorSettings) -> AsyncIterator[Worker]:
    """Run a worker without a socket; what it answers goes to the router."""
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(settings.threads))
        root = Root(settings.root, executor, list_entries=10, folder_entries=10)
        stack.callback(root.close)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        upload = Upload(http, URL(settings.router), {}, settings)
        mac = mac_address(settings.mac)
        offload = Offload(mac, root, StoreSettings(), executor, upload)
        await stack.enter_async_context(offload)
        buffer = Buffer(settings, executor, upload)
        worker = Worker(settings, Modes(root, upload, buffer, offload), Outbox(10, 1.0))
        stack.push_async_callback(worker.close)
        yield worker
