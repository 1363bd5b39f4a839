"""A line between two roles, which the soak cuts, stalls, slows, or lets change a byte."""

import asyncio
import random

from proxy import READ_BYTES, Proxy, Way
from tunnelsync.settings import KIB, MIB

RATE_BYTES = 24 * MIB
"""What a connection carries in a second: so that a fetch lasts long enough to be met by a fault."""
FLIP_FROM_BYTES = 16 * KIB
FLIP_AFTER_BYTES = 4 * KIB
"""A byte is changed in what a read brings only where so much comes at once, and after so much of
it: in a body. Heads are the business of whoever parses HTTP."""


class Line(Proxy):
    """A proxy whose faults begin and end on request."""

    def __init__(self, name: str, target_port: int, chance: random.Random) -> None:
        super().__init__(target_port)
        self.name = name
        self.busy = False
        """Whether a fault of some length is on it."""
        self._chance = chance
        self._rate = float(RATE_BYTES)
        self._flows = asyncio.Event()
        self._flows.set()
        self._flip: asyncio.Future[None] | None = None

    def heal(self) -> None:
        """End every fault."""
        self._flows.set()
        self._rate = RATE_BYTES

    async def stall(self, seconds: float) -> bool:
        """Let no byte through for so long."""
        self._flows.clear()
        await asyncio.sleep(seconds)
        self.heal()
        return True

    async def slow(self, rate_bytes: float, seconds: float) -> bool:
        """Let each connection carry so few bytes in a second, for so long."""
        self._rate = rate_bytes
        await asyncio.sleep(seconds)
        self.heal()
        return True

    async def flip(self, seconds: float) -> bool:
        """Change one byte of what comes from the target next; False if nothing came meanwhile."""
        self._flip = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait([self._flip], timeout=seconds)
        self._flip = None
        return bool(done)

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        """Pass on what comes, with the faults there are at the moment."""
        while data := await reader.read(READ_BYTES):
            await asyncio.sleep(len(data) / self._rate)
            await self._flows.wait()
            if way is Way.DOWN and self._flip and len(data) >= FLIP_FROM_BYTES:
                data = self._flipped(data, self._flip)
            writer.write(data)
            await writer.drain()
            self.carried[way] += len(data)

    def _flipped(self, data: bytes, flip: "asyncio.Future[None]") -> bytes:
        flip.set_result(None)
        self._flip = None
        changed = bytearray(data)
        changed[self._chance.randrange(FLIP_AFTER_BYTES, len(data))] ^= 1 << self._chance.randrange(
            8
        )
        return bytes(changed)
