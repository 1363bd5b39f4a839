"""What is measured, and how often: sizes, runs and limits, as the options ask."""

import time
from dataclasses import dataclass
from pathlib import Path

KB, MB, GB = 10**3, 10**6, 10**9
SIZES = tuple(10 * KB * 10**power for power in range(6))
"""10 KB to 1 GB, each ten times the last."""
BUFFER_CAP_BYTES = 64 * 2**20
"""The largest dataset of mode buffer (``dataset_buffer_bytes``), and its last size here."""
LATENCY_BYTES = KB
RUNS = ((100 * KB, 30, 5), (MB, 20, 3), (10 * MB, 10, 3), (BUFFER_CAP_BYTES, 7, 2), (GB, 5, 2))
"""Up to this size so many runs, and so many with ``--quick``: small ones vary most."""
MODES = ("buffer", "stream", "offload")


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of one bench; times in seconds, ``deadline`` by ``time.monotonic``."""

    modes: tuple[str, ...]
    max_bytes: int
    runs_asked: int | None
    quick: bool
    sync: bool
    deadline: float
    folder: Path

    @property
    def latency_runs(self) -> int:
        """How many small datasets are fetched one after the other."""
        return 50 if self.quick else 300

    def sizes(self, mode: str) -> list[int]:
        """Return the sizes of a mode, smallest first."""
        sizes = [size for size in SIZES if size <= self.max_bytes]
        if mode != "buffer":
            return sizes
        capped = [size for size in sizes if size < BUFFER_CAP_BYTES]
        return [*capped, *([BUFFER_CAP_BYTES] if self.max_bytes >= BUFFER_CAP_BYTES else [])]

    def runs(self, size: int) -> int:
        """Return how often a size is to be run."""
        if self.runs_asked:
            return self.runs_asked
        for limit, full, quick in RUNS:
            if size <= limit:
                return quick if self.quick else full
        return 1

    def row_deadline(self) -> float:
        """Return until when rounds of the next row may begin."""
        return min(self.deadline, time.monotonic() + (3 if self.quick else 30))
