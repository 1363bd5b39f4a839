"""The result for people: a table for each mode, the bars it is held to, and what to know."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchlib.plan import GB, KB, MB
from benchlib.runs import Row

WIDTH = 150
"""Where the output is no terminal; a narrower one folds the cells."""
ROLES = ("router", "connector", "client")


def console() -> Console:
    """Return a console that is wide enough for a table, also in a file."""
    found = Console(soft_wrap=False)
    return found if found.is_terminal else Console(width=WIDTH)


def size_name(size: int) -> str:
    """Return a size as people say it: ``10 KB``, ``64 MiB``."""
    if size % 2**30 == 0:
        return f"{size // 2**30} GiB"
    if size % 2**20 == 0:
        return f"{size // 2**20} MiB"
    for unit, name in ((GB, "GB"), (MB, "MB"), (KB, "KB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} B"


def table(mode: str, rows: Sequence[Row]) -> Table:
    """Return the table of one mode; a peer's cell is its MB/s, and our rate divided by it."""
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    made = Table(title=f"mode {mode}", title_justify="left")
    made.add_column("size", justify="right", no_wrap=True)
    if any(row.what != mode for row in rows):
        made.add_column("what")
    for name in ("runs", "MB/s", "first byte\nms"):
        made.add_column(name, justify="right")
    for name in ("CPU s/GiB\nrouter, connector, client", "peak MB\nrouter, connector, client"):
        made.add_column(name, justify="right")
    for name in peers:
        made.add_column(f"{name}\nMB/s (ours / its)", justify="right")
    for row in rows:
        made.add_row(*_cells(mode, row, rows, peers))
    return made


def _cells(mode: str, row: Row, rows: Sequence[Row], peers: Sequence[str]) -> Iterable[str]:
    yield size_name(row.size)
    if any(one.what != mode for one in rows):
        yield row.what
    yield str(row.runs)
    yield _rate(row.megabytes_per_second())
    first = row.first_byte_seconds()
    yield "" if first is None else f"{first * 1000:.1f}"
    cpu = row.cpu_seconds_per_gib()
    yield "  ".join(f"{cpu[role]:.2f}" if cpu[role] < 10 else f"{cpu[role]:.0f}" for role in ROLES)
    yield "  ".join(f"{row.peaks[role] / MB:.0f}" for role in ROLES)
    for name in peers:
        if name in row.peers:
            yield f"{_rate(row.megabytes_per_second(name))} ([bold]{row.ratio(name):.2f}[/])"
        else:
            yield ""


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def bars(rows: Sequence[Row], latencies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the project promises, as far as it was measured, and whether it held."""
    found: list[dict[str, Any]] = []

    def bar(name: str, value: float, limit: float, *, least: bool = False) -> None:
        met = value >= limit if least else value <= limit
        found.append({"name": name, "value": value, "limit": limit, "met": met})

    for row in rows:
        if row.mode == "stream" and row.size == GB and "nginx+curl" in row.peers:
            ratio = row.ratio("nginx+curl")
            bar("stream 1 GB, verified: rate / nginx+curl, at least", ratio, 0.8, least=True)
    stored = {row.what: row for row in rows if (row.mode, row.size) == ("offload", GB)}
    if both := stored.get("both"):
        alone = min(stored[what].megabytes_per_second() for what in ("upload", "download"))
        ratio = alone / both.megabytes_per_second()
        bar("offload 1 GB, both / the longer of upload and download, at most", ratio, 1.2)
        first = both.first_byte_seconds() or 0.0
        bar("offload 1 GB, both: ms to the first byte, at most", first * 1000, 1000)
    for mode, role, limit in (
        ("stream", "router", 80),
        ("offload", "router", 60),
        ("offload", "connector", 150),
    ):
        peaks = [row.peaks[role] / MB for row in rows if row.mode == mode]
        if peaks:
            bar(f"{mode}: peak MB of the {role}, at most", max(peaks), limit)
    for one in latencies:
        if one["mode"] == "buffer":
            bar("buffer 1 KB: median ms, at most", one["median_seconds"] * 1000, 10)
    return found


def latency_line(one: dict[str, Any]) -> str:
    """Return one line on small datasets."""
    text = (
        f"{size_name(one['size_bytes'])} x {one['runs']}, one after the other, one open client: "
        f"median {one['median_seconds'] * 1000:.2f} ms, 95 % {one['p95_seconds'] * 1000:.2f} ms"
    )
    for name, peer in one["peers"].items():
        text += f"; {name}, one connection: median {peer['median_seconds'] * 1000:.2f} ms"
    return text


def bar_line(one: dict[str, Any]) -> str:
    """Return one line on one promise."""
    word = "[green]held[/]" if one["met"] else "[red]NOT held[/]"
    return f"{word}: {one['name']} {one['limit']:g}: {one['value']:.2f}"
