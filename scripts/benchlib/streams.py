"""Part ``streams``: the same bytes of one file, in one stream or in many at once."""

import statistics
from collections import defaultdict
from collections.abc import Iterator

from benchlib.figures import Figure, Scene
from benchlib.processes import cpu_seconds
from benchlib.reading import serving, sparse
from tunnelsync.settings import GIB, MIB

PART = "streams"
COUNTS = (1, 4, 16, 64)
ROUNDS = 5
LEAST = 0.85
"""The slowest of the counts, as part of the best."""


def measure(scene: Scene) -> Iterator[Figure]:
    """Yield the figures of this part."""
    total, rounds = (256 * MIB, 1) if scene.quick else (2 * GIB, ROUNDS)
    rates, used = defaultdict(list), defaultdict(list)
    with serving(scene) as served:
        pids = (served.router.pid, served.connector.pid)
        dataset = sparse(scene, total)
        served.readers.read([dataset])  # from here on, all of it is in the system's cache
        for number in range(rounds):
            for count in COUNTS[number % 4 :] + COUNTS[: number % 4]:
                before = sum(map(cpu_seconds, pids))
                parts = _parts(total, count)
                read = served.readers.read([dataset] * count, parts=parts)
                used[count].append((sum(map(cpu_seconds, pids)) - before) * GIB / read.bytes)
                rates[count].append(read.megabytes_per_second)
    found = {count: statistics.median(rates[count]) for count in COUNTS}
    for count in COUNTS:
        name = f"{count} at once"
        yield Figure(PART, f"{name}: all together", found[count], "MB/s")
        cpu = statistics.median(used[count])
        yield Figure(PART, f"{name}: CPU of router and connector", cpu, "s/GiB")
    ratio = min(found.values()) / max(found.values())
    yield Figure(PART, "the slowest of these / the best", ratio, "", LEAST, least=True)


def _parts(total: int, count: int) -> list[str]:
    """Cut so many bytes into equal parts, as values of ``Range``."""
    size = total // count
    return [f"bytes={at}-{at + size - 1}" for at in range(0, total, size)]
