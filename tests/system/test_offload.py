"""Mode offload with a real S3 server: by the store or not at all, and never a wrong byte."""

import asyncio
import os
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
import pytest
from aiohttp import web
from yarl import URL

import raw_http
from harness import (
    MAC,
    Completed,
    Process,
    System,
    cli,
    environ_of,
    make_file,
    sha256,
    sparse_file,
    wait_until,
)
from played_connector import PlayedConnector, played, wanting
from played_router import content, digests_of
from played_router import played as served
from s3 import S3Server, age_seconds, s3_server
from tunnelsync import frames
from tunnelsync.client import Resume, TunnelSync
from tunnelsync.errors import TunnelSyncError
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode, OffloadAnswer
from tunnelsync.settings import MIB, ClientSettings, StoreSettings

BUCKET = "offload"
PREFIXES = (f"test-{token_hex(4)}-{n}" for n in count())
MACS = (f"cc-28-aa-04-{n >> 8:02x}-{n & 255:02x}" for n in count())
AUTO_BYTES = 2 * MIB
SIZES = (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 40 * MIB)
SECONDS = 30.0
HOLD_AFTER = 1 * MIB
PART_BYTES = 32 * MIB  # more than all buffers on the way


def environ(server: S3Server, **over: Any) -> dict[str, str]:
    """Return the settings of the store as a user gives them; nothing counts as young.

    Datasets are single objects here, whatever their size; `test_segments.py` has the others.
    """
    quick = {"settle_seconds": 0.0, "attempts": 1, "segments_from_bytes": 2**40}
    found = server.settings(over.pop("bucket", BUCKET), **(quick | over))
    values = {spec.name: getattr(found, spec.name) for spec in fields(found)}
    return environ_of(StoreSettings, values)


@dataclass(frozen=True, slots=True)
class Shelf:
    """What one test has in the store, seen from outside by boto; each upload is a version."""

    client: Any
    prefix: str

    def keys(self) -> list[str]:
        """Return the keys of the objects."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=self.prefix)
        return [one["Key"] for one in found.get("Contents", [])]

    def put_count(self, end: str) -> int:
        """Return how often an object has been put whose key ends so."""
        found = self.client.list_object_versions(Bucket=BUCKET, Prefix=self.prefix)
        return sum(one["Key"].endswith(end) for one in found.get("Versions", []))

    def uploads(self) -> list[str]:
        """Return the keys of the multipart uploads that are open."""
        found = self.client.list_multipart_uploads(Bucket=BUCKET)  # MinIO takes no real prefix
        keys = [one["Key"] for one in found.get("Uploads", [])]
        return [key for key in keys if key.startswith(self.prefix + "/")]

    def get(self, key: str) -> bytes:
        """Return an object."""
        data = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert isinstance(data, bytes)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Replace an object, as somebody else would: its metadata stay."""
        with_what = self.client.head_object(Bucket=BUCKET, Key=key)["Metadata"]
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data, Metadata=with_what)


@pytest.fixture(scope="module")
def outside(store_server: S3Server) -> Any:
    """A client that looks at the store without our code, in a bucket that keeps versions."""
    client = store_server.client()
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):  # by another module
        client.create_bucket(Bucket=BUCKET)
    versions = {"Status": "Enabled"}
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration=versions)
    return client


@pytest.fixture
def shelf(outside: Any) -> Shelf:
    return Shelf(outside, next(PREFIXES))


@contextmanager
def running(tmp_path: Path, store: dict[str, str]) -> Iterator[System]:
    """Give every process of a test a store."""
    started = System(tmp_path, environ=store)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, store_server: S3Server, outside: Any
) -> Iterator[System]:
    """One router and one connector for all tests that leave them as they are."""
    store = environ(store_server, prefix=next(PREFIXES))
    with running(tmp_path_factory.mktemp("stored"), store) as system:
        system.router()
        system.connector(auto_offload_bytes=AUTO_BYTES)
        yield system


def dataset(system: System, name: str, size: int, seed: int = 0) -> Path:
    """Make a dataset of the connector."""
    return make_file(system.tmp_path / "datasets" / name, size, seed=seed)


def fetch(
    system: System, mode: str, target: Path, *args: str, mac: str = MAC, name: str = "d", **env: str
) -> Completed:
    """Fetch a dataset into a file."""
    flags = ("--mode", mode, "--json", *args)
    return system.cli("fetch", *flags, mac, name, "-o", target, env=env)


def told(done: Completed) -> str:
    """Return message and hint of an error, as a user reads them."""
    error = done.json()["error"]
    return f"{error['message']}\n{error['hint']}"


def offered(system: System, name: str) -> dict[str, Any]:
    """Ask for a dataset in mode offload, and download nothing."""
    asked = {"mac": MAC, "dataset": name}
    answer = raw_http.post(system.url, "/datasets/request-offload", asked)
    assert answer.status == 200, answer
    return answer.json()


