"""Part ``offload``: a new dataset through a store, over a line for upload and one for download, and
without lines, where store, connector and client share this machine's cores."""

import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack

from benchlib import store, system
from benchlib.dataset import touch_memory
from benchlib.figures import Figure, Scene
from benchlib.lines import long_line
from benchlib.processes import BenchFailed
from benchlib.reading import sparse
from tunnelsync.settings import GIB, MIB, StoreSettings

PART = "offload"
ROUND_TRIP_SECONDS = 0.01
RATES = ((50e6, 100e6), (100e6, 50e6))
"""Of the line from the connector to the store, and of that from the store to the client."""
ROUNDS = 5
"""Without lines; of each the median."""
MOST = 1.2
"""Times the longer one of upload and download."""
FIRST_BYTE_MS = 1000


def measure(scene: Scene) -> Iterator[Figure]:
    """Yield the figures of this part."""
    found = store.find("auto", None)
    if found is None:
        raise BenchFailed("there is no S3 server: pip install 'tunnelsync[demo]'")
    size = 64 * MIB if scene.quick else GIB
    with store.serving(*found, scene.folder) as server:
        for rates in RATES[:1] if scene.quick else RATES:
            yield from _over_lines(scene, server, *rates, size)
            server.clear()
        yield from _on_one_machine(scene, server, size)


def _over_lines(
    scene: Scene, server: store.S3Server, up: float, down: float, size: int
) -> Iterator[Figure]:
    output, port = scene.folder / "output", int(server.endpoint.rpartition(":")[2])
    with ExitStack() as stack:
        lines = [long_line(scene, port, rate, ROUND_TRIP_SECONDS, stack) for rate in (up, down)]
        ends = [f"http://127.0.0.1:{port}" for port in lines]
        reached = {
            "TUNNELSYNC_STORE_ENDPOINT": ends[0],
            "TUNNELSYNC_STORE_PUBLIC_ENDPOINT": ends[1],
        }
        one = stack.enter_context(_running(scene, server, reached))
        uploaded, _ = one.request_offload(_settled(scene, size))
        downloaded = one.client.fetch(f"{size}.zero", output, "offload", sync=False)
        both = one.client.fetch(sparse(scene, size), output, "offload", sync=False)
    alone = {"upload": uploaded.seconds, "download": downloaded["seconds"][0]}
    name = f"{server.kind}, {up / 1e6:g} MB/s up, {down / 1e6:g} MB/s down"
    yield from _figures(name, alone, both["seconds"][0], both["first_byte_seconds"][0])


def _on_one_machine(scene: Scene, server: store.S3Server, size: int) -> Iterator[Figure]:
    output, scratch = scene.folder / "output", scene.folder / "scratch"
    took: dict[str, list[float]] = {"upload": [], "download": []}
    both: list[tuple[float, float]] = []
    with _running(scene, server, {}) as one:

        def fetched(name: str) -> tuple[float, float]:
            output.unlink(missing_ok=True)
            touch_memory(scratch, size)
            said = one.client.fetch(name, output, "offload", sync=False)
            return said["seconds"][0], said["first_byte_seconds"][0]

        for _ in range(1 if scene.quick else ROUNDS):
            server.clear()
            name = _settled(scene, size)
            touch_memory(scratch, size)
            took["upload"].append(one.request_offload(name)[0].seconds)
            took["download"].append(fetched(name)[0])
            server.clear()
            both.append(fetched(_settled(scene, size)))
    alone = {what: statistics.median(seconds) for what, seconds in took.items()}
    seconds, first_byte = (statistics.median(one) for one in zip(*both, strict=True))
    yield from _figures(f"{server.kind}, no lines", alone, seconds, first_byte)


def _running(
    scene: Scene, server: store.S3Server, reached: dict[str, str]
) -> AbstractContextManager[system.System]:
    """Run the three roles; a version that is new waits as it does for users."""
    environ = server.environ() | reached
    del environ["TUNNELSYNC_STORE_SETTLE_SECONDS"]
    return system.running("offload", scene.datasets, scene.logs, sync=False, store=environ)


def _settled(scene: Scene, size: int) -> str:
    """Make a new version that is old enough to be used again."""
    name = sparse(scene, size)
    time.sleep(StoreSettings().settle_seconds)
    return name


def _figures(
    name: str, alone: dict[str, float], both_seconds: float, first_byte_seconds: float
) -> Iterator[Figure]:
    for what, seconds in alone.items():
        yield Figure(PART, f"{name}: {what} alone", seconds, "s")
    yield Figure(PART, f"{name}: both, of a new version", both_seconds, "s")
    ratio = both_seconds / max(alone.values())
    yield Figure(PART, f"{name}: both / the longer of these", ratio, "", MOST)
    yield Figure(PART, f"{name}: first byte", 1000 * first_byte_seconds, "ms", FIRST_BYTE_MS)
