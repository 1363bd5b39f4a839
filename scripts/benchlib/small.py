"""Part ``small``: datasets of 1 KB, 64 in flight over one open client of the Python API."""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchlib import system
from benchlib.figures import Figure, Scene, quantile
from benchlib.processes import cpu_seconds
from benchlib.reading import serving
from tunnelsync.client import TunnelSync
from tunnelsync.protocol import Mode

PART = "small"
IN_FLIGHT = 64
ROUNDS = 3
NAME, SMALL_BYTES = "small.bin", 1000
LEAST_RATE = 2000
MOST_MS = 100
Fetch = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Round:
    """So many fetches: how many a second, the seconds of each, the CPU microseconds of each."""

    rate: float
    seconds: list[float]
    cpu: list[float]


def measure(scene: Scene) -> Iterator[Figure]:
    """Yield the figures of this part."""
    (scene.datasets / NAME).write_bytes(os.urandom(SMALL_BYTES))
    rounds, each = (1, 200) if scene.quick else (ROUNDS, 6000)
    with serving(scene) as served:
        pids = (served.router.pid, served.connector.pid, os.getpid())
        found = asyncio.run(_all(served.url, scene.folder, pids, rounds, each))
    for way, runs in found.items():
        middle = sorted(runs, key=lambda one: one.rate)[len(runs) // 2]
        yield Figure(PART, f"{way}: fetches", middle.rate, "/s", LEAST_RATE, least=True)
        ms = 1e3 * quantile(middle.seconds, 0.99)
        yield Figure(PART, f"{way}: p99", ms, "ms", MOST_MS)
        for role, used in zip(system.ROLES, middle.cpu, strict=True):
            yield Figure(PART, f"{way}: {role} CPU of each", used, "us")


async def _all(
    url: str, folder: Path, pids: tuple[int, ...], rounds: int, each: int
) -> dict[str, list[Round]]:
    """Measure every way in turns, after some fetches that nobody counts."""
    # A new name each: ext4 passes over what was deleted in the last seconds, one inode by one.
    names = itertools.count()
    async with TunnelSync(url) as client:

        async def streamed(_: int) -> None:
            async for _block in client.blocks(system.MAC, NAME, mode=Mode.STREAM):
                pass

        ways: dict[str, Fetch] = {
            "stream into memory": streamed,
            "buffer into memory": lambda _: client.read(system.MAC, NAME),
            "stream into files": lambda _: client.fetch(
                system.MAC, NAME, folder / f"{next(names)}.out", mode=Mode.STREAM, sync=False
            ),
        }
        found: dict[str, list[Round]] = {way: [] for way in ways}
        for fetch in ways.values():
            await _round(fetch, pids, 2 * IN_FLIGHT)
        for _ in range(rounds):
            for way, fetch in ways.items():
                found[way].append(await _round(fetch, pids, each))
    return found


async def _round(fetch: Fetch, pids: tuple[int, ...], count: int) -> Round:
    numbers, seconds = iter(range(count)), list[float]()

    async def one_after_the_other() -> None:
        for number in numbers:
            began = time.perf_counter()
            await fetch(number)
            seconds.append(time.perf_counter() - began)

    before, began = [cpu_seconds(pid) for pid in pids], time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))
    took = time.perf_counter() - began
    used = [1e6 * (cpu_seconds(pid) - was) / count for pid, was in zip(pids, before, strict=True)]
    return Round(count / took, seconds, used)