def keys_in(answer: dict[str, Any]) -> tuple[str, str]:
    """Return the keys of the two objects that an answer tells of: data, and blocks."""
    data, blocks = (URL(answer[name]).path for name in ("download_url", "blocks_url"))
    return data.removeprefix(f"/{BUCKET}/"), blocks.removeprefix(f"/{BUCKET}/")


def free_port() -> int:
    """Return a port where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    assert isinstance(port, int)
    return port


# --- B9 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "sizes"), [("offload", SIZES), ("auto", (0, AUTO_BYTES - 1, AUTO_BYTES, 40 * MIB))]
)
def test_b9_sizes_around_a_block_arrive_whole_by_the_store(
    stored: System, tmp_path: Path, mode: str, sizes: tuple[int, ...]
) -> None:
    """In mode auto what is small is streamed."""
    for size in sizes:
        name = f"{mode} {size}"
        source, target = dataset(stored, name, size, seed=size), tmp_path / name
        done = fetch(stored, mode, target, name=name)
        assert done.code == 0, done.out
        by = "stream" if mode == "auto" and size < AUTO_BYTES else "offload"
        assert (done.json()["mode"], done.json()["mode_used"]) == (mode, by)
        assert target.stat().st_size == size
        assert sha256(target) == sha256(source)
        assert target.stat().st_mtime_ns == source.stat().st_mtime_ns


# --- S3: no store, or none that works -----------------------------------------------------------


@pytest.mark.parametrize("used", [True, False], ids=["that was used before", "from the start"])
def test_s3_with_the_store_down_offload_says_so_and_auto_streams(
    tmp_path: Path, store_server: S3Server, used: bool
) -> None:
    source = make_file(tmp_path / "datasets" / "d", 9 * MIB)
    with s3_server() if used else nullcontext() as own:
        endpoint = own.endpoint if own else f"http://127.0.0.1:{free_port()}"
        with running(tmp_path, environ(own or store_server, endpoint=endpoint)) as system:
            system.router()
            connector = system.connector(auto_offload_bytes=1)
            if own:
                assert fetch(system, "auto", tmp_path / "first").json()["mode_used"] == "offload"
                own.stop()
            done = fetch(system, "offload", tmp_path / "out")
            assert done.code == 5, done.out
            assert endpoint in told(done)
            assert "--mode stream" in told(done)
            assert not (tmp_path / "out").exists()
            done = fetch(system, "auto", tmp_path / "out")
            assert done.code == 0, done.out
            assert done.json()["mode_used"] == "stream"
            assert sha256(tmp_path / "out") == sha256(source)
            connector.wait_for_line("streamed instead")


def test_s3_a_store_that_only_the_connector_reaches(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    """The upload works, the download does not: auto asks again, for a stream alone."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    source = make_file(tmp_path / "datasets" / "d", 9 * MIB)
    store = environ(store_server, prefix=shelf.prefix, public_endpoint=nowhere)
    with running(tmp_path, store) as system:
        system.router()
        system.connector(auto_offload_bytes=1)
        done = fetch(system, "offload", tmp_path / "out")
        assert done.code == 5, done.out
        assert nowhere in told(done)
        assert "--mode stream" in told(done)
        assert "X-Amz" not in done.out + done.err
        assert not (tmp_path / "out").exists()
        done = fetch(system, "auto", tmp_path / "out")
        assert (done.code, done.json()["mode_used"]) == (0, "stream")
        assert sha256(tmp_path / "out") == sha256(source)


