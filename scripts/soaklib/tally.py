"""What the soak has seen: counts of what may happen, and a list of what must not."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum


class Wrong(Enum):
    """What must not happen, however bad the line is."""

    BYTES = "wrong bytes"
    END = "clean ends that were not clean"
    STALE = "older versions than at the beginning"
    TARGET = "targets lost"
    KEPT = "verified blocks not gone on with"
    LEFT = "files left beside a target"
    CODE = "unexpected exit codes"
    NEVER = "fetches that did not end well without faults"
    ROLE = "roles that ended, or did not come back"
    DEFECT = "signs of a defect in logs"
    LEAK = "leaks"


KEPT_PROBLEMS = 100
"""So many problems are told in full; all are counted."""


@dataclass
class Fetches:
    """The runs of one way to fetch. Sizes in bytes."""

    transfers: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    received_bytes: int = 0
    resumed_bytes: int = 0
    retries: int = 0
    repaired: int = 0


@dataclass(frozen=True, slots=True)
class Growth:
    """What a role that lived on held at one quiet moment, and at a later one."""

    role: str
    descriptors: tuple[int, int]
    threads: tuple[int, int]
    rss_bytes: tuple[int, int]
    seconds: float


class Tally:
    """Counts, and tells what is wrong at once; ``say`` prints a line."""

    def __init__(self, say: Callable[[str], None], *, verbose: bool) -> None:
        self.fetches: dict[str, Fetches] = {}
        self.faults: Counter[str] = Counter()
        self.wrong: Counter[Wrong] = Counter()
        self.problems: list[str] = []
        self.growth: list[Growth] = []
        self.notes: list[str] = []
        self.checked = 0
        """Targets and outputs that were read and compared."""
        self._say = say
        self._verbose = verbose
        self._began = time.monotonic()

    def of(self, way: str) -> Fetches:
        """Return the figures of one way to fetch."""
        return self.fetches.setdefault(way, Fetches())

    def told(self, text: str) -> None:
        """Tell what happens, to who wants to know all."""
        if self._verbose:
            self._say(f"{time.monotonic() - self._began:7.2f} s  {text}")

    def note(self, text: str) -> None:
        """Keep what a reader of the table should know."""
        if text not in self.notes:
            self.notes.append(text)

    def problem(self, what: Wrong, text: str) -> None:
        """Count what must not happen, and tell it."""
        self.wrong[what] += 1
        line = f"{time.monotonic() - self._began:.2f} s: {what.value}: {text}"
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(line)
        self._say(f"WRONG at {line}")
