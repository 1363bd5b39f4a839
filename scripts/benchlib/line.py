"""A line of a fixed rate and a long way, in user space and in a process of its own.

It does what a bottleneck between two continents does to TCP: a connection takes a round trip to
open, begins with ten segments on the way, doubles that with each round trip up to what Linux
buffers at most, and begins anew after a silence. All connections share the rate. Run as
``python line.py TARGET_PORT RATE_BYTES ROUND_TRIP_SECONDS``; its port is a line on stdout.
"""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from proxy import Proxy, Way

FIRST_WINDOW_BYTES = 10 * 1460
"""RFC 6928."""
WINDOW_BYTES = 4 * 2**20
"""``tcp_wmem`` of Linux, its last number."""
SILENCE_SECONDS = 1.0
"""After that, slow start begins anew (RFC 2861)."""
READ_BYTES = 64 * 1024


class FixedLine(Proxy):
    """A line that carries ``rate_bytes`` in a second, each way."""

    def __init__(self, target_port: int, rate_bytes: float, round_trip_seconds: float) -> None:
        super().__init__(target_port)
        self.rate_bytes = rate_bytes
        self.one_way_seconds = round_trip_seconds / 2
        self._free_at = dict.fromkeys(Way, 0.0)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, which takes its round trip to open."""
        await asyncio.sleep(2 * self.one_way_seconds)
        await super().connection(reader, writer)

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        """Take what the window allows, and put it down when its time has come."""
        sent = _Window()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        arriving = asyncio.create_task(self._arrive(under_way, sent, writer, way))
        try:
            while not arriving.done():
                await sent.open.wait()
                data = await reader.read(min(READ_BYTES, sent.room))
                if not data:
                    break
                now = asyncio.get_running_loop().time()
                sent.add(len(data), now)
                gone = max(now, self._free_at[way]) + len(data) / self.rate_bytes
                self._free_at[way] = gone
                under_way.put_nowait((gone + self.one_way_seconds, data))
            under_way.put_nowait((0, b""))
            await arriving
        finally:
            arriving.cancel()

    async def _arrive(
        self,
        under_way: "asyncio.Queue[tuple[float, bytes]]",
        sent: "_Window",
        writer: asyncio.StreamWriter,
        way: Way,
    ) -> None:
        loop = asyncio.get_running_loop()
        while (one := await under_way.get())[1]:
            due, data = one
            if (ahead := due - loop.time()) > 0:
                await asyncio.sleep(ahead)
            writer.write(data)
            await writer.drain()
            self.carried[way] += len(data)
            loop.call_later(self.one_way_seconds, sent.acknowledged, len(data))


class _Window:
    """What one connection has on the line, and how much it may."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self._limit = FIRST_WINDOW_BYTES
        self._on_the_line = 0
        self._last = 0.0

    @property
    def room(self) -> int:
        """How many bytes may go."""
        return self._limit - self._on_the_line

    def add(self, count: int, now: float) -> None:
        """So many bytes go."""
        if not self._on_the_line and now - self._last > SILENCE_SECONDS:
            self._limit = FIRST_WINDOW_BYTES
        self._last = now
        self._on_the_line += count
        if self.room <= 0:
            self.open.clear()

    def acknowledged(self, count: int) -> None:
        """So many bytes have come: as many more may go."""
        self._on_the_line -= count
        self._limit = min(WINDOW_BYTES, self._limit + count)
        self.open.set()


async def main(target_port: int, rate_bytes: float, round_trip_seconds: float) -> None:
    """Be a line until we are ended: hardware, which waits for no processor, if we may."""
    with suppress(PermissionError):
        os.nice(-15)
    line = FixedLine(target_port, rate_bytes, round_trip_seconds)
    await line.open()
    sys.stdout.write(f"port {line.port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *map(float, sys.argv[2:4])))
