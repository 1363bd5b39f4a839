"""The result of a soak: tables for people, figures for programs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from soaklib.tally import Tally, Wrong
from tunnelsync.settings import MIB

WIDTH = 120
"""Where the output is no terminal; a narrower one folds the cells."""


def console() -> Console:
    """Return a console that is wide enough for a table, also in a file."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


def tables(tally: Tally) -> Iterator[Table]:
    """Yield the tables: what ran, what was done to it, what was held, and what was wrong."""
    yield _fetches(tally)
    faults = _table("faults", "fault", "times")
    for name, times in sorted(tally.faults.items()):
        faults.add_row(name, f"{times:,}")
    yield faults
    growth = _table(
        "roles that lived on, from one quiet moment to another",
        *("role", "seconds", "descriptors", "threads", "RSS MiB"),
    )
    for one in tally.growth:
        rss = tuple(round(held / MIB) for held in one.rss_bytes)
        pairs = (f"{a} -> {b}" for a, b in (one.descriptors, one.threads, rss))
        growth.add_row(one.role, f"{one.seconds:.0f}", *pairs)
    yield growth
    wrong = _table(f"{tally.checked:,} targets and outputs compared", "must be 0", "times")
    for what in Wrong:
        times = tally.wrong[what]
        wrong.add_row(what.value, Text(f"{times:,}", "bold red" if times else "green"))
    yield wrong


def _fetches(tally: Tally) -> Table:
    columns = ("transfers", "exit codes", "MiB\nreceived", "MiB\nresumed", "blocks\nrepaired")
    made = _table("fetches", "mode", *columns, "retries")
    for way, one in sorted(tally.fetches.items()):
        codes = ", ".join(f"{code}: {times}" for code, times in sorted(one.codes.items()))
        sizes = (f"{one.received_bytes / MIB:,.0f}", f"{one.resumed_bytes / MIB:,.0f}")
        made.add_row(way, f"{one.transfers:,}", codes, *sizes, f"{one.repaired}", f"{one.retries}")
    every = tally.fetches.values()
    made.add_section()
    made.add_row(
        *("all", f"{sum(one.transfers for one in every):,}", ""),
        f"{sum(one.received_bytes for one in every) / MIB:,.0f}",
        f"{sum(one.resumed_bytes for one in every) / MIB:,.0f}",
        f"{sum(one.repaired for one in every):,}",
        f"{sum(one.retries for one in every):,}",
    )
    return made


def _table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        text = number == 0 or column == "exit codes"
        made.add_column(column, justify="left" if text else "right", vertical="bottom")
    return made


def members(tally: Tally, *, seed: int, seconds: float) -> dict[str, Any]:
    """Return all figures for ``--json``."""
    return {
        "seed": seed,
        "seconds": round(seconds, 3),
        "fetches": {way: vars(one) for way, one in tally.fetches.items()},
        "faults": dict(tally.faults),
        "growth": [asdict(one) for one in tally.growth],
        "compared": tally.checked,
        "wrong": {what.value: tally.wrong[what] for what in Wrong},
        "problems": tally.problems,
        "notes": tally.notes,
    }
