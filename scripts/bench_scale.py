#!/usr/bin/env python3
"""Measure what grows with size, number and distance, and hold it to the bars. Linux only.

Prints a table, and writes all figures. CPU and memory are read from /proc.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from benchlib import (
    first_byte,
    idle,
    lines,
    machine,
    memory,
    pipelined,
    report,
    requests,
    small,
    streams,
)
from benchlib.figures import Figure, Scene, markdown, table
from benchlib.processes import BenchFailed

PARTS = {
    one.PART: one.measure
    for one in (memory, first_byte, small, idle, lines, streams, pipelined, requests)
}
OUTPUT, QUICK_OUTPUT = Path("docs/benchmarks/scale.json"), Path("build/bench/scale.json")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="this part")
@click.option("--quick", is_flag=True, help="a small variant, which judges nothing")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="file of the figures")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="for all files")
@click.option("--markdown", "as_markdown", is_flag=True, help="only print the file for the docs")
def main(
    only: tuple[str, ...],
    quick: bool,
    json_path: Path | None,
    folder: Path | None,
    as_markdown: bool,
) -> None:
    """Measure the parts (default: all), and print and keep the figures.

    The file is docs/benchmarks/scale.json, with --quick build/bench/scale.json. Parts that are
    not measured keep there what they had.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    console = report.console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, style="dim")

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    path = json_path or (QUICK_OUTPUT if quick else OUTPUT)
    document: dict[str, Any] = {"parts": {}}
    if path.exists():
        document = json.loads(path.read_text())
    if as_markdown:
        sys.stdout.write(_for_the_docs(document))
        return
    figures: list[Figure] = []
    try:
        for part in only or PARTS:
            measured, facts = _measured(part, folder, say, quick=quick)
            figures += measured
            document["parts"][part] = {
                "machine": facts,
                "quick": quick,
                "figures": [one.as_json() for one in measured],
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document, indent=1) + "\n")
    except BenchFailed as error:
        console.print(f"error: {error}", markup=False)
        sys.exit(1)
    console.print(table(figures))
    console.print(f"written: {path}", markup=False, highlight=False)


def _stop(number: int, _: object) -> None:
    """End, once: while all that was started is being ended, no further signal counts."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + number)


def _for_the_docs(document: dict[str, Any]) -> str:
    """Return the table of a file, and where each part comes from."""
    parts = {part: document["parts"][part] for part in PARTS if part in document["parts"]}
    figures = []
    for one in parts.values():
        kept = [{key: figure[key] for key in figure if key != "met"} for figure in one["figures"]]
        figures += [Figure(**figure) for figure in kept]
    told = []
    for part, one in parts.items():
        facts = one["machine"]
        start, end = facts["load_average_at_start"][0], facts["load_average_at_end"][0]
        told.append(
            f"{part}: {facts['date']}, load average {start:.1f} to {end:.1f}, nice {facts['nice']}"
        )
    facts = next(iter(parts.values()))["machine"]
    kernel = ".".join(facts["kernel"].split(".")[:2])
    machine = f"{facts['cores_usable']} cores, {facts['cpu']}, Linux {kernel}"
    versions = f"Python {facts['python']}, aiohttp {facts['libraries']['aiohttp']}"
    return f"{markdown(figures)}\n{machine}; {versions}.\n" + ";\n".join(told) + ".\n"


def _measured(
    part: str, folder: Path | None, say: Callable[[str], None], *, quick: bool
) -> tuple[list[Figure], dict[str, Any]]:
    """Measure one part in a folder of its own; return its figures, and where they come from."""
    with ExitStack() as stack:
        temporary = Path(tempfile.mkdtemp(prefix="tunnelsync-scale-", dir=folder))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        scene = Scene(temporary, quick, say)
        for path in (scene.logs, scene.datasets):
            path.mkdir()
        facts = machine.facts(temporary, None)
        say(f"part {part}, load average {facts['load_average_at_start'][0]:.1f}")
        began = time.monotonic()
        figures = []
        for figure in PARTS[part](scene):
            say("  ".join(figure.cells()[1:]))
            figures.append(figure)
        facts["nice"] = os.getpriority(os.PRIO_PROCESS, 0)
        facts["load_average_at_end"] = os.getloadavg()
        facts["seconds"] = time.monotonic() - began
    return figures, facts


if __name__ == "__main__":
    main()
