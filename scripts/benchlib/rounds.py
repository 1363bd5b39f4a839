"""Rounds of all contenders on one file, and the figures that come out of them.

In turns, as in `benchlib.runs`; but shuffled, so that nobody always runs behind the same one. A
contender that fails is left out with a reason, and each output is compared with the file and
removed before the next one runs.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchlib.dataset import touch_memory
from benchlib.processes import BenchFailed
from benchlib.runs import GIB, Sample
from benchlib.ways import RELAY, Run

COMPARE_BYTES = 2**20
CLIENT, COMMAND = "tunnelsync, open client", "tunnelsync fetch"
"""We, as a client of the Python API that is open already, and as a whole command."""
OURS = (CLIENT, COMMAND)
PLAIN, SYNCED = "plain", "synced"
RATE_BAR, SOCAT_BAR, PEAK_BAR_BYTES = 1.2, 0.7, 60_000_000


@dataclass(frozen=True)
class Contender:
    """One that runs, and what a reader must know about it."""

    name: str
    path: str
    verifies: str
    encrypts: str
    reaches_in: bool
    run: Run
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {PLAIN: [], SYNCED: []})


def play(
    contenders: Sequence[Contender],
    rounds: int,
    source: Path,
    output: Path,
    deadline: float,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Let each run so many times without and with a final sync, and return why some failed.

    After the first round none begins that would probably end after the deadline.
    """
    failed: dict[str, str] = {}
    turns = [(one, how) for how in (PLAIN, SYNCED) for one in contenders]
    began = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() + (time.monotonic() - began) / number > deadline:
            say(f"time is up after {number} rounds")
            break
        for one, how in random.Random(number).sample(turns, len(turns)):
            if one.name in failed:
                continue
            try:
                one.samples[how].append(_checked(one, how, source, output))
            except (BenchFailed, OSError) as error:
                if one.name in OURS:
                    raise
                failed[one.name] = f"failed in round {number + 1}: {error}"
                continue
            rate = source.stat().st_size / 1e6 / one.samples[how][-1].seconds
            say(f"round {number + 1}: {one.name}, {how}: {rate:.0f} MB/s")
    return failed


def _checked(one: Contender, how: str, source: Path, output: Path) -> Sample:
    touch_memory(output.with_name("scratch"), source.stat().st_size)
    try:
        sample = one.run(output, how == SYNCED)
        if not _same(source, output):
            raise BenchFailed("what arrived is not what was sent")
    finally:
        output.unlink(missing_ok=True)
    return sample


def _same(one: Path, other: Path) -> bool:
    if not other.exists():
        return False
    with one.open("rb", buffering=0) as left, other.open("rb", buffering=0) as right:
        while part := left.read(COMPARE_BYTES):
            if part != right.read(COMPARE_BYTES):
                return False
        return not right.read(1)


def figures(contenders: Sequence[Contender], size: int) -> list[dict[str, Any]]:
    """Return a row for each contender, the fastest first."""
    ours = {one.name: one for one in contenders if one.name in OURS}
    rows = [_row(one, ours, size) for one in contenders]
    return sorted(rows, key=lambda row: float(row[PLAIN]["median_seconds"]))


def _row(one: Contender, ours: dict[str, Contender], size: int) -> dict[str, Any]:
    samples = [*one.samples[PLAIN], *one.samples[SYNCED]]
    relayed = [sample for sample in samples if RELAY in sample.cpu_seconds]
    used = [sample.cpu_seconds[RELAY] * GIB / size for sample in relayed]
    return {
        "name": one.name,
        "path": one.path,
        "verifies": one.verifies,
        "encrypts": one.encrypts,
        "reaches_a_machine_without_inbound_connections": one.reaches_in,
        "relay_cpu_seconds_per_gib": statistics.mean(used) if used else None,
        "relay_peak_bytes": max((s.peak_bytes[RELAY] for s in relayed), default=None),
        **{how: _times(one, how, ours, size) for how in (PLAIN, SYNCED)},
    }


def _times(one: Contender, how: str, ours: dict[str, Contender], size: int) -> dict[str, Any]:
    seconds = sorted(sample.seconds for sample in one.samples[how])
    median = statistics.median(seconds)
    return {
        "runs": len(seconds),
        "median_seconds": median,
        "megabytes_per_second": size / 1e6 / median,
        "megabytes_per_second_slowest": size / 1e6 / seconds[-1],
        "megabytes_per_second_fastest": size / 1e6 / seconds[0],
        "our_rate_divided_by_its": {
            name: median / statistics.median(sample.seconds for sample in we.samples[how])
            for name, we in ours.items()
            if one.name not in OURS
        },
        "the_same_of_paired_runs": {
            name: statistics.median(
                its.seconds / ours.seconds
                for its, ours in zip(one.samples[how], we.samples[how], strict=True)
            )
            for name, we in ours.items()
            if one.name not in OURS
        },
        "raw": [asdict(sample) for sample in one.samples[how]],
    }


def bars(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the project promises beside these peers, and whether it held.

    Rates are those of the open client.
    """
    by_name = {row["name"]: row for row in rows}
    found: list[dict[str, Any]] = []

    def bar(name: str, value: float, limit: float, *, least: bool) -> None:
        met = value >= limit if least else value <= limit
        found.append({"name": name, "value": value, "limit": limit, "met": met})

    inside = "reaches_a_machine_without_inbound_connections"
    relays = [row for row in rows if row[inside] and row["name"] not in OURS]
    nginx, socat = by_name.get("nginx as a proxy"), by_name.get("socat")
    for how in (PLAIN, SYNCED):
        fastest = min(relays, key=lambda row: float(row[how]["median_seconds"]), default=None)
        for row, limit in ((fastest, RATE_BAR), (nginx, RATE_BAR), (socat, SOCAT_BAR)):
            if row:
                ratio = float(row[how]["our_rate_divided_by_its"][CLIENT])
                bar(f"{how}: rate / that of {row['name']}, at least", ratio, limit, least=True)
    we = by_name[CLIENT]
    if nginx:
        used = "relay_cpu_seconds_per_gib"
        bar(
            "router's CPU / that of nginx as a proxy, at most",
            we[used] / nginx[used],
            1,
            least=False,
        )
    peak, limit = we["relay_peak_bytes"] / 1e6, PEAK_BAR_BYTES / 1e6
    bar("router's peak MB with one stream, at most", peak, limit, least=False)
    return found
