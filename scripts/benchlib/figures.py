"""One figure of a measurement, the bar it is held to, and the table of all of them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured; ``limit`` is None for what is told and not judged.

    ``least`` turns the bar round: the value must not be below it.
    """

    part: str
    name: str
    value: float
    unit: str
    limit: float | None = None
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is held, if there is one."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.least else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return it for the file."""
        return asdict(self) | {"met": self.met}

    def cells(self) -> tuple[str, ...]:
        """Return it as a row of a table: part, figure, measured, bar, held or not."""
        word = {None: "-", True: "held", False: "MISSED"}[self.met]
        bar = "-"
        if self.limit is not None:
            bar = f"{'at least' if self.least else 'at most'} {self.limit:g}"
        return self.part, self.name, f"{_short(self.value)} {self.unit}", bar, word


HEADS = ("part", "figure", "measured", "bar", "")


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a part measures: its folder, the small variant or the whole, and whom to tell."""

    folder: Path
    quick: bool
    say: Callable[[str], None]

    @property
    def logs(self) -> Path:
        """The folder of what the processes say."""
        return self.folder / "logs"

    @property
    def datasets(self) -> Path:
        """The folder that the connector serves."""
        return self.folder / "datasets"


def table(figures: Sequence[Figure]) -> Table:
    """Return all figures for a terminal."""
    made = Table()
    for head in HEADS:
        made.add_column(head, justify="right" if head == "measured" else "left")
    for figure in figures:
        style = "red" if figure.met is False else None
        made.add_row(*figure.cells(), style=style)
    return made


def markdown(figures: Sequence[Figure]) -> str:
    """Return all figures as a table for the docs."""
    rows = [HEADS, ("---",) * len(HEADS), *(figure.cells() for figure in figures)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which so large a part of them is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
