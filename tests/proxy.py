"""A TCP proxy between real processes: what every bad line has in common."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import TypeVar

READ_BYTES = 256 * 1024


class Way(Enum):
    """The two ways through a line: towards the target, and from it."""

    UP = auto()
    DOWN = auto()


class Proxy:
    """Passes bytes on, and the end of them too; a kind of line overrides `carry`, and one that
    understands what it carries `connection`.

    ``carried`` counts the bytes that went each way.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.carried = dict.fromkeys(Way, 0)
        self._writers: set[asyncio.StreamWriter] = set()
        self._ways: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """Where it listens, once it is open."""
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        """Listen on a free port."""
        self.loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self.connection, "127.0.0.1", 0, limit=READ_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Break what is open, and listen no more."""
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)  # one that was just accepted is in the list then
        while self._writers:
            self.break_all()  # again, for one may have opened its other end meanwhile
            await asyncio.sleep(0.01)

    def break_from_outside(self) -> None:
        """Reset every connection that is open, from another thread."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.break_all)

    def break_all(self) -> int:
        """Reset every connection that is open; return how many ends there were."""
        for writer in self._writers:
            writer.transport.abort()
        for way in self._ways:
            way.cancel()
        return len(self._writers)

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        """Pass on what comes until it ends; a `ConnectionError` resets both ends."""
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
            self.carried[way] += len(data)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        self._writers.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection(
                "127.0.0.1", self.target_port, limit=READ_BYTES
            )
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        ends = {writer, there_writer}
        self._writers |= ends
        ways = [
            asyncio.create_task(self._through(reader, there_writer, Way.UP)),
            asyncio.create_task(self._through(there_reader, writer, Way.DOWN)),
        ]
        self._ways.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        for one in ways:
            one.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in ends:
            # What was passed on before a clean end is still to go out.
            (end.transport.abort if any(map(_failed, ways)) else end.close)()
        self._ways.difference_update(ways)
        self._writers -= ends

    async def _through(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        await self.carry(reader, writer, way)
        if writer.can_write_eof():
            writer.write_eof()


def _failed(task: "asyncio.Task[None]") -> bool:
    return task.cancelled() or task.exception() is not None


Kind = TypeVar("Kind", bound=Proxy)


@contextmanager
def in_a_thread(proxy: Kind) -> Iterator[Kind]:
    """Run a proxy in a thread of its own, beside a test that blocks."""
    opened = threading.Event()
    stop = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await proxy.open()
        opened.set()
        await stop.wait()
        await proxy.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert opened.wait(10)
    try:
        yield proxy
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()
