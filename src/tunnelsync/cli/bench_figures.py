"""What ``tunnelsync bench`` has measured, and what follows from it; no I/O.

A figure is a median; the rate is that of the median time, from the request to the last verified
block. What is concluded is said in words, and only what the figures hold.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunnelsync.cli.bench_plan import Dataset, Piece
from tunnelsync.protocol import Mode, printable

GAIN = 1.2
"""A number of streams that is faster by less than this is not worth a word: runs differ as much."""
NEARLY = 0.95
"""Fewer streams that reach this part of the best rate are as good."""
FEW = 3
"""Fewer runs than that make a median that the next bench may not see again."""
UNSTEADY = 2.0
"""Runs of one thing that differ by more than this make every conclusion doubtful."""


def percentile(samples: Sequence[float], percent: int) -> float | None:
    """Return the nearest-rank percentile, or None if it would be no more than the largest sample:
    that of 95 needs 20 samples, that of 99 needs 100."""
    if len(samples) * (100 - percent) < 100:
        return None
    return sorted(samples)[math.ceil(len(samples) * percent / 100) - 1]


@dataclass(slots=True)
class Latency:
    """How long something small took: ``what`` is router, stat or first_byte."""

    what: str
    mode: Mode | None = None
    samples_seconds: list[float] = field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        """The median; there must be a sample."""
        return statistics.median(self.samples_seconds)


@dataclass(slots=True)
class Runs:
    """The runs that brought the same bytes in the same way.

    The first one finds the dataset on a disk, or not yet in the store; it does not count where
    there are others, but for runs that others have warmed (``warm``).
    """

    mode: Mode
    piece: Piece
    streams: int = 1
    warm: bool = False
    samples_seconds: list[float] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """What each of them brought."""
        return self.piece.size_bytes

    @property
    def counted_seconds(self) -> Sequence[float]:
        """The runs that count."""
        first = 0 if self.warm or len(self.samples_seconds) == 1 else 1
        return self.samples_seconds[first:]

    @property
    def median_seconds(self) -> float:
        """The median of the runs that count; there must be one."""
        return statistics.median(self.counted_seconds)

    @property
    def bytes_per_second(self) -> float:
        """The rate of the median."""
        return self.size_bytes / self.median_seconds


@dataclass(slots=True)
class Figures:
    """All that was measured. Rows without a sample are left out by `measured`."""

    latencies: list[Latency] = field(default_factory=list)
    by_size: list[Runs] = field(default_factory=list)
    by_streams: list[Runs] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    received_bytes: int = 0
    seconds: float = 0.0

    def measured(self) -> "Figures":
        """Return the figures without rows that have no sample."""
        return Figures(
            [row for row in self.latencies if row.samples_seconds],
            [row for row in self.by_size if row.samples_seconds],
            [row for row in self.by_streams if row.samples_seconds],
            self.notes,
            self.received_bytes,
            self.seconds,
        )

    @property
    def modes(self) -> list[Mode]:
        """The modes that were measured, in their order."""
        return list(dict.fromkeys(row.mode for row in self.by_size))


def advice(figures: Figures) -> list[str]:
    """Return what follows from the figures, a sentence each."""
    return [
        *_of_latency(figures),
        *_of_sizes(figures),
        *_of_streams(figures),
        *_of_modes(figures),
        *_of_spread(figures),
    ]


def _of_latency(figures: Figures) -> Iterator[str]:
    by = {row.what: row.median_seconds for row in figures.latencies if row.mode is None}
    if {"router", "stat"} <= by.keys():
        more = max(0.0, by["stat"] - by["router"])
        yield (
            f"A request takes {duration(by['router'])} to the router and back, and "
            f"{duration(more)} more with the connector."
        )


def _of_sizes(figures: Figures) -> Iterator[str]:
    for mode in figures.modes:
        rows = [row for row in figures.by_size if row.mode is mode]
        best = max(row.bytes_per_second for row in rows)
        half = min(row.size_bytes for row in rows if row.bytes_per_second >= best / 2)
        smaller = [row for row in rows if row.size_bytes < half]
        if smaller:
            yield (
                f"Mode {mode.value} comes to more than half of its best rate from {size(half)} on; "
                f"{size(smaller[0].size_bytes)} takes {duration(smaller[0].median_seconds)}, which "
                "is mostly waiting."
            )


def _of_streams(figures: Figures) -> Iterator[str]:
    for mode in dict.fromkeys(row.mode for row in figures.by_streams):
        rows = {row.streams: row for row in figures.by_streams if row.mode is mode}
        if 1 not in rows or len(rows) < 2:
            continue
        rates = {count: row.bytes_per_second for count, row in rows.items()}
        few = any(len(row.counted_seconds) < FEW for row in rows.values())
        doubt = " These were few runs; --time or --max-bytes may allow more." if few else ""
        yield f"Mode {mode.value}: {_found(rates)}{doubt}"


def _found(rates: Mapping[int, float]) -> str:
    """Say what the rates of several streams mean; one stream is among them."""
    best = max(rates.values())
    fewest = min(count for count, rate in rates.items() if rate >= NEARLY * best)
    worst = min(rates, key=rates.__getitem__)
    gain, loss = rates[fewest] / rates[1], rates[1] / rates[worst]
    if fewest > 1 and gain >= GAIN:
        return (
            f"{fewest} streams are {gain:.1f} times as fast as one: "
            f"use --parallel {fewest} for large datasets."
        )
    if fewest == 1 and loss >= GAIN:
        return (
            f"one stream is as fast as any, and {loss:.1f} times as fast as {worst}: "
            "use --parallel 1."
        )
    return f"several streams are less than {GAIN} times as fast as one: leave --parallel alone."


def _of_modes(figures: Figures) -> Iterator[str]:
    for other in figures.modes[1:]:
        pairs = [
            (one, two)
            for one in figures.by_size
            for two in figures.by_size
            if (one.mode, two.mode) == (figures.modes[0], other) and one.piece == two.piece
        ]
        if pairs:
            one, two = max(pairs, key=lambda pair: pair[0].size_bytes)
            yield (
                f"{size(one.size_bytes)} comes in mode {two.mode.value} at "
                f"{two.bytes_per_second / one.bytes_per_second:.2f} times the rate of mode "
                f"{one.mode.value}."
            )


def _of_spread(figures: Figures) -> Iterator[str]:
    rows = [row for row in [*figures.by_size, *figures.by_streams] if len(row.counted_seconds) > 1]
    spreads = [
        (max(row.counted_seconds) / min(row.counted_seconds), row)
        for row in rows
        if row.size_bytes >= 10**6
    ]
    if spreads and (found := max(spreads, key=lambda one: one[0]))[0] > UNSTEADY:
        spread, row = found
        yield (
            f"Runs differ: of {size(row.size_bytes)} in mode {row.mode.value} the slowest took "
            f"{spread:.1f} times as long as the fastest. Other load on the line or the machines?"
        )


def members(figures: Figures) -> dict[str, Any]:
    """Return the figures for ``--json``: sizes in bytes, times in seconds."""
    return {
        "seconds": figures.seconds,
        "received_bytes": figures.received_bytes,
        "latency": [
            {
                "what": row.what,
                "mode": row.mode,
                "samples": len(row.samples_seconds),
                "median_seconds": row.median_seconds,
                "p95_seconds": percentile(row.samples_seconds, 95),
                "p99_seconds": percentile(row.samples_seconds, 99),
                "samples_seconds": row.samples_seconds,
            }
            for row in figures.latencies
        ],
        "by_size": [_run_members(row) for row in figures.by_size],
        "by_streams": [_run_members(row) for row in figures.by_streams],
        "advice": advice(figures),
        "notes": figures.notes,
    }


def _run_members(row: Runs) -> dict[str, Any]:
    return {
        "mode": row.mode,
        "dataset": row.piece.dataset.name,
        "dataset_bytes": row.piece.dataset.size_bytes,
        "bytes": row.size_bytes,
        "streams": row.streams,
        "runs": len(row.counted_seconds),
        "median_seconds": row.median_seconds,
        "bytes_per_second": row.bytes_per_second,
        "first_seconds": row.samples_seconds[0],
        "samples_seconds": row.counted_seconds,
    }


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.{1 if seconds < 0.1 else 0}f} ms"
    return f"{seconds:.{2 if seconds < 10 else 1}f} s"


def size(size_bytes: int) -> str:
    """Return a size for people: in MiB where it is whole MiB, else in decimal units."""
    if size_bytes >= 2**20 and size_bytes % 2**20 == 0:
        return f"{size_bytes >> 20} MiB"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{value:.{1 if value < 99.95 else 0}f}".removesuffix(".0") + f" {unit}"
    return f"{size_bytes} B"


def shown(dataset: Dataset) -> str:
    """Return a dataset's name and size for people."""
    name = dataset.name if dataset.name.isprintable() else printable(dataset.name)
    return f"{name} ({size(dataset.size_bytes)})"
