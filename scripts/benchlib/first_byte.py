"""Part ``first-byte``: how soon an answer begins while other streams run."""

import socket
import statistics
import time
from collections.abc import Iterator, Sequence

from benchlib import system
from benchlib.figures import Figure, Scene, quantile
from benchlib.processes import BenchFailed
from benchlib.reading import Served, serving, sparse
from tunnelsync.settings import GIB, KIB

PART = "first-byte"
STREAMS, RATE_BYTES = 20, 10e6
PROBE_BYTES = 64 * KIB
PAUSE_SECONDS = 0.02
SETTLE_SECONDS = 1.0
"""Until the others have filled the buffers on their way, which goes at full rate."""
MEDIAN_MS, P99_MS = 5, 15


def measure(scene: Scene) -> Iterator[Figure]:
    """Yield the figures of this part."""
    times = 50 if scene.quick else 500
    probe, other = sparse(scene, PROBE_BYTES), sparse(scene, 100 * GIB)
    with serving(scene) as served:
        probed(served, probe, 20)
        seconds = probed(served, probe, times)
        yield from _figures("nothing else runs", seconds, judged=False)
        for rate, what in ((RATE_BYTES, "at 10 MB/s each"), (0.0, "as fast as they can")):
            lasting = times * PAUSE_SECONDS * 2
            served.readers.begin([other] * STREAMS, rate, lasting + SETTLE_SECONDS)
            time.sleep(SETTLE_SECONDS)
            seconds = probed(served, probe, times, lasting)
            read = served.readers.end()
            name = f"{STREAMS} others {what}"
            yield from _figures(name, seconds, judged=bool(rate))
            yield Figure(PART, f"{name}: their rate", read.megabytes_per_second, "MB/s")


def probed(served: Served, dataset: str, times: int, lasting: float = float("inf")) -> list[float]:
    """Get a dataset so many times over one connection; return the seconds to each first byte.

    No longer than ``lasting`` seconds, for as long as the others run.
    """
    asked = f"GET /datasets/{system.MAC}/{dataset} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    found = []
    until = time.monotonic() + lasting
    with socket.create_connection(("127.0.0.1", served.port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            if time.monotonic() > until:
                break
            began = time.perf_counter()
            link.sendall(asked)
            came = bytearray(link.recv(PROBE_BYTES))
            while b"\r\n\r\n" not in came or came.endswith(b"\r\n\r\n"):
                came += link.recv(PROBE_BYTES)
            found.append(time.perf_counter() - began)
            head, _, body = bytes(came).partition(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise BenchFailed(f"the probe was answered with {head[:100]!r}")
            left = PROBE_BYTES - len(body)
            while left:
                left -= len(link.recv(left))
            time.sleep(PAUSE_SECONDS)
    return found


def _figures(name: str, seconds: Sequence[float], *, judged: bool) -> Iterator[Figure]:
    median, slow = 1000 * statistics.median(seconds), 1000 * quantile(seconds, 0.99)
    yield Figure(PART, f"{name}, median", median, "ms", MEDIAN_MS if judged else None)
    yield Figure(PART, f"{name}, 99 %", slow, "ms", P99_MS if judged else None)
