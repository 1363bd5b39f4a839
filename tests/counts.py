"""Counts beside their baselines: what grew by more than its tolerance, and what shrank.

``counts.json`` beside the test holds the baselines for each pair of versions on which counts
depend, and how much each may grow: a share of it, or at least so much.
"""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

PATH = Path(__file__).parent / "system" / "counts.json"
RENEW = "make counts ARGS=--update"
UNKNOWN = "there are no baselines for {}; `" + RENEW + "` writes them"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much a count may grow: ``share`` of its baseline, or ``least`` where that is more."""

    share: float
    least: float = 0.0

    def of(self, baseline: float) -> float:
        """Return the growth that passes."""
        return max(self.share * baseline, self.least)


@dataclass(frozen=True, slots=True)
class Compared:
    """One count, its baseline, and how far it may be from that."""

    name: str
    baseline: float
    measured: float
    tolerance: float

    @property
    def grew(self) -> bool:
        """Whether it is over its baseline by more than its tolerance."""
        return self.measured > self.baseline + self.tolerance

    @property
    def shrank(self) -> bool:
        """Whether it is under its baseline by more than its tolerance."""
        return self.measured < self.baseline - self.tolerance

    def __str__(self) -> str:
        change = self.measured - self.baseline
        share = f" ({change / self.baseline:+.0%})" if self.baseline else ""
        limit = f"tolerance {self.tolerance:.4g}"
        return f"{self.name}: {self.baseline:.4g} -> {self.measured:.4g}{share}, {limit}"


class Baselines:
    """What is in ``counts.json``."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._tolerances: dict[str, dict[str, float]] = document["tolerances"]
        self._by_versions: dict[str, dict[str, float]] = dict(document["baselines"])

    @classmethod
    def read(cls, path: Path = PATH) -> "Baselines":
        """Read the file."""
        return cls(orjson.loads(path.read_bytes()))

    def knows(self, versions: str, names: Collection[str] = ()) -> bool:
        """Whether there are baselines for these versions, and for all of these counts."""
        return versions in self._by_versions and set(names) <= self._by_versions[versions].keys()

    def all(self) -> Mapping[str, Mapping[str, float]]:
        """Return the baselines of all versions."""
        return self._by_versions

    def compare(self, versions: str, measured: Mapping[str, float]) -> list[Compared]:
        """Return each count beside its baseline; raises `KeyError` for one that has none."""
        known = self._by_versions[versions]
        return [
            Compared(name, known[name], count, self.tolerance(name).of(known[name]))
            for name, count in measured.items()
        ]

    def tolerance(self, name: str) -> Tolerance:
        """Return the tolerance of "role, what": its own, or else that of "what"."""
        found = self._tolerances.get(name) or self._tolerances[name.partition(", ")[2]]
        return Tolerance(**found)

    def renew(self, versions: str, measured: Mapping[str, float], path: Path = PATH) -> None:
        """Write the file with new baselines; those not measured, and other versions', stay."""
        old = self._by_versions.get(versions, {})
        self._by_versions[versions] = dict(sorted((old | rounded(measured)).items()))
        document = {
            "tolerances": self._tolerances,
            "baselines": dict(sorted(self._by_versions.items())),
        }
        path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


def rounded(measured: Mapping[str, float]) -> dict[str, float]:
    """Return counts with as many digits as mean something."""
    return {
        name: float(f"{count:.4g}") if count > 0.01 else 0.0 for name, count in measured.items()
    }


def versions_here() -> str:
    """Return the versions on which counts depend, those of Python and aiohttp."""
    aiohttp = ".".join(version("aiohttp").split(".")[:2])
    return f"python {sys.version_info.major}.{sys.version_info.minor}, aiohttp {aiohttp}"


def verdict(compared: list[Compared]) -> str:
    """Return what grew and what to do about it, or nothing."""
    grown = [str(one) for one in compared if one.grew]
    if not grown:
        return ""
    advice = f"find what does more than before; if it is worth it, `{RENEW}` and commit the file"
    return "\n".join(["more work than the baseline allows:", *grown, advice])


def good_news(compared: list[Compared]) -> str:
    """Return what shrank so much that its baseline ought to follow, or nothing."""
    shrunk = [str(one) for one in compared if one.shrank]
    if not shrunk:
        return ""
    return "\n".join([f"less work than the baseline; `{RENEW}` keeps it so:", *shrunk])
