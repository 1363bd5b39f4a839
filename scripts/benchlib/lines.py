"""Part ``line``: how much of a long line one fetch in mode stream takes."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchlib import line, system
from benchlib.figures import Figure, Scene
from benchlib.processes import Process, clean_environ
from benchlib.reading import sparse
from tunnelsync.settings import MIB

PART = "line"
LINE = Path(line.__file__)
ROUND_TRIP_SECONDS = 0.05
RATES = (20e6, 50e6)
SECONDS = 12.0
"""What the dataset takes at the line's rate."""
LEAST = 95
ENDS = ("connector", "client")
"""Who sits at the far end of it."""


def measure(scene: Scene) -> Iterator[Figure]:
    """Yield the figures of this part."""
    seconds = 2.0 if scene.quick else SECONDS
    for rate in RATES[:1] if scene.quick else RATES:
        plain = 100 * seconds / _plain(scene, rate, seconds)
        name = f"{rate / 1e6:g} MB/s, {1000 * ROUND_TRIP_SECONDS:g} ms: a plain connection"
        yield Figure(PART, name, plain, "% of the line")
        for far in ENDS:
            yield from _one(scene, far, rate, seconds)


def long_line(
    scene: Scene, target_port: int, rate: float, round_trip_seconds: float, stack: ExitStack
) -> int:
    """Start a line to a port, and return its own port."""
    words = (str(target_port), str(rate), str(round_trip_seconds))
    process = Process("line", (sys.executable, LINE, *words), scene.logs)
    return int(stack.enter_context(process).wait_for_line(r"port (\d+)\n")[1])


def _plain(scene: Scene, rate: float, seconds: float) -> float:
    """Return the seconds that one plain connection takes, which does nothing but send."""
    size = int(rate * seconds)
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = long_line(scene, server.getsockname()[1], rate, ROUND_TRIP_SECONDS, stack)
        began = time.monotonic()
        sender = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        sending = threading.Thread(target=sender.sendall, args=(bytes(size),))
        sending.start()
        receiver = stack.enter_context(server.accept()[0])
        buffer, left = bytearray(MIB), size
        while left:
            left -= receiver.recv_into(buffer)
        sending.join()
        return time.monotonic() - began


def _one(scene: Scene, far: str, rate: float, seconds: float) -> Iterator[Figure]:
    size = int(rate * seconds)
    dataset, warm = sparse(scene, size), sparse(scene, 1000)
    with ExitStack() as stack:
        router = stack.enter_context(system.router(scene.logs))
        near = system.address(router)
        port = long_line(scene, int(near.rpartition(":")[2]), rate, ROUND_TRIP_SECONDS, stack)
        long = f"http://127.0.0.1:{port}"
        url = {"connector": near, "client": near} | {far: long}
        connector = system.connector(url["connector"], scene.datasets, scene.logs)
        stack.enter_context(connector).wait_for_line("connected to")
        client = stack.enter_context(system.client(url["client"]))
        client.fetch(warm, scene.folder / "warm", "stream", sync=False)
        output = scene.folder / "output"
        took = client.fetch(dataset, output, "stream", sync=False)["seconds"][0]
        name = f"{rate / 1e6:g} MB/s, {1000 * ROUND_TRIP_SECONDS:g} ms, far {far}"
        yield Figure(
            PART, f"{name}: open client", 100 * seconds / took, "% of the line", LEAST, least=True
        )
        output.unlink()
        began = time.monotonic()
        command = (*system.COMMAND, "fetch", "--quiet", "--router", url["client"])
        command += ("--mode", "stream", "--output", str(output), system.MAC, dataset)
        subprocess.run(command, env=clean_environ(), check=True, timeout=10 * seconds + 30)
        whole = 100 * seconds / (time.monotonic() - began)
        yield Figure(PART, f"{name}: whole command", whole, "% of the line")
