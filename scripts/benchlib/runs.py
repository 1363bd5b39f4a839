"""Runs of several contenders, taken in turns, and what is read out of them.

Turns, because a machine is never quiet: what disturbs one contender then disturbs the others
too, and the ratio between them stays.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

GIB = 2**30
OURS = "tunnelsync"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds from the request to the end, to the first byte; CPU and memory by process.

    ``peak_bytes`` holds the processes that were watched.
    """

    seconds: float
    first_byte_seconds: float | None = None
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to move the same file; ``prepare`` is not part of the time."""

    name: str
    run: Callable[[], Sample]
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class Row:
    """What one size of one mode gave; ``peaks`` in bytes by role."""

    mode: str
    what: str
    size: int
    samples: Mapping[str, Sequence[Sample]]
    peaks: Mapping[str, int]

    @property
    def runs(self) -> int:
        """How often each contender ran."""
        return len(self.samples[OURS])

    @property
    def peers(self) -> list[str]:
        """The others, in the order in which they were named."""
        return [name for name in self.samples if name != OURS]

    def seconds(self, name: str = OURS) -> float:
        """The median time of a contender."""
        return statistics.median(one.seconds for one in self.samples[name])

    def megabytes_per_second(self, name: str = OURS) -> float:
        """The throughput at the median time, in 10**6 bytes per second."""
        return self.size / 1e6 / self.seconds(name)

    def ratio(self, peer: str) -> float:
        """How many times as fast as a peer we are, by the median times: above 1 is faster."""
        return self.seconds(peer) / self.seconds()

    def first_byte_seconds(self, name: str = OURS) -> float | None:
        """The median time to the first byte, where it is known."""
        known = [s.first_byte_seconds for s in self.samples[name]]
        values = [one for one in known if one is not None]
        return statistics.median(values) if values else None

    def cpu_seconds_per_gib(self, name: str = OURS) -> dict[str, float]:
        """The mean CPU time of each process, per GiB moved."""
        samples = self.samples[name]
        roles = samples[0].cpu_seconds
        moved = self.size * len(samples) / GIB
        return {role: sum(s.cpu_seconds[role] for s in samples) / moved for role in roles}

    def as_json(self) -> dict[str, Any]:
        """Return the figures and the raw runs."""
        return {
            "mode": self.mode,
            "what": self.what,
            "size_bytes": self.size,
            "runs": self.runs,
            "peak_bytes": dict(self.peaks),
            "ratios": {name: self.ratio(name) for name in self.peers},
            "ratios_of_paired_runs": {name: self._paired(name) for name in self.peers},
            "contenders": {name: self._figures(name) for name in self.samples},
        }

    def _paired(self, peer: str) -> float:
        pairs = zip(self.samples[OURS], self.samples[peer], strict=True)
        return statistics.median(theirs.seconds / ours.seconds for ours, theirs in pairs)

    def _figures(self, name: str) -> dict[str, Any]:
        return {
            "median_seconds": self.seconds(name),
            "megabytes_per_second": self.megabytes_per_second(name),
            "first_byte_seconds": self.first_byte_seconds(name),
            "cpu_seconds_per_gib": self.cpu_seconds_per_gib(name),
            "raw": [asdict(one) for one in self.samples[name]],
        }


def in_turns(
    contenders: Sequence[Contender], runs: int, deadline: float, ready: Callable[[], object]
) -> dict[str, list[Sample]]:
    """Let each run so many times, every round in another order; ``ready`` comes before each.

    After the first round no other is begun that would probably end after the deadline (by
    ``time.monotonic``).
    """
    samples: dict[str, list[Sample]] = {one.name: [] for one in contenders}
    began = time.monotonic()
    for number in range(runs):
        if number and time.monotonic() + (time.monotonic() - began) / number > deadline:
            break
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            contender.prepare()
            ready()
            samples[contender.name].append(contender.run())
    return samples
