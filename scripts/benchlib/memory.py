"""Part ``memory``: what the router holds, by the size of a dataset and the number of streams."""

from collections.abc import Iterator

from benchlib.figures import Figure, Scene
from benchlib.processes import forget_peak, held_bytes, peak_bytes
from benchlib.reading import Read, Served, serving, sparse
from benchlib.report import size_name
from tunnelsync.settings import GIB, MIB

PART = "memory"
ONE_MB, MANY_MB = 60, 150
MANY = 50
FLAT = 1.1
"""The most that a dataset of 50 GiB may take of what one of 1 GiB takes."""
PACED_BYTES, PACED_SECONDS = 10e6, 8.0


def measure(scene: Scene) -> Iterator[Figure]:
    """Yield the figures of this part."""
    sizes = (GIB // 4,) if scene.quick else (GIB, 10 * GIB, 50 * GIB)
    each = 16 * MIB if scene.quick else 200 * MIB
    with serving(scene) as served:
        peaks = []
        for size in sizes:
            name = sparse(scene, size)
            read, peak = _peak(served, [name])
            peaks.append(peak)
            what = f"router, one stream of {size_name(size)}"
            yield Figure(PART, f"{what}: peak", peak / 1e6, "MB", ONE_MB)
            yield Figure(PART, f"{what}: rate", read.megabytes_per_second, "MB/s")
        yield Figure(PART, "the largest / the smallest of them", peaks[-1] / peaks[0], "", FLAT)
        read, peak = _peak(served, [sparse(scene, each)] * MANY)
        what = f"router, {MANY} streams at once"
        yield Figure(PART, f"{what}: peak", peak / 1e6, "MB", MANY_MB)
        yield Figure(PART, f"{what}: rate", read.megabytes_per_second, "MB/s")
        seconds = 1.0 if scene.quick else PACED_SECONDS
        _, peak = _peak(served, [sparse(scene, GIB)] * MANY, PACED_BYTES, seconds)
        yield Figure(PART, f"{what}, read at 10 MB/s each: peak", peak / 1e6, "MB", MANY_MB)
        held = held_bytes(served.router.pid)
        yield Figure(PART, "router, after all of them: held", held / 1e6, "MB")


def _peak(
    served: Served, datasets: list[str], rate_bytes: float = 0, seconds: float = 0
) -> tuple[Read, int]:
    forget_peak(served.router.pid)
    read = served.readers.read(datasets, rate_bytes, seconds)
    return read, peak_bytes(served.router.pid)
