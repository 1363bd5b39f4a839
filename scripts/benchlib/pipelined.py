"""Part ``offload``: a new dataset through a store, with a line for upload and one for download."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchlib import store, system
from benchlib.figures import Figure, Scene
from benchlib.lines import long_line
from benchlib.processes import BenchFailed
from benchlib.reading import sparse
from tunnelsync.settings import GIB, MIB, StoreSettings

PART = "offload"
ROUND_TRIP_SECONDS = 0.01
RATES = ((50e6, 100e6), (100e6, 50e6))
"""Of the line from the connector to the store, and of that from the store to the client."""
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
            yield from _one(scene, server, *rates, size)
            server.clear()


def _one(
    scene: Scene, server: store.S3Server, up: float, down: float, size: int
) -> Iterator[Figure]:
    name = f"{up / 1e6:g} MB/s up, {down / 1e6:g} MB/s down"
    output, port = scene.folder / "output", int(server.endpoint.rpartition(":")[2])
    with ExitStack() as stack:
        lines = [long_line(scene, port, rate, ROUND_TRIP_SECONDS, stack) for rate in (up, down)]
        ends = [f"http://127.0.0.1:{port}" for port in lines]
        reached = {
            "TUNNELSYNC_STORE_ENDPOINT": ends[0],
            "TUNNELSYNC_STORE_PUBLIC_ENDPOINT": ends[1],
        }
        environ = server.environ() | reached
        del environ["TUNNELSYNC_STORE_SETTLE_SECONDS"]  # a new version waits as it does for users
        running = system.running("offload", scene.datasets, scene.logs, sync=False, store=environ)
        one = stack.enter_context(running)
        first = sparse(scene, size)
        time.sleep(StoreSettings.settle_seconds)  # so that what is uploaded is used again
        uploaded, _ = one.request_offload(first)
        downloaded = one.client.fetch(f"{size}.zero", output, "offload", sync=False)
        both = one.client.fetch(sparse(scene, size), output, "offload", sync=False)
    alone = {"upload": uploaded.seconds, "download": downloaded["seconds"][0]}
    for what, seconds in alone.items():
        yield Figure(PART, f"{name}: {what} alone", seconds, "s")
    took = both["seconds"][0]
    yield Figure(PART, f"{name}: both, of a new version", took, "s")
    ratio = took / max(alone.values())
    yield Figure(PART, f"{name}: both / the longer of these", ratio, "", MOST)
    first = 1000 * both["first_byte_seconds"][0]
    yield Figure(PART, f"{name}: first byte", first, "ms", FIRST_BYTE_MS)
