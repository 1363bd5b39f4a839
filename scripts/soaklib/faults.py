"""The faults, one short method each, and who plays them: which one comes next is chance's."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence

from soaklib.contents import PATCH_BYTES, Dataset
from soaklib.fetches import Slot
from soaklib.line import Line
from soaklib.stage import Role, Stage
from soaklib.tally import Tally
from tunnelsync.settings import MIB

AT_ONCE = 3
PAUSE_SECONDS = (0.2, 1.0)
FLIP_SECONDS = 4.0

Fault = Callable[["Director"], Awaitable[bool]]
"""Plays a fault to its end; False if there was nothing that it could meet."""


class Director:
    """Plays faults, a few at once at most, and never two on one thing."""

    def __init__(
        self,
        stage: Stage,
        slots: Sequence[Slot],
        tally: Tally,
        chance: random.Random,
        only: Sequence[str] = (),
    ) -> None:
        self.stage = stage
        self.slots = slots
        self.chance = chance
        self._tally = tally
        self._names = list(only or FAULTS)
        self._weights = [FAULTS[name][1] for name in self._names]

    async def play(self, until: float, *, spared: Sequence[Role] = ()) -> None:
        """Play faults until a moment, and wait for the end of each. ``spared`` live on."""
        places = asyncio.Semaphore(AT_ONCE)
        for role in spared:
            role.busy = True
        try:
            async with asyncio.TaskGroup() as tasks:
                while time.monotonic() < until:
                    await places.acquire()
                    (name,) = self.chance.choices(self._names, self._weights)
                    task = tasks.create_task(self._one(name))
                    task.add_done_callback(lambda _: places.release())
                    await asyncio.sleep(self.chance.uniform(*PAUSE_SECONDS))
        finally:
            for role in spared:
                role.busy = False

    async def _one(self, name: str) -> None:
        fault, _ = FAULTS[name]
        self._tally.told(f"fault: {name}")
        self._tally.faults[name] += await fault(self)

    # --- who or what is met -----------------------------------------------------------------

    def idle_line(self, *ends: str) -> Line | None:
        """Return a line with no fault on it, of those whose name has this in it."""
        lines = [
            line
            for name, line in self.stage.lines.items()
            if not line.busy and any(end in name for end in ends)
        ]
        return self.chance.choice(lines) if lines else None

    def dataset(self) -> Dataset | None:
        """Return a dataset to change, one that is being fetched where there is one."""
        fetched = [slot.run.job.dataset for slot in self.slots if slot.run is not None]
        every = fetched if fetched and self.chance.random() < 0.8 else self.stage.datasets
        found = self.chance.choice(every)
        return None if found.changing or found.size < 4 * PATCH_BYTES else found


async def _signalled(director: Director, number: signal.Signals) -> bool:
    """Send a signal to a client; an interrupt only to one that is at work, and heeds it."""
    slots = [
        slot
        for slot in director.slots
        if slot.run and not slot.run.signals and (slot.in_flight or number is signal.SIGKILL)
    ]
    at_work = [slot for slot in slots if slot.in_flight] or slots
    if not at_work:
        return False
    run = director.chance.choice(at_work).run
    assert run is not None
    run.signals.add(number)
    run.process.send_signal(number)
    return True


async def client_killed(director: Director) -> bool:
    return await _signalled(director, signal.SIGKILL)


async def client_interrupted(director: Director) -> bool:
    return await _signalled(director, signal.SIGINT)


async def _away(director: Director, role: Role | None, number: signal.Signals) -> bool:
    if role is None or role.busy:
        return False
    async with director.stage.away(role, number):
        await asyncio.sleep(director.chance.uniform(0.0, 1.5))
    return True


async def connector_killed(director: Director) -> bool:
    role = director.chance.choice(director.stage.connectors)
    return await _away(director, role, signal.SIGKILL)


async def router_killed(director: Director) -> bool:
    return await _away(director, director.stage.router, signal.SIGKILL)


async def router_stopped(director: Director) -> bool:
    return await _away(director, director.stage.router, signal.SIGTERM)


async def store_killed(director: Director) -> bool:
    return await _away(director, director.stage.store, signal.SIGKILL)


async def line_cut(director: Director) -> bool:
    line = director.idle_line("router", "store")
    return line is not None and line.break_all() > 0


async def _on_line(
    director: Director,
    play: Callable[[Line], Awaitable[bool]],
    ends: Sequence[str] = ("router", "store"),
) -> bool:
    line = director.idle_line(*ends)
    if line is None:
        return False
    line.busy = True
    try:
        return await play(line)
    finally:
        line.busy = False


async def line_stalled(director: Director) -> bool:
    seconds = director.chance.uniform(0.5, 3.0)
    return await _on_line(director, lambda line: line.stall(seconds))


async def line_slowed(director: Director) -> bool:
    rate, seconds = director.chance.choice((MIB // 2, 2 * MIB)), director.chance.uniform(1, 4)
    return await _on_line(director, lambda line: line.slow(rate, seconds))


async def byte_flipped(director: Director) -> bool:
    return await _on_line(director, lambda line: line.flip(FLIP_SECONDS), ["of the clients"])


async def _changed(director: Director, change: Callable[[Dataset], None]) -> bool:
    dataset = director.dataset()
    if dataset is None:
        return False
    dataset.changing = True
    try:
        await asyncio.to_thread(change, dataset)
    finally:
        dataset.changing = False
    return True


async def dataset_replaced(director: Director) -> bool:
    return await _changed(director, lambda dataset: dataset.replace(director.chance))


async def dataset_edited(director: Director) -> bool:
    return await _changed(director, lambda dataset: dataset.edit(director.chance))


async def dataset_shortened(director: Director) -> bool:
    return await _changed(director, lambda dataset: dataset.shorten(director.chance))


FAULTS: dict[str, tuple[Fault, int]] = {
    "client killed": (client_killed, 6),
    "client interrupted": (client_interrupted, 6),
    "connector killed": (connector_killed, 3),
    "router killed": (router_killed, 2),
    "router stopped": (router_stopped, 2),
    "store killed": (store_killed, 2),
    "line cut": (line_cut, 6),
    "line stalled": (line_stalled, 3),
    "line slowed": (line_slowed, 3),
    "byte flipped": (byte_flipped, 6),
    "dataset replaced": (dataset_replaced, 2),
    "dataset edited": (dataset_edited, 2),
    "dataset shortened": (dataset_shortened, 1),
}
"""Each fault, and how often it comes beside the others."""
