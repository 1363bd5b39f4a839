"""A proxy that breaks connections in the middle of what they carry, as a bad line does."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from proxy import READ_BYTES, Proxy, Way, in_a_thread


class FaultProxy(Proxy):
    """Connections that carry more than ``cut_after`` bytes one way are reset at that point,
    ``cuts`` times in all; ``cut`` counts those."""

    def __init__(self, target_port: int, *, cut_after: int, cuts: int, way: Way) -> None:
        super().__init__(target_port)
        self.way = way
        self.cut_after = cut_after
        self.cuts = cuts
        self.cut = 0

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        """Pass on what comes, until it is too much."""
        if way is not self.way:
            await super().carry(reader, writer, way)
            return
        carried = 0
        while data := await reader.read(READ_BYTES):
            carried += len(data)
            if carried > self.cut_after and self.cut < self.cuts:
                self.cut += 1
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()


@contextmanager
def fault_proxy(
    target_port: int, *, cut_after: int, cuts: int, way: Way = Way.UP
) -> Iterator[FaultProxy]:
    """Run a proxy in a thread of its own."""
    with in_a_thread(FaultProxy(target_port, cut_after=cut_after, cuts=cuts, way=way)) as proxy:
        yield proxy
