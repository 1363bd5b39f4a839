"""What ``tunnelsync bench`` measures with: which datasets, how much of them, by how many streams.

No I/O. A dataset is brought whole, or its first blocks are: a framed stream takes no other part.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.settings import MIB

SIZES = (1_000, 30_000, 1_000_000, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
"""The sizes looked for; from a block on they can be had of any longer dataset."""
NEAR = 4.0
"""A dataset stands for a size that is at most so many times smaller or larger."""
STREAMS = (1, 2, 4, 8)
ROUNDS = 3
"""Runs that each number of streams should get, if there is time for more than one."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset to measure with."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What one run brings: the first ``blocks`` of a dataset, or all of it for None."""

    dataset: Dataset
    blocks: int | None = None

    @property
    def size_bytes(self) -> int:
        """The bytes that it brings."""
        whole = self.dataset.size_bytes
        return whole if self.blocks is None else min(whole, self.blocks * BLOCK_BYTES)


def nearest(datasets: Iterable[Dataset], most_bytes: int) -> list[Dataset]:
    """Choose the dataset nearest to each of `SIZES`, if one of at most so many bytes is near, and
    the largest of all.

    The smallest comes first. An empty dataset says nothing, and is never chosen.
    """
    there = [one for one in datasets if one.size_bytes]
    chosen = {max(there, key=_size)} if there else set()
    whole = whole_ones(there, most_bytes)
    for size in SIZES if whole else ():
        best = min(whole, key=lambda one: _apart(one.size_bytes, size))
        if _apart(best.size_bytes, size) <= NEAR:
            chosen.add(best)
    return sorted(chosen, key=_size)


def pieces(datasets: Sequence[Dataset], most_bytes: int) -> list[Piece]:
    """Return what one stream brings, the smallest first: each dataset whole, if it has at most so
    many bytes, and beginnings of the largest one."""
    whole = [Piece(one) for one in whole_ones(datasets, most_bytes)]
    largest = max(datasets, key=_size)
    sizes = [size for size in SIZES if BLOCK_BYTES <= size <= min(largest.size_bytes, most_bytes)]
    beginnings = [
        Piece(largest, size // BLOCK_BYTES)
        for size in sizes
        if all(_apart(size, one.size_bytes) >= 2 for one in whole)
    ]
    return sorted([*whole, *beginnings], key=lambda one: one.size_bytes)


def whole_ones(datasets: Sequence[Dataset], most_bytes: int) -> list[Dataset]:
    """Return the datasets that may be brought whole, the smallest first."""
    return sorted((one for one in datasets if 0 < one.size_bytes <= most_bytes), key=_size)


def side_by_side(
    size_bytes: int, bytes_per_second: float, seconds: float, left_bytes: int
) -> tuple[tuple[int, ...], int]:
    """Return the numbers of streams to compare, and how many blocks each run brings.

    All bring the same, which must be a block for each stream, and all runs together take about
    so many seconds and bytes. Without time or bytes for as much as two streams: no numbers.
    """
    budget = min(bytes_per_second * seconds, left_bytes)
    for most in range(len(STREAMS), 1, -1):
        counts = STREAMS[:most]
        step = counts[-1] * BLOCK_BYTES
        if min(size_bytes, budget / most) >= step:
            wanted = max(step, min(size_bytes, SIZES[-1], budget / most / ROUNDS))
            return counts, int(wanted // step) * counts[-1]
    return (), 0


def parse_bytes(text: str) -> int:
    """Return a number of bytes such as ``500MB``, ``2GiB`` or ``1000``; `ValueError` for none."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMG]I?)?B?", text.strip().upper())
    if found is None:
        raise ValueError(text)
    return int(float(found[1]) * UNITS[found[2] or ""])


def _size(dataset: Dataset) -> tuple[int, str]:
    return dataset.size_bytes, dataset.name


def _apart(one: int, other: int) -> float:
    """Return how many times one is larger than the other, whichever it is."""
    return math.exp(abs(math.log(one) - math.log(other)))
