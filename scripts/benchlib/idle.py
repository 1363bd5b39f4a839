"""Part ``idle``: thousands of connectors that have nothing to do, and a router that restarts."""

import asyncio
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchlib import fleet, system
from benchlib.figures import Figure, Scene, quantile
from benchlib.processes import BenchFailed, Process, cpu_seconds, free_ports, held_bytes
from tunnelsync.settings import RouterSettings

PART = "idle"
FLEET = Path(fleet.__file__)
HEARTBEAT_SECONDS = RouterSettings().heartbeat_seconds
RETURN_SECONDS = 90.0
"""No longer do we wait for the last of them."""
POLL_SECONDS = 0.1
PAUSE_SECONDS = 0.02
"""Between two stats."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many connectors, in how many processes, and how long they are watched."""

    light: int
    processes: int
    real: int
    heartbeats: float
    """So many of them the CPU is read for."""
    stats: int


FULL, QUICK = Size(9990, 2, 10, 2, 1000), Size(300, 1, 1, 0.1, 50)


class Crowd:
    """The light connectors, and the real ones among them."""

    def __init__(self, size: Size, port: int, scene: Scene, stack: ExitStack) -> None:
        share = size.light // size.processes
        self.macs = [fleet.mac(number) for number in range(share * size.processes)]
        self._light = []
        for number in range(size.processes):
            words = (FLEET, str(port), str(number * share), str(share))
            command = (sys.executable, *words)
            self._light.append(stack.enter_context(Process("fleet", command, scene.logs)))
        self._look_at, self._all_here = 0.0, False
        self._real = []
        for number in range(size.real):
            self.macs.append(mac := f"02-00-00-00-01-{number:02x}")
            url = f"http://127.0.0.1:{port}"
            process = system.connector(url, scene.datasets, scene.logs, mac=mac)
            self._real.append(stack.enter_context(process))

    def connected(self, sockets: int) -> int:
        """Return how many are connected; ``sockets`` says the how-manieth of a real one counts."""
        lines = [re.findall(r"connected (\d+) at", process.log()) for process in self._light]
        light = sum(int(one[-1]) for one in lines if one)
        return light + sum(one.log().count("connected to") >= sockets for one in self._real)

    def all_here(self, sockets: int) -> bool:
        """Whether all are connected; reads the logs no more often than need be."""
        if time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + POLL_SECONDS
            self._all_here = self.connected(sockets) == len(self.macs)
        return self._all_here

    def wait(self, sockets: int) -> None:
        """Wait until all are connected."""
        began = time.monotonic()
        while (here := self.connected(sockets)) < len(self.macs):
            if time.monotonic() - began > RETURN_SECONDS:
                raise BenchFailed(f"only {here} of {len(self.macs)} connected")
            time.sleep(POLL_SECONDS)


def measure(scene: Scene) -> Iterator[Figure]:
    """Yield the figures of this part."""
    size = QUICK if scene.quick else FULL
    (scene.datasets / "small.bin").write_bytes(bytes(1000))
    with ExitStack() as stack:
        (port,) = free_ports(1)
        with system.router(scene.logs, port=port) as router:
            system.address(router)
            empty, before = held_bytes(router.pid), cpu_seconds(router.pid)
            crowd = Crowd(size, port, scene, stack)
            count = len(crowd.macs)
            scene.say(f"{count} connectors come")
            crowd.wait(1)
            used = cpu_seconds(router.pid) - before
            yield Figure(PART, "router CPU for each that connects", 1e6 * used / count, "us")
            yield from _idle(router, size, count, empty, scene)
            seconds = asyncio.run(_stats(port, crowd.macs, lambda begun: begun >= size.stats))
            if len(seconds) < size.stats:
                raise BenchFailed(f"only {len(seconds)} of {size.stats} stats were answered")
            yield from _latencies("stat of a dataset of any of them", seconds)
            scene.say("the router restarts")
        down = time.monotonic()
        router = stack.enter_context(system.router(scene.logs, port=port))
        system.address(router)
        up = time.monotonic()
        over = up + RETURN_SECONDS
        seconds = asyncio.run(
            _stats(port, crowd.macs, lambda _: time.monotonic() > over or crowd.all_here(2))
        )
        crowd.wait(2)
        back = time.monotonic()
    yield Figure(PART, "all back after the router is up again", back - up, "s", 30)
    yield Figure(PART, "all back after the old router has ended", back - down, "s")
    yield from _latencies("stat while they come back", seconds)


def _idle(router: Process, size: Size, count: int, empty: int, scene: Scene) -> Iterator[Figure]:
    scene.say("they are idle")
    time.sleep(HEARTBEAT_SECONDS * min(1, size.heartbeats))
    used, began = cpu_seconds(router.pid), time.monotonic()
    time.sleep(HEARTBEAT_SECONDS * size.heartbeats)
    share = (cpu_seconds(router.pid) - used) / (time.monotonic() - began)
    held = (held_bytes(router.pid) - empty) / count
    yield Figure(PART, f"router memory for each of {count:,}", held / 1000, "KB", 20)
    yield Figure(PART, "router CPU for their heartbeats", 100 * share, "% of a core", 5)


async def _stats(port: int, macs: Sequence[str], until: Callable[[int], bool]) -> list[float]:
    """Ask one of them after the other for a dataset's version; return the seconds of each answer.

    Another stat begins every so often, however long the last one takes. Who is not connected
    does not count. ``until`` is told how many have begun.
    """
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    found: list[float] = []

    async def one(mac: str) -> None:
        link = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        began = time.perf_counter()
        link[1].write(
            f"HEAD /datasets/{mac}/small.bin HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        )
        head = await link[0].readuntil(b"\r\n\r\n")
        if b" 200 " in head[:20]:
            found.append(time.perf_counter() - began)
        idle.append(link)

    begun = 0
    async with asyncio.TaskGroup() as group:
        while not until(begun):
            group.create_task(one(random.choice(macs)))
            begun += 1
            await asyncio.sleep(PAUSE_SECONDS)
    for _, writer in idle:
        writer.close()
    return found


def _latencies(name: str, seconds: Sequence[float]) -> Iterator[Figure]:
    yield Figure(PART, f"{name}, median", 1000 * statistics.median(seconds), "ms", 20)
    yield Figure(PART, f"{name}, 99 %", 1000 * quantile(seconds, 0.99), "ms", 20)
    yield Figure(PART, f"{name}, slowest of {len(seconds)}", 1000 * max(seconds), "ms")
