"""A TCP proxy between real processes that breaks connections as a bad line does."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class FaultProxy:
    """Passes bytes on. Connections that carry more than ``cut_after`` bytes towards the target
    are reset at that point, ``cuts`` times in all; ``cut`` counts those."""

    target_port: int
    cut_after: int = 0
    cuts: int = 0
    cut: int = 0
    url: str = ""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Serve until told to stop."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        async with server:
            await stop.wait()
            for writer in list(self._writers):
                writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        self._writers |= {writer, there_writer}
        ways = (
            asyncio.create_task(self._up(reader, there_writer)),
            asyncio.create_task(_pass(there_reader, writer)),
        )
        with suppress(asyncio.CancelledError):  # the end of a test
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for one in (writer, there_writer):
            one.transport.abort()
            self._writers.discard(one)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried = 0
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                carried += len(data)
                if self.cut_after and carried > self.cut_after and self.cut < self.cuts:
                    self.cut += 1
                    return
                writer.write(data)
                await writer.drain()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextmanager
def fault_proxy(target_port: int, *, cut_after: int, cuts: int) -> Iterator[FaultProxy]:
    """Run a proxy in a thread of its own."""
    proxy = FaultProxy(target_port, cut_after, cuts)
    with in_a_thread(proxy.serve):
        yield proxy


@contextmanager
def in_a_thread(
    serve: Callable[[threading.Event, asyncio.Event], Coroutine[Any, Any, None]],
) -> Iterator[asyncio.AbstractEventLoop]:
    """Serve in a thread of its own, from the first event on until the second."""
    started, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await serve(started, stop)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(10)
    try:
        yield loops[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()
