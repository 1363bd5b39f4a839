"""What ``tunnelsync demo`` prints: one table or one JSON object, and the commands to try."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunnelsync.cli import output
from tunnelsync.cli.demo_data import LARGE, TABLE
from tunnelsync.errors import TunnelSyncError
from tunnelsync.protocol import Mode
from tunnelsync.settings import KIB, MIB

COLUMNS = ("mode", "MAC", "dataset", "size", "seconds", "MB/s", "first\nbyte", "router\npeak")
TEXTS = ("mode", "MAC", "dataset")


@dataclass(frozen=True, slots=True)
class Row:
    """One fetch; ``error`` is None if all of it came and equals its source."""

    mode: Mode
    mac: str
    dataset: str
    size_bytes: int
    router_peak_bytes: int | None
    mode_used: Mode | None = None
    seconds: float | None = None
    first_byte_seconds: float | None = None
    error: TunnelSyncError | None = None

    @property
    def megabytes_per_second(self) -> float | None:
        """The rate in 10**6 bytes per second, None for a fetch that failed."""
        return self.size_bytes / 1e6 / self.seconds if self.seconds else None


def table(rows: Sequence[Row]) -> None:
    """Draw the table; it fits into 80 columns, so a MAC is named by its end."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for column in COLUMNS:
        justify = "left" if column in TEXTS else "right"
        drawn.add_column(column, justify=justify, vertical="bottom", no_wrap=True)  # type: ignore[arg-type]
    drawn.add_column("verified", vertical="bottom")
    for row in rows:
        verdict = Text("NO", "bold red") if row.error else Text("yes", "green")
        drawn.add_row(*map(Text, _cells(row)), verdict)
    Console().print(drawn)


def _cells(row: Row) -> Iterator[str]:
    chosen = row.mode is Mode.AUTO and row.mode_used
    yield f"{row.mode.value}: {chosen.value}" if chosen else row.mode.value
    yield f"..{row.mac[-3:]}"
    yield row.dataset
    yield f"{row.size_bytes / MIB:.0f} MiB" if row.size_bytes >= MIB else _kib(row.size_bytes)
    yield "-" if row.seconds is None else f"{row.seconds:.2f}"
    yield "-" if row.megabytes_per_second is None else output.rate(row.megabytes_per_second * 1e6)
    yield "-" if row.first_byte_seconds is None else f"{row.first_byte_seconds * 1000:.0f} ms"
    yield "-" if row.router_peak_bytes is None else f"{row.router_peak_bytes / MIB:.0f} MiB"


def _kib(size_bytes: int) -> str:
    return f"{size_bytes / KIB:.0f} KiB"


def members(row: Row) -> dict[str, Any]:
    """Return a row for ``--json``: sizes in bytes, times in seconds, without what is not known."""
    known = {
        "mode": row.mode,
        "mode_used": row.mode_used,
        "mac": row.mac,
        "dataset": row.dataset,
        "bytes": row.size_bytes,
        "seconds": row.seconds,
        "megabytes_per_second": row.megabytes_per_second,
        "first_byte_seconds": row.first_byte_seconds,
        "router_peak_bytes": row.router_peak_bytes,
        "verified": row.error is None,
        "error": row.error and row.error.to_wire(),
    }
    return {name: value for name, value in known.items() if value is not None}


def commands(url: str, macs: Sequence[str], modes: frozenset[Mode]) -> Iterator[str]:
    """Yield commands to try, of which a shell can run all in order."""
    program, mac, other = _program(), macs[0], macs[-1]
    yield f"export TUNNELSYNC_ROUTER={url}"
    yield f"{program} connectors"
    yield f"{program} ls {mac}"
    yield f"{program} fetch --mode stream --force {mac} {LARGE}"
    if Mode.OFFLOAD in modes:
        yield f"{program} fetch --mode offload --force {other} {LARGE}"
    yield f"{program} fetch --mode buffer -o - {mac} {TABLE} | tail -n 3"
    yield f"curl -O {url}/datasets/{mac}/{TABLE}"
    yield f"curl -r 0-99 {url}/datasets/{other}/{TABLE}"


def _program() -> str:
    """Return how this program is called from another terminal, where PATH may be another."""
    beside = Path(sys.executable).with_name("tunnelsync")
    if not os.access(beside, os.X_OK):
        return f"{shlex.quote(sys.executable)} -m tunnelsync"
    found = shutil.which("tunnelsync")
    return "tunnelsync" if found and os.path.samefile(found, beside) else shlex.quote(str(beside))


def told(rows: Sequence[Row]) -> None:
    """Tell on stderr why a fetch was not verified."""
    for row in rows:
        if row.error:
            output.say(f"{row.mode.value} {row.dataset} from {row.mac}: {row.error.message}")
