#!/usr/bin/env python3
"""Play faults against a real router, connectors, clients and store, and compare every byte.

Everything runs on this machine as it would elsewhere, with lines between that can be cut,
stalled, slowed, and made to change a byte. Which fault comes when is drawn from a seed. Linux only.
"""

import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # its proxy, and how it makes files: a soak is a test

from soaklib import report  # noqa: E402
from soaklib.faults import FAULTS, Director  # noqa: E402
from soaklib.fetches import Slot, job  # noqa: E402
from soaklib.stage import Stage  # noqa: E402
from soaklib.tally import Tally, Wrong  # noqa: E402

from tunnelsync.cli import demo_store  # noqa: E402
from tunnelsync.cli.demo_parts import Children  # noqa: E402
from tunnelsync.settings import GIB  # noqa: E402

CLIENTS = 4
ROUGH = 0.4
"""The part of the time in which nobody is spared; later the router and a connector live on, so
that what they hold can be compared."""
ROOM_BYTES = 6 * GIB
INSPECT_SECONDS = 0.5
CALM_SECONDS = 150.0
"""What fetches get to end well once the faults have stopped."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=2.0, show_default=True, help="how long faults are played")
@click.option("--seed", type=int, help="what the faults are drawn from; default: a new one")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="the figures, as JSON")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="for all files")
@click.option("-v", "--verbose", is_flag=True, help="tell each fault and each fetch")
@click.option("--only", multiple=True, type=click.Choice(list(FAULTS)), help="only this fault")
@click.option("--keep", is_flag=True, help="leave the folder, with the logs, and say where it is")
def main(
    minutes: float,
    seed: int | None,
    json_path: Path | None,
    folder: Path | None,
    verbose: bool,
    only: tuple[str, ...],
    keep: bool,
) -> None:
    """Play faults for some minutes; exit code 1 if anything was wrong."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    console = report.console()
    console.print(f"seed {seed}, {minutes:g} minutes", highlight=False)
    where = Path(tempfile.mkdtemp(prefix="tunnelsync-soak-", dir=folder))
    try:
        if shutil.disk_usage(where).free < ROOM_BYTES:
            raise click.ClickException(f"less than {ROOM_BYTES // GIB} GiB free in {where.parent}")

        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        tally = Tally(say, verbose=verbose)
        began = time.monotonic()
        try:
            asyncio.run(_heeding_signals(soak(where, seed, minutes * 60, tally, only)))
        except asyncio.CancelledError:
            sys.exit(130)
        for table in report.tables(tally):
            console.print(table)
        for note in tally.notes:
            say(note)
        wrong = sum(tally.wrong.values())
        if json_path is not None:
            figures = report.members(tally, seed=seed, seconds=time.monotonic() - began)
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(json.dumps(figures, indent=1) + "\n")
        say(f"{wrong} things were wrong; make soak SEED={seed}" if wrong else "nothing was wrong")
        sys.exit(1 if wrong else 0)
    finally:
        if keep:
            console.print(f"left: {where}", markup=False, highlight=False)
        else:
            shutil.rmtree(where, ignore_errors=True)


async def _heeding_signals(work: Coroutine[Any, Any, None]) -> None:
    """Run the soak; the first signal cancels it, and no second one hurries its cleaning."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(
            number, lambda: task.cancelling() or task.cancel()
        )
    await work


async def soak(folder: Path, seed: int, seconds: float, tally: Tally, only: Sequence[str]) -> None:
    """Start everything, play faults with a quiet moment in between and one at the end."""
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        ports = stack.enter_context(demo_store.sockets_removed())
        children = stack.enter_context(Children(folder))
        stage = Stage(children, folder, tally)
        stack.push_async_callback(stage.close)
        await stage.start(seed, ports)
        slots = [
            Slot(number, stage, tally, random.Random(seed + number)) for number in range(CLIENTS)
        ]
        director = Director(stage, slots, tally, chance, only)
        await calm(stage, slots)  # whatever is imported or opened on first use is there from now on
        for part, spared in ((ROUGH, ()), (1 - ROUGH, (stage.router, stage.connectors[0]))):
            until = time.monotonic() + part * seconds
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(director.play(until, spared=spared))
                watching = tasks.create_task(watch(stage, slots, chance))
                await fetch_until(until, slots, tally)
                watching.cancel()
            tally.told("calm")
            await calm(stage, slots)


async def fetch_until(until: float, slots: Sequence[Slot], tally: Tally) -> None:
    """Let every client work until a moment, and end well what it was about then."""
    deadline = until + CALM_SECONDS
    working = [asyncio.create_task(slot.work(until)) for slot in slots]
    try:
        _, late = await asyncio.wait(working, timeout=deadline - time.monotonic())
        for slot, task in zip(slots, working, strict=True):
            if task in late:
                about = slot.run.job.way if slot.run else "nothing"
                tally.problem(Wrong.NEVER, f"{slot.name} is still about {about}")
    finally:
        for task in working:
            task.cancel()
        results = await asyncio.gather(*working, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def calm(stage: Stage, slots: Sequence[Slot]) -> None:
    """Fetch once in every mode from every connector, which must succeed; then measure."""
    ways = [("stream", "middle.bin", 2), ("buffer", "odd.bin", 0), ("auto", "middle.bin", 0)]
    if stage.store:
        ways.append(("offload", "odd.bin", 0))
    jobs = [
        job(mode, dataset, parallel=parallel)
        for mode, name, parallel in ways
        for dataset in stage.datasets
        if dataset.name == name
    ]
    queue = iter(jobs)

    async def some(slot: Slot) -> None:
        for one in queue:
            await slot.bring(one, tries=1)

    async with asyncio.TaskGroup() as tasks:
        for slot in slots:
            tasks.create_task(some(slot))
    stage.judge_roles()
    await stage.quiet()
    stage.measure()


async def watch(stage: Stage, slots: Sequence[Slot], chance: random.Random) -> None:
    """Look at targets while they are written, and at what the store takes, for ever."""
    while True:
        await chance.choice(slots).inspect()
        await asyncio.to_thread(stage.look_at_store)
        await asyncio.sleep(INSPECT_SECONDS)


if __name__ == "__main__":
    main()
