#!/usr/bin/env python3
"""Measure mode stream beside other relays: one file, from file to file, in turns, on this machine.

Prints a table, and writes all runs and a picture. Linux only: CPU and memory are read from /proc.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from benchlib import install, machine, peers, report, rounds, standings, system
from benchlib.dataset import dataset
from benchlib.processes import BenchFailed, forget_peak, peak_bytes
from benchlib.relays import RELAYS, Relay, versions
from benchlib.rounds import CLIENT, COMMAND, Contender
from benchlib.runs import Sample
from benchlib.ways import RELAY, Run, Setting, measured

OUTPUT, QUICK_OUTPUT = Path("docs/benchmarks"), Path("build/bench")
FULL, QUICK = (2**30, 5), (2**26, 1)
"""Bytes of the file, and rounds."""
WARM_BYTES = 1000
PATH = "connector > ROUTER > client"
VERIFIES = "client (BLAKE3)"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="64 MiB, one round")
@click.option("--rounds", "count", type=click.IntRange(1), help="runs of each; default: 5")
@click.option("--only", type=click.Choice([one.name for one in RELAYS]), multiple=True)
@click.option("--install", "get", is_flag=True, help="get missing peers into the cache before")
@click.option("--output", type=click.Path(path_type=Path), help="folder for what is written")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="for all files")
@click.option("--seconds", default=1800.0, show_default=True, help="no new round after so long")
def main(
    quick: bool,
    count: int | None,
    only: tuple[str, ...],
    get: bool,
    output: Path | None,
    folder: Path | None,
    seconds: float,
) -> None:
    """Measure mode stream beside other relays, and print, keep and draw the figures.

    What is written is peers.json, peers.png and peers.svg, by default in docs/benchmarks, with
    --quick in build/bench. A peer that is not here is left out, with the reason.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    console = report.console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, style="dim")

    install.use_cache()
    chosen = [relay for relay in RELAYS if not only or relay.name in only]
    needed = {name for relay in chosen for name in relay.needs.split()}
    reasons = install.install(needed, say) if get else {}
    size, default_rounds = QUICK if quick else FULL
    try:
        with ExitStack() as stack:
            temporary = Path(tempfile.mkdtemp(prefix="tunnelsync-peers-", dir=folder))
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            if shutil.disk_usage(temporary).free < 4 * size:
                raise BenchFailed(f"too few bytes free in {temporary.parent}")
            facts = machine.facts(temporary, None)
            facts["tools"] |= versions()
            left_out: dict[str, str] = {}
            contenders = entered(temporary, size, chosen, reasons, left_out, stack, say)
            began = time.monotonic()
            left_out |= rounds.play(
                contenders,
                count or default_rounds,
                temporary / "datasets" / f"{size}.bin",
                temporary / "output.bin",
                began + seconds,
                say,
            )
            facts["load_average_at_end"] = os.getloadavg()
            facts["seconds"] = time.monotonic() - began
    except BenchFailed as error:
        console.print(f"error: {error}", markup=False)
        sys.exit(1)
    ran = [one for one in contenders if one.name not in left_out]
    rows = rounds.figures(ran, size)
    document: dict[str, Any] = {
        "machine": facts,
        "options": {"size_bytes": size, "rounds": count or default_rounds, "quick": quick},
        "left_out": {
            name: reason.replace(str(Path.home()), "~") for name, reason in left_out.items()
        },
        "bars": rounds.bars(rows),
        "rows": rows,
    }
    console.print(standings.table(document))
    for bar in document["bars"]:
        console.print(report.bar_line(bar), highlight=False)
    for line in (standings.machine_line(document), *standings.NOTE.splitlines()):
        console.print(line, markup=False, highlight=False)
    for name, reason in document["left_out"].items():
        console.print(f"{name} left out: {reason}", markup=False, highlight=False)
    for path in written(document, output or (QUICK_OUTPUT if quick else OUTPUT), say):
        console.print(f"written: {path}", markup=False, highlight=False)


def _stop(number: int, _: object) -> None:
    """End, once: while all that was started is being ended, no further signal counts."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + number)


def entered(
    folder: Path,
    size: int,
    chosen: Sequence[Relay],
    reasons: dict[str, str],
    left_out: dict[str, str],
    stack: ExitStack,
    say: Callable[[str], None],
) -> list[Contender]:
    """Start everybody, and return who takes part; say in ``left_out`` who does not, and why."""
    datasets, logs = folder / "datasets", folder / "logs"
    for path in (datasets, logs):
        path.mkdir()
    source = dataset(datasets, size, say)
    contenders = list(ours(source, dataset(datasets, WARM_BYTES, say), logs, stack))
    origin = None
    if not peers.found("nginx"):
        origin = stack.enter_context(peers.nginx(datasets, folder / "nginx"))
    setting = Setting(source, origin, folder)
    for relay in chosen:
        if missing := peers.found(*relay.needs.split()):
            why = next((reasons[name] for name in missing if name in reasons), "not installed")
            left_out[relay.name] = f"no {' and no '.join(missing)}: {why}"
            continue
        say(f"starting {relay.name}")
        try:
            run = stack.enter_context(relay.up(setting))
        except BenchFailed as error:
            left_out[relay.name] = str(error)
            continue
        about = (relay.path, relay.verifies, relay.encrypts, relay.reaches_in)
        contenders.append(Contender(relay.name, *about, run))
    return contenders


def ours(source: Path, warm: Path, logs: Path, stack: ExitStack) -> Iterator[Contender]:
    """Start router, connector and client, and return both ways of using them."""
    running = stack.enter_context(
        system.running("stream", source.parent, logs, sync=False, store={})
    )
    router = running.pids["router"]
    # So that no run pays for what is imported or connected on first use.
    running.latencies(warm.name, logs / "warm", 3)
    running.command_seconds(warm.name, logs / "warm")

    def client(path: Path, sync: bool) -> Sample:
        forget_peak(router)
        sample = replace(running, sync=sync).fetch(source.name, path)
        used, first = sample.cpu_seconds["router"], sample.first_byte_seconds
        return Sample(sample.seconds, first, {RELAY: used}, {RELAY: peak_bytes(router)})

    def command(path: Path, sync: bool) -> Sample:
        fetch = replace(running, sync=sync).command_seconds
        return measured(lambda out: fetch(source.name, out), [router])(path, False)

    ways: tuple[tuple[str, Run], ...] = ((CLIENT, client), (COMMAND, command))
    for name, run in ways:
        yield Contender(name, PATH, VERIFIES, "nothing", True, run)


def written(document: dict[str, Any], folder: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """Write the figures and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "peers.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    yield path
    try:
        yield from standings.draw(document, folder)
    except ImportError:
        say("no picture: pip install 'tunnelsync[bench]'")


if __name__ == "__main__":
    main()
