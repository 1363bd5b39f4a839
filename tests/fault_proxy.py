"""A TCP proxy between real processes that breaks connections as a bad line does."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


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

    def hang_up(self) -> None:
        """Break off what is open."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
    with in_a_thread(proxy.connection, proxy.hang_up) as (proxy.url, _):
        yield proxy


@contextmanager
def in_a_thread(
    connection: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    hang_up: Callable[[], None],
) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """Serve connections in a thread of its own; yields the address, and the loop there."""
    started, stop = threading.Event(), asyncio.Event()
    served: list[tuple[str, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        served.append((f"http://127.0.0.1:{port}", asyncio.get_running_loop()))
        started.set()
        async with server:
            await stop.wait()
            hang_up()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield served[0]
    finally:
        served[0][1].call_soon_threadsafe(stop.set)
        thread.join()
