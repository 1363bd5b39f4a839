"""The report of ``tunnelsync bench`` as lines of text: a bar beside each rate; no I/O."""

import textwrap
from collections.abc import Iterator, Sequence

from tunnelsync.cli.bench_figures import (
    Figures,
    Latency,
    Runs,
    advice,
    duration,
    percentile,
    shown,
    size,
)
from tunnelsync.cli.bench_plan import Dataset
from tunnelsync.cli.output import rate

EIGHTHS = " ▏▎▍▌▋▊▉█"
"""A cell of a bar, filled by so many eighths."""
WIDEST = 100
"""Longer bars tell no more."""
LABEL_WIDTH = 21
LATENCIES = {"router": "router alone", "stat": "stat, with connector"}


def lines(figures: Figures, width: int, *, ascii_only: bool) -> Iterator[str]:
    """Yield the report, of at most ``width`` columns, but never fewer than 50."""
    figures, width = figures.measured(), max(50, min(width, WIDEST))
    received = f"{figures.received_bytes / 1e6:,.1f} MB received in {figures.seconds:.1f} s"
    yield from _wrapped(f"{received}, all verified, none kept", width)
    if figures.by_size:
        yield from _wrapped("with " + ", ".join(_datasets(figures)), width)
    if figures.latencies:
        yield ""
        yield f"{'latency':<{LABEL_WIDTH}}{'median':>8}{'p95':>8}{'p99':>8}{'n':>5}"
        yield from map(_latency, figures.latencies)
    for mode in figures.modes:
        rows = [row for row in figures.by_size if row.mode is mode]
        labels = [size(row.size_bytes) for row in rows]
        yield from ("", f"mode {mode.value}, one stream", _head("size"))
        yield from _barred(labels, rows, width, ascii_only=ascii_only)
        rows = [row for row in figures.by_streams if row.mode is mode]
        if rows:
            labels = [str(row.streams) for row in rows]
            title = f"mode {mode.value}, {size(rows[0].size_bytes)} by several streams"
            yield from ("", title, _head("streams"))
            yield from _barred(labels, rows, width, ascii_only=ascii_only)
    for title, texts in (("what follows", advice(figures)), ("what to know", figures.notes)):
        if texts:
            yield from ("", title)
        for text in texts:
            yield from _wrapped(f"- {text}", width)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)


def _datasets(figures: Figures) -> Iterator[str]:
    """Yield each dataset that was used, and how much of it where not all was."""
    most: dict[Dataset, int] = {}
    for row in [*figures.by_size, *figures.by_streams]:
        one = row.piece.dataset
        most[one] = max(row.size_bytes, most.get(one, 0))
    for one, used_bytes in most.items():
        part = "" if used_bytes == one.size_bytes else f"the first {size(used_bytes)} of "
        yield f"{part}{shown(one)}"


def _latency(row: Latency) -> str:
    label = f"first byte, {row.mode.value}" if row.mode else LATENCIES[row.what]
    samples = row.samples_seconds
    times = [row.median_seconds, percentile(samples, 95), percentile(samples, 99)]
    cells = "".join(f"{'-' if one is None else duration(one):>8}" for one in times)
    return f"{label:<{LABEL_WIDTH}}{cells}{len(samples):>5}"


def _head(what: str) -> str:
    return f"{what:>9}{'median':>9}{'MB/s':>8}{'n':>5}"


def _barred(
    labels: Sequence[str], rows: Sequence[Runs], width: int, *, ascii_only: bool
) -> Iterator[str]:
    """Yield a line for each row, with a bar as long as its rate."""
    fastest = max(row.bytes_per_second for row in rows)
    cells = [
        f"{label:>9} {duration(row.median_seconds):>8} {rate(row.bytes_per_second):>7} "
        f"{len(row.counted_seconds):>4}"
        for label, row in zip(labels, rows, strict=True)
    ]
    space = width - max(map(len, cells)) - 2
    for row, text in zip(rows, cells, strict=True):
        drawn = bar(row.bytes_per_second / fastest, space, ascii_only=ascii_only)
        yield f"{text}  {drawn}".rstrip()


def bar(part: float, width: int, *, ascii_only: bool) -> str:
    """Return a bar that fills a part (0 to 1) of the width; what is not nothing is seen."""
    cells = max(0, width)
    if ascii_only:
        return "#" * max(round(part * cells), 1 if part > 0 and cells else 0)
    eighths = max(round(part * cells * 8), 1 if part > 0 and cells else 0)
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()