def test_s3_a_silent_store_has_a_deadline(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    make_file(tmp_path / "datasets" / "d", 1 * MIB)
    store = environ(store_server, prefix=shelf.prefix, read_seconds=0.5)
    with running(tmp_path, store) as system:
        system.router()
        system.connector(auto_offload_bytes=1)
        store_server.pause()
        try:
            done = fetch(system, "offload", tmp_path / "out")
            fallen_back = fetch(system, "auto", tmp_path / "out")
        finally:
            store_server.resume()
        assert done.code == 5, done.out
        assert "silent for 0.5 s" in told(done)
        assert store_server.endpoint in told(done)
        assert (fallen_back.code, fallen_back.json()["mode_used"]) == (0, "stream")


@pytest.mark.parametrize("who", ["router", "connector"])
def test_s3_without_a_store_offload_is_refused_and_auto_streams(
    system: System, tmp_path: Path, store_server: S3Server, shelf: Shelf, who: str
) -> None:
    """It is ``who`` that has none; the other one has."""
    store: dict[str, Any] = {**environ(store_server, prefix=shelf.prefix)}
    none: dict[str, Any] = {}
    system.router(**(none if who == "router" else store))
    system.connector(auto_offload_bytes=1, **(none if who == "connector" else store))
    make_file(tmp_path / "datasets" / "d", 1000)
    done = fetch(system, "offload", tmp_path / "out")
    assert done.code == 4, done.out
    assert f"this {who} has no store" in told(done)
    assert "TUNNELSYNC_STORE_ENDPOINT" in told(done)
    assert "--mode stream" in told(done)
    assert not (tmp_path / "out").exists()
    done = fetch(system, "auto", tmp_path / "out")
    assert (done.code, done.json()["mode_used"]) == (0, "stream")
    assert shelf.keys() == []


def test_s3_a_bucket_that_is_missing_is_told_and_not_made(
    tmp_path: Path, store_server: S3Server, outside: Any
) -> None:
    make_file(tmp_path / "datasets" / "d", 1000)
    store = environ(store_server, bucket="not-here", create_bucket=False)
    with running(tmp_path, store) as system:
        system.router()
        system.connector(auto_offload_bytes=1)
        done = fetch(system, "offload", tmp_path / "out")
        assert done.code == 5, done.out
        assert "'not-here'" in told(done)
        assert "no such bucket" in told(done)
        assert "TUNNELSYNC_STORE_CREATE_BUCKET" in told(done)
        assert not (tmp_path / "out").exists()
        assert fetch(system, "auto", tmp_path / "out").json()["mode_used"] == "stream"
    assert "not-here" not in [one["Name"] for one in outside.list_buckets()["Buckets"]]


# --- S5: one upload -----------------------------------------------------------------------------


def test_s5_the_same_version_twice_is_one_upload(
    stored: System, tmp_path: Path, outside: Any
) -> None:
    shelf = Shelf(outside, "")
    source = dataset(stored, "twice", 20 * MIB)
    first, second = offered(stored, "twice"), offered(stored, "twice")
    assert (first["reused"], second["reused"]) == (False, True)
    assert first["root"] == second["root"]
    assert fetch(stored, "offload", tmp_path / "out", name="twice").code == 0
    assert sha256(tmp_path / "out") == sha256(source)
    assert [shelf.put_count(key) for key in keys_in(first)] == [1, 1]
    dataset(stored, "twice", 20 * MIB, seed=1)
    third = offered(stored, "twice")
    assert not third["reused"]
    assert third["root"] != first["root"]
    assert fetch(stored, "offload", tmp_path / "other", name="twice").code == 0
    assert sha256(tmp_path / "other") == sha256(source)
    assert [shelf.put_count(key) for key in keys_in(third)] == [1, 1]
    assert [shelf.put_count(key) for key in keys_in(first)] == [1, 1]


def test_s5_many_clients_at_once_and_later_are_one_upload(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    """Also after the connector has started again: what is known of it is in the store."""
    store = environ(store_server, prefix=shelf.prefix)
    with running(tmp_path, store) as system:
        system.router()
        connector = system.connector()
        source = dataset(system, "d", 20 * MIB)

        def fetched_by(names: str) -> list[bool]:
            """Fetch by so many clients at once; tell of each whether it got the dataset."""
            flags = ("fetch", "--mode", "offload", "-q", MAC, "d", "-o")
            clients = [system.start(*flags, str(tmp_path / name)) for name in names]
            assert [client.wait(SECONDS) for client in clients] == [0] * len(names)
            return [sha256(tmp_path / name) == sha256(source) for name in names]

        assert all(fetched_by("abcde"))
        assert shelf.put_count("/data") == 1
        blocks, key = shelf.keys()
        assert (blocks[-7:], key[-5:]) == ("/blocks", "/data")
        written = shelf.client.head_object(Bucket=BUCKET, Key=key)["LastModified"]
        assert all(fetched_by("fg"))
        assert connector.stop() == 0
        system.connector()
        assert all(fetched_by("hi"))
        assert shelf.put_count("/data") == shelf.put_count("/blocks") == 1
        assert shelf.client.head_object(Bucket=BUCKET, Key=key)["LastModified"] == written
        assert shelf.uploads() == []


# --- held in mid-upload -------------------------------------------------------------------------


@dataclass(slots=True)
class Gate:
    """A way to the store on which each connection is held after so many bytes, until opened.

    ``held`` counts those that wait.
    """

    target_port: int
    held: int = 0
    url: str = ""
    _loop: asyncio.AbstractEventLoop | None = None
    _opened: asyncio.Event = field(default_factory=asyncio.Event)
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _round: int = 0

    def shut(self) -> None:
        """Hold what passes from now on, as if nothing had passed before."""
        self._opened.clear()
        self.held = 0
        self._round += 1

    def open(self) -> None:
        """Let everything pass."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._opened.set)

    def stop(self) -> None:
        """End it, with the connections that there are."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def serve(self, started: threading.Event) -> None:
        """Serve until stopped."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await self._stopped.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        ways = {
            asyncio.create_task(self._pass(reader, there_writer, holds=True)),
            asyncio.create_task(self._pass(there_reader, writer, holds=False)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for one in (writer, there_writer):
                one.transport.abort()
            self._tasks.discard(task)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, holds: bool
    ) -> None:
        carried, since = 0, self._round
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if since != self._round:
                    carried, since = 0, self._round
                carried += len(data)
                if holds and carried > HOLD_AFTER and not self._opened.is_set():
                    self.held += 1
                    await self._opened.wait()
                writer.write(data)
                await writer.drain()


@contextmanager
def gate(server: S3Server) -> Iterator[Gate]:
    """Run a gate in a thread of its own."""
    way = Gate(int(server.endpoint.rpartition(":")[2]))
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(way.serve(started)))
    thread.start()
    assert started.wait(10)
    try:
        yield way
    finally:
        way.stop()
        thread.join()


@dataclass(slots=True)
class Held:
    """A connector whose way to the store has a gate, and what came of each test's dataset."""

    system: System
    way: Gate
    shelf: Shelf
    name: str = ""
    puts_before: int = 0

    @property
    def source(self) -> Path:
        """The dataset."""
        return self.system.tmp_path / "datasets" / self.name

    @property
    def target(self) -> Path:
        """Where the client was told to write it."""
        return self.system.tmp_path / f"{self.name} out"

    @property
    def puts(self) -> int:
        """How often the test has put a dataset whole."""
        return self.shelf.put_count("/data") - self.puts_before

    def prepare(self, name: str, parts: int) -> None:
        """Make a new dataset, and hold what of it is on its way into the store from now on."""
        self.name, self.puts_before = name, self.shelf.put_count("/data")
        self.way.shut()
        sparse_file(self.source, parts * PART_BYTES, {PART_BYTES - 100: name.encode()})

    def begin(self, name: str, parts: int) -> Process:
        """Start to fetch a new dataset; some of it is on its way into the store, and held."""
        self.prepare(name, parts)
        process = self.start(self.target)
        wait_until(lambda: self.way.held == parts, SECONDS, "the upload to be held")
        assert bool(self.shelf.uploads()) == (parts > 1)
        return process

    def start(self, target: Path) -> Process:
        """Start to fetch the dataset."""
        return self.system.start("fetch", "--mode", "offload", MAC, self.name, "-o", str(target))


@contextmanager
def holding(folder: Path, server: S3Server, shelf: Shelf) -> Iterator[Held]:
    """Run a router, and a connector whose way to the store has a gate."""
    with gate(server) as way:
        store = environ(
            server,
            prefix=shelf.prefix,
            endpoint=way.url,
            public_endpoint=server.endpoint,
            part_bytes=PART_BYTES,
        )
        with running(folder, store) as system:
            system.router()
            system.connector()
            yield Held(system, way, shelf)
            way.open()


@pytest.fixture(scope="module")
def held(
    tmp_path_factory: pytest.TempPathFactory, store_server: S3Server, outside: Any
) -> Iterator[Held]:
    shelf = Shelf(outside, next(PREFIXES))
    with holding(tmp_path_factory.mktemp("held"), store_server, shelf) as made:
        yield made


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, 1 * MIB)


def edit(path: Path) -> None:
    found = path.stat()
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def swap(path: Path) -> None:
    other = sparse_file(path.with_name("other"), path.stat().st_size, {0: b"another version"})
    other.replace(path)


@pytest.mark.parametrize(
    ("change", "parts"), [(grow, 2), (shrink, 2), (edit, 2), (swap, 2), (edit, 1), (shrink, 1)]
)
def test_b2_a_dataset_that_changes_while_it_is_uploaded(
    held: Held, change: Callable[[Path], None], parts: int
) -> None:
    """By parts, or in one PUT."""
    process = held.begin(f"{change.__name__} {parts}", parts)
    change(held.source)
    held.way.open()
    assert process.wait(SECONDS) == 7, process.log
    assert "while it was read" in process.log
    assert not held.target.exists()
    wait_until(lambda: not held.shelf.uploads(), SECONDS, "the upload to be aborted")
    assert held.puts == 0


@pytest.mark.parametrize("parts", [2, 1])
def test_p2_a_client_that_leaves_in_mid_upload_leaves_nothing_in_the_store(
    held: Held, parts: int
) -> None:
    process = held.begin(f"left {parts}", parts)
    process.send(signal.SIGINT)
    assert process.wait() == 130
    wait_until(lambda: not held.shelf.uploads(), SECONDS, "the upload to be aborted")
    wait_until(lambda: taken(held.system) == 0, SECONDS, "the transfer to be over")
    assert held.puts == 0
    assert not held.target.exists()
    held.way.open()
    assert held.start(held.target).wait(SECONDS) == 0
    assert sha256(held.target) == sha256(held.source)
    assert held.puts == 1
    assert held.shelf.uploads() == []


def test_p3_one_of_two_that_wait_for_an_upload_leaves_and_the_other_gets_it(held: Held) -> None:
    first = held.begin("shared", 2)
    other = held.target.with_name("other out")
    second = held.start(other)
    wait_until(lambda: taken(held.system) == 2, SECONDS, "the second to wait for it, too")
    first.send(signal.SIGINT)
    assert first.wait() == 130
    wait_until(lambda: taken(held.system) == 1, SECONDS, "the first to be gone")
    held.way.open()
    assert second.wait(SECONDS) == 0, second.log
    assert sha256(other) == sha256(held.source)
    assert not held.target.exists()
    assert held.puts == 1
    other.unlink()


def test_p2_the_last_of_two_that_leaves_ends_the_upload(held: Held) -> None:
    first = held.begin("both left", 2)
    second = held.start(held.target.with_name("other out"))
    wait_until(lambda: taken(held.system) == 2, SECONDS, "the second to wait for it, too")
    for process, left in ((first, 1), (second, 0)):
        assert len(held.shelf.uploads()) == 1
        process.send(signal.SIGINT)
        assert process.wait() == 130
        wait_until(lambda left=left: taken(held.system) == left, SECONDS, "one less")  # type: ignore[misc]
    wait_until(lambda: not held.shelf.uploads(), SECONDS, "the upload to be aborted")
    assert held.puts == 0


async def test_s5_five_at_once_are_one_upload(held: Held) -> None:
    held.prepare("five", 2)
    asked = [wanting(held.system.url, MAC, "offload", dataset="five") for _ in range(5)]
    try:
        async with asyncio.timeout(SECONDS):
            while await asyncio.to_thread(taken, held.system) < 5 or held.way.held < 2:
                pass
        assert len(held.shelf.uploads()) == 1
    finally:
        held.way.open()
    answers = [(await one).json() for one in asked]
    assert {one["root"] for one in answers} == {answers[0]["root"]}
    assert {one["download_url"].partition("?")[0] for one in answers} == {
        answers[0]["download_url"].partition("?")[0]
    }
    assert held.puts == 1


def test_s3_what_a_killed_connector_left_open_is_aborted_when_it_starts_again(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    """By kill -9 in mid-upload; and uploads of another connector stay."""
    others = f"{shelf.prefix}/cc-28-aa-04-ff-ff/{0:064x}/data"
    with holding(tmp_path, store_server, shelf) as held:
        client = held.begin("killed", 2)
        (left,) = shelf.uploads()
        by_others = {"Bucket": BUCKET, "Key": others}
        by_others["UploadId"] = shelf.client.create_multipart_upload(**by_others)["UploadId"]
        _, connector, *_ = held.system.processes
        connector.kill()
        assert client.wait(SECONDS) == 5, client.log
        assert left in shelf.uploads()
        wait_until(
            lambda: age_seconds(shelf.client, BUCKET, left) >= 3,
            SECONDS,
            "the upload to be older than the next process, also by whole seconds",
        )
        held.way.open()
        held.system.connector().wait_for_line("1 uploads that were left open are aborted")
        assert shelf.uploads() == [others]
        assert held.start(held.target).wait(SECONDS) == 0
        assert sha256(held.target) == sha256(held.source)
        assert held.puts == 1
        assert shelf.uploads() == [others]
    shelf.client.abort_multipart_upload(**by_others)


# --- what is old is removed ---------------------------------------------------------------------


def collected(server: S3Server, prefix: str, *args: str, **env: str) -> Completed:
    """Run ``tunnelsync store gc``."""
    return cli("store", "gc", *args, env={**environ(server, prefix=prefix), **env})


def test_gc_removes_what_is_old_and_says_so(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    theirs = f"{shelf.prefix}/readme"
    shelf.client.put_object(Bucket=BUCKET, Key=theirs, Body=b"theirs")
    version = f"{shelf.prefix}/{MAC}/{0:064x}"
    with running(tmp_path, environ(store_server, prefix=shelf.prefix)) as system:
        system.router()
        system.connector()
        # Not before: a connector that starts aborts what is older than itself.
        shelf.client.create_multipart_upload(Bucket=BUCKET, Key=f"{version}/data")
        source = dataset(system, "d", 5 * MIB)
        assert fetch(system, "offload", tmp_path / "o").code == 0
        whole = shelf.keys()
        assert len(whole) == 3
        size = 5 * MIB + 2 * 32

        done = collected(store_server, shelf.prefix)
        assert (done.code, done.err) == (0, "")
        nothing = "removed 0 objects of 0 bytes, and aborted 0 uploads, 604800 s old or older\n"
        assert done.out == nothing
        done = collected(store_server, shelf.prefix, "--older-than", "0", "--dry-run")
        would = f"would remove 1 object of {size} bytes, and abort 1 upload, 0 s old or older\n"
        assert (done.code, done.out) == (0, would)
        assert shelf.keys() == whole
        assert shelf.uploads() == [f"{version}/data"]

        life = {"TUNNELSYNC_STORE_OBJECT_LIFETIME_SECONDS": "0"}
        done = collected(store_server, shelf.prefix, "--json", **life)
        assert (done.code, done.json()) == (
            0,
            {
                "status": "success",
                "dry_run": False,
                "older_than_seconds": 0,
                "objects": 1,
                "bytes": size,
                "uploads": 1,
            },
        )
        assert shelf.keys() == [theirs]
        assert shelf.uploads() == []
        assert fetch(system, "offload", tmp_path / "o", "--force").code == 0
        assert sha256(tmp_path / "o") == sha256(source)


def test_the_rule_in_the_docs_is_one_that_stores_take(store_server: S3Server, shelf: Shelf) -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    blocks = (orjson.loads(one) for one in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    (rule,) = (one for one in blocks if "Rules" in one)
    shelf.client.create_bucket(Bucket="with-a-rule")
    with_rule = {"Bucket": "with-a-rule", "LifecycleConfiguration": rule}
    shelf.client.put_bucket_lifecycle_configuration(**with_rule)
    (kept,) = shelf.client.get_bucket_lifecycle_configuration(Bucket="with-a-rule")["Rules"]
    (given,) = rule["Rules"]
    assert (kept["Filter"], kept["Expiration"]) == (given["Filter"], given["Expiration"])
    assert kept["Filter"] == {"Prefix": f"{StoreSettings().prefix}/"}
    days = kept["Expiration"]["Days"]
    assert days * 24 * 3600 >= StoreSettings().object_lifetime_seconds
    if store_server.kind != "minio":  # which ends uploads by itself
        name = "AbortIncompleteMultipartUpload"
        assert kept[name] == given[name]


def test_gc_without_a_store_or_with_one_that_is_away_says_so(store_server: S3Server) -> None:
    done = cli("store", "gc", "--json")
    assert (done.code, done.json()["error"]["code"]) == (4, "store_not_configured")
    assert "TUNNELSYNC_STORE_ENDPOINT" in told(done)
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = collected(store_server, "p", "--store-endpoint", nowhere)
    assert done.code == 5
    assert nowhere in done.err
    done = collected(store_server, "p", "--store-bucket", "not-made-by-gc")
    assert done.code == 5
    assert "no such bucket" in done.err
    assert collected(store_server, "p", "--older-than", "-1").code == 2


def taken(system: System) -> int:
    """Return how many transfers the connector has."""
    rows = raw_http.ask(system.url, "GET", "/connectors").json()["connectors"]
    return int(rows[0]["transfers"])


# --- S4: what is in the store is not what it should be ------------------------------------------


def altered(data: bytes) -> bytes:
    """Return the data with one bit of the middle one of its bytes flipped."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def test_s4_what_is_not_whole_is_uploaded_again(
    stored: System, tmp_path: Path, outside: Any
) -> None:
    shelf, target = Shelf(outside, ""), tmp_path / "out"
    source = dataset(stored, "not whole", 5 * MIB)
    for key in keys_in(offered(stored, "not whole")):
        whole = shelf.get(key)
        for fault in (None, whole[:-32], whole + bytes(32)):
            if fault is None:
                shelf.client.delete_object(Bucket=BUCKET, Key=key)
            else:
                shelf.put(key, fault)
            async with TunnelSync(stored.url) as client:
                await client.fetch(MAC, "not whole", target, mode=Mode.OFFLOAD, force=True)
            assert sha256(target) == sha256(source)
            assert shelf.get(key) == whole
        assert offered(stored, "not whole")["reused"]


def test_s4_one_altered_byte_is_found_before_the_target_changes(
    stored: System, tmp_path: Path, outside: Any
) -> None:
    shelf = Shelf(outside, "")
    dataset(stored, "altered", 9 * MIB)
    keys = keys_in(offered(stored, "altered"))
    (tmp_path / "old").write_bytes(b"what was there before")
    for key, target in zip(keys, (tmp_path / "out", tmp_path / "old"), strict=True):
        whole = shelf.get(key)
        shelf.put(key, altered(whole))
        done = fetch(stored, "offload", target, "--force", name="altered")
        assert done.code == 7, done.out
        assert re.search(r"block \d came wrong 4 times", told(done))
        shelf.put(key, whole)
    assert (tmp_path / "old").read_bytes() == b"what was there before"
    assert not (tmp_path / "out").exists()
    assert fetch(stored, "offload", tmp_path / "old", "--force", name="altered").code == 0


DATA = content(2 * BLOCK_BYTES + 1000)
DIGESTS = b"".join(digests_of(DATA))


@pytest.fixture(scope="module")
def at_store(
    tmp_path_factory: pytest.TempPathFactory, store_server: S3Server, outside: Any
) -> Iterator[System]:
    """A router with a store, for connectors that are played."""
    with running(tmp_path_factory.mktemp("claims"), environ(store_server)) as system:
        system.router()
        yield system


def claim(shelf: Shelf, data: bytes | None, blocks: bytes) -> OffloadAnswer:
    """Put objects into the store, and claim that they are `DATA` and its digests."""
    urls = {}
    for name, stuff in (("data", data), ("blocks", blocks)):
        where = {"Bucket": BUCKET, "Key": f"{shelf.prefix}/{name}"}
        if stuff is not None:
            shelf.client.put_object(**where, Body=stuff)
        urls[name] = shelf.client.generate_presigned_url("get_object", Params=where)
    return offer(urls["data"], urls["blocks"])


def offer(download_url: str, blocks_url: str) -> OffloadAnswer:
    """Return what a connector says of `DATA`."""
    return OffloadAnswer(
        download_url=download_url,
        blocks_url=blocks_url,
        dataset="d",
        size=len(DATA),
        etag="v1",
        modified_ns=10**18,
        root=frames.root(digests_of(DATA)),
        count=3,
        expires_seconds=60,
    )


async def fetched(
    system: System, connector: PlayedConnector, answer: OffloadAnswer, **env: str
) -> Completed:
    """Fetch by the command line, while the connector says where it is."""
    async with answering(connector, answer):
        return await asyncio.to_thread(
            fetch, system, "offload", system.tmp_path / "out", mac=connector.mac, **env
        )


@asynccontextmanager
async def answering(connector: PlayedConnector, answer: OffloadAnswer) -> AsyncIterator[None]:
    """Say the same of each dataset, as often as it is asked for."""

    async def answer_all() -> None:
        while True:
            request_id = await connector.command("get_dataset_offload")
            assert (await connector.result(request_id, answer)).status == 200

    task = asyncio.create_task(answer_all())
    try:
        yield
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError), ended


async def exit_code(connector: PlayedConnector, answer: OffloadAnswer, target: Path) -> int:
    """Fetch in mode offload, while the connector says where it is; return the exit code."""
    once = ClientSettings(router=connector.url, retry_for_seconds=0)
    async with TunnelSync(settings=once) as client, answering(connector, answer):
        try:
            await client.fetch(connector.mac, "d", target, mode=Mode.OFFLOAD, resume=Resume.NO)
        except TunnelSyncError as error:
            return error.exit_code
    return 0


@pytest.mark.parametrize(
    ("data", "blocks", "code"),
    [
        (DATA, DIGESTS, 0),
        (None, DIGESTS, 5),
        (DATA[:-1], DIGESTS, 7),
        (DATA[:BLOCK_BYTES], DIGESTS, 7),
        (DATA[:1], DIGESTS, 7),
        (DATA + b"x", DIGESTS, 7),
        (altered(DATA), DIGESTS, 7),
        (DATA[:-1] + b"\0", DIGESTS, 7),
        (DATA, altered(DIGESTS), 7),
        (DATA, DIGESTS[:-32], 7),
        (DATA, DIGESTS[:-1], 7),
        (DATA, DIGESTS + bytes(32), 7),
        (DATA, DIGESTS[32:] + DIGESTS[:32], 7),
    ],
    ids=[
        "right",
        "absent",
        "a byte short",
        "two blocks short",
        "one byte",
        "a byte long",
        "altered in the middle",
        "altered at the end",
        "digests altered",
        "a digest short",
        "half a digest short",
        "a digest long",
        "digests in another order",
    ],
)
async def test_s4_a_claim_that_does_not_hold_is_found_before_the_target_changes(
    at_store: System, shelf: Shelf, data: bytes | None, blocks: bytes, code: int
) -> None:
    target = at_store.tmp_path / "out"
    async with played(at_store.url, next(MACS)) as connector:
        assert await exit_code(connector, claim(shelf, data, blocks), target) == code
    assert target.exists() == (code == 0)
    if target.exists():
        assert target.read_bytes() == DATA
        target.unlink()
    assert [one.name for one in at_store.tmp_path.iterdir()] == []


async def test_s3_auto_asks_for_a_stream_when_the_object_is_not_there(
    at_store: System, shelf: Shelf
) -> None:
    target = at_store.tmp_path / "out"
    async with played(at_store.url, next(MACS)) as connector:
        doing = asyncio.create_task(
            asyncio.to_thread(fetch, at_store, "auto", target, mac=connector.mac)
        )
        first = await connector.command("get_dataset_auto")
        await connector.result(first, claim(shelf, None, DIGESTS))
        again = await connector.hear()
        assert again["accept"] == ["stream"]
        failed = {"code": "read_failed", "message": "so far, so good"}
        await connector.result(again["request_id"], {"status": "error", "error": failed})
        done = await doing
    assert done.code == 7
    assert "so far, so good" in told(done)


# --- S1: addresses of another place -------------------------------------------------------------

FOREIGN = (
    "http://127.0.0.1:OTHER/x",
    "https://127.0.0.1:STORE/x",
    "http://localhost:STORE/x",
    "http://127.0.0.2:STORE/x",
    "http://127.0.0.1/x",
    "http://user@127.0.0.1:STORE/x",
    "http://127.0.0.1:STORE@127.0.0.1:OTHER/x",
    "http://127.0.0.1:STORE\\@127.0.0.1:OTHER/x",
    "http://127.0.0.1:OTHER#@127.0.0.1:STORE/x",
    "http://127.0.0.1:OTHER\r\nHost: 127.0.0.1:STORE/x",
    "http://127.0.0.1:STORE.example.org/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://2852039166/x",
    "http://0/x",
    "file:///etc/passwd",
    "file://127.0.0.1:STORE/etc/passwd",
    "ftp://127.0.0.1:STORE/x",
    "//127.0.0.1:STORE/x",
    "/etc/passwd",
    "http://127.0.0.1:99999/x",
    "http://\u0661\u0662\u0667.0.0.1:STORE/x",
    "",
)


@dataclass(slots=True)
class Place:
    """A server that counts who comes."""

    port: int
    visits: int = 0


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """Listen, and answer nobody."""

    async def count_it(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.visits += 1
        writer.close()

    server = await asyncio.start_server(count_it, "127.0.0.1", 0)
    here = Place(server.sockets[0].getsockname()[1])
    async with server:
        yield here


async def test_s1_an_address_of_another_place_is_never_passed_on(system: System) -> None:
    async with place() as other, place() as store:
        right = f"http://127.0.0.1:{store.port}/x"
        system.environ = {"TUNNELSYNC_STORE_ENDPOINT": f"http://127.0.0.1:{store.port}"}
        router = system.router()
        async with played(router.url, MAC) as connector:
            for text in FOREIGN:
                url = text.replace("OTHER", str(other.port)).replace("STORE", str(store.port))
                for answer in (offer(url, right), offer(right, url)):
                    client = wanting(router.url, MAC, "offload")
                    request_id = await connector.command("get_dataset_offload")
                    assert (await connector.result(request_id, answer)).status == 200
                    refused = await client
                    assert (refused.status, refused.code) == (502, "store_untrusted"), url
                client = wanting(router.url, MAC, "auto")
                request_id = await connector.command("get_dataset_auto")
                await connector.result(request_id, offer(url, url))
                assert (await client).code == "store_untrusted", url
            for text in ("http://127.0.0.1:OTHER/x", "file:///etc/passwd"):
                url = text.replace("OTHER", str(other.port))
                done = await fetched(system, connector, offer(url, right))
                assert done.code == 4, done.out
                assert "nothing was downloaded" in told(done)
                assert list(system.tmp_path.iterdir()) == []
        assert (other.visits, store.visits) == (0, 0)


async def test_s1_the_client_goes_nowhere_but_to_the_store_that_it_pins(system: System) -> None:
    async with place() as other, place() as store:
        right = f"http://127.0.0.1:{store.port}/x"
        system.environ = {"TUNNELSYNC_STORE_ENDPOINT": f"http://127.0.0.1:{store.port}"}
        router = system.router()
        pin = {"TUNNELSYNC_CLIENT_STORE_ORIGIN": f"http://127.0.0.1:{other.port}"}
        async with played(router.url, MAC) as connector:
            done = await fetched(system, connector, offer(right, right), **pin)
        assert done.code == 4, done.out
        assert "pinned" in told(done)
        assert (other.visits, store.visits) == (0, 0)


async def test_s1_a_redirect_is_not_followed(system: System) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "away" in request.query:
            raise web.HTTPFound(f"http://127.0.0.1:{other.port}/x")
        return web.Response(body=DIGESTS if request.path == "/blocks" else DATA)

    async with place() as other, served(answer) as store:
        system.environ = {"TUNNELSYNC_STORE_ENDPOINT": store}
        router = system.router()
        async with played(router.url, MAC) as connector:
            for claimed in (
                offer(f"{store}/data?secret=1&away", f"{store}/blocks?secret=1"),
                offer(f"{store}/data?secret=1", f"{store}/blocks?secret=1&away"),
            ):
                done = await fetched(system, connector, claimed)
                assert done.code == 4, done.out
                assert "redirects" in told(done)
                assert "secret" not in done.out + done.err
                assert list(system.tmp_path.iterdir()) == []
        assert other.visits == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": -1},
        {"count": 2},
        {"count": 10**9},
        {"size": 2**62, "count": 2**40},
        {"root": "blake3-4m:" + "0" * 64},
    ],
)
async def test_s4_an_answer_that_cannot_be_is_refused(
    at_store: System, shelf: Shelf, wrong: dict[str, Any]
) -> None:
    async with played(at_store.url, next(MACS)) as connector:
        answer = replace(claim(shelf, DATA, DIGESTS), **wrong)
        assert await exit_code(connector, answer, at_store.tmp_path / "out") == 7
    assert list(at_store.tmp_path.iterdir()) == []


async def test_an_answer_that_is_no_offload_is_refused(at_store: System) -> None:
    async with played(at_store.url, next(MACS)) as connector:
        for wrong in (
            b"{}",
            b"[]",
            b"{",
            b'{"download_url":1}',
            orjson.dumps({"status": "success"}),
        ):
            client = wanting(at_store.url, connector.mac, "offload")
            request_id = await connector.command("get_dataset_offload")
            reply = await connector.result(request_id, wrong)
            if reply.status != 200:
                assert (reply.status, reply.code) == (400, "bad_request")
                await connector.result(request_id, {})
            answer = await client
            assert (answer.status, answer.code) == (502, "protocol_error"), wrong
