"""A proxy that is a long line: bytes take their time, and each connection has a small window.

It does in user space what a network between two continents does to TCP. One connection carries
at most ``window_bytes`` in one round trip, whatever the line could take; several carry more.
"""

import asyncio
from collections import deque

from proxy import READ_BYTES, Proxy, Way


class LongLine(Proxy):
    """Delays each byte by ``delay_seconds`` each way; a way of a connection has at most
    ``window_bytes`` on the line whose acknowledgement has not come back."""

    def __init__(self, target_port: int, *, delay_seconds: float, window_bytes: int) -> None:
        super().__init__(target_port)
        self.delay_seconds = delay_seconds
        self.window_bytes = window_bytes

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        """Take what the window allows, and put it down on the other side when its time has come."""
        loop = asyncio.get_running_loop()
        on_the_line = 0
        moved = asyncio.Event()
        under_way: deque[tuple[float, bytes]] = deque()
        ended = False

        def acknowledged(count: int) -> None:
            nonlocal on_the_line
            on_the_line -= count
            moved.set()

        async def arrive() -> None:
            while not ended or under_way:
                if not under_way:
                    moved.clear()
                    await moved.wait()
                    continue
                due, data = under_way[0]
                await asyncio.sleep(due - loop.time())
                writer.write(data)
                await writer.drain()
                under_way.popleft()
                self.carried[way] += len(data)
                loop.call_later(self.delay_seconds, acknowledged, len(data))

        arriving = asyncio.create_task(arrive())
        arriving.add_done_callback(lambda _: moved.set())
        try:
            while not arriving.done():
                if on_the_line >= self.window_bytes:
                    moved.clear()
                    await moved.wait()
                    continue
                data = await reader.read(min(READ_BYTES, self.window_bytes - on_the_line))
                if not data:
                    break
                on_the_line += len(data)
                under_way.append((loop.time() + self.delay_seconds, data))
                moved.set()
            ended = True
            moved.set()
            await arriving
        finally:
            arriving.cancel()
