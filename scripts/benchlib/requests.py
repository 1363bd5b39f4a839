"""Part ``requests``: what a small request costs the router, at first and after very many."""

import asyncio
import time
from collections.abc import Iterator

from benchlib import system
from benchlib.figures import Figure, Scene
from benchlib.processes import BenchFailed, cpu_seconds, held_bytes
from benchlib.reading import serving, sparse

PART = "requests"
LINES = 8
SMALL_BYTES = 1000
FLAT = 1.1


def measure(scene: Scene) -> Iterator[Figure]:
    """Yield the figures of this part."""
    windows, each = (3, 100) if scene.quick else (10, 10_000)
    dataset = sparse(scene, SMALL_BYTES)
    with serving(scene) as served:
        asyncio.run(asked(served.port, dataset, 2 * LINES))
        pids = (served.router.pid, served.connector.pid)
        cpu: dict[int, list[float]] = {pid: [] for pid in pids}
        held: dict[int, list[int]] = {pid: [held_bytes(pid)] for pid in pids}
        began = time.monotonic()
        for _ in range(windows):
            before = [cpu_seconds(pid) for pid in pids]
            asyncio.run(asked(served.port, dataset, each))
            for pid, was in zip(pids, before, strict=True):
                cpu[pid].append((cpu_seconds(pid) - was) / each)
                held[pid].append(held_bytes(pid))
        rate = windows * each / (time.monotonic() - began)
    total = windows * each
    for role, pid in zip(("router", "connector"), pids, strict=True):
        first, last = cpu[pid][0], cpu[pid][-1]
        yield Figure(PART, f"{role} CPU of each of the first {each:,}", 1e6 * first, "us")
        yield Figure(PART, f"{role} CPU of each of the last {each:,}", 1e6 * last, "us")
        yield Figure(PART, f"{role} CPU, last / first", last / first, "", FLAT)
        yield Figure(PART, f"{role} memory before them", held[pid][0] / 1e6, "MB")
        yield Figure(PART, f"{role} memory after {each:,}", held[pid][1] / 1e6, "MB")
        yield Figure(PART, f"{role} memory after {total:,}", held[pid][-1] / 1e6, "MB")
        yield Figure(
            PART,
            f"{role} memory, after all / after {each:,}",
            held[pid][-1] / held[pid][1],
            "",
            FLAT,
        )
    yield Figure(PART, "requests in a second, half HEAD, half GET of 1 KB", rate, "/s")


async def asked(port: int, dataset: str, count: int) -> None:
    """Ask so many times, over a few connections that stay open: HEAD and GET in turns."""
    async with asyncio.TaskGroup() as group:
        for _ in range(LINES):
            group.create_task(_one_line(port, dataset, count // LINES))


async def _one_line(port: int, dataset: str, count: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for number in range(count):
            method = "HEAD" if number % 2 else "GET"
            address = f"/datasets/{system.MAC}/{dataset}"
            writer.write(f"{method} {address} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head[:20]:
                raise BenchFailed(f"a request was answered with {head[:100]!r}")
            if method == "GET":
                await reader.readexactly(SMALL_BYTES)
    finally:
        writer.close()
