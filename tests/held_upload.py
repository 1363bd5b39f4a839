"""An upload that is held on its way into the store, and what becomes of its dataset meanwhile."""

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import MAC, Process, System, sparse_file, wait_until
from s3 import S3Server
from store_stage import PREFIXES, SECONDS, Fetching, Shelf, environ, running
from tunnelsync.settings import MIB

HOLD_AFTER = 1 * MIB
PART_BYTES = 32 * MIB  # more than all buffers on the way


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
class Held(Fetching):
    """A connector whose way to the store has a gate, and what came of each test's dataset."""

    system: System
    way: Gate
    shelf: Shelf
    name: str = ""
    puts_before: int = 0

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


def shrink(path: Path) -> None:
    os.truncate(path, 1 * MIB)
