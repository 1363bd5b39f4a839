"""A download of which nothing is kept: what the way costs, without the disk at its end."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

from tunnelsync.client.incoming import Incoming, Part, Way
from tunnelsync.client.target import Fleeting
from tunnelsync.frames import BLOCK_BYTES


class Nowhere(Fleeting):
    """A sink that drops what is proven. Blocks may come in any order, so by several streams."""

    ordered: ClassVar[bool] = False

    def write(self, index: int, parts: Sequence[bytes]) -> None:
        """Drop a block."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A way to the first ``blocks`` of a dataset, as if there were no more of it.

    Only for a mode that brings parts.
    """

    in_parts: ClassVar[bool] = True
    way: Way
    blocks: int

    @asynccontextmanager
    async def opened(self, part: Part) -> AsyncIterator[Incoming]:
        """Ask for a part of the beginning; raises what the mode does."""
        left = self.blocks - part.first
        count = left if part.count is None else min(left, part.count)
        async with self.way.opened(replace(part, count=count)) as incoming:
            size = min(incoming.version.size, self.blocks * BLOCK_BYTES)
            # The root that is announced is of all the blocks, and says nothing about these.
            yield replace(incoming, version=replace(incoming.version, size=size), root=None)

    def distrust(self, why: str) -> None:
        """Pass it on to the mode."""
        self.way.distrust(why)
