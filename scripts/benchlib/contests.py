"""The contests: for each mode and size, we and the peers move the same file in turns."""

import filecmp
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchlib import peers
from benchlib.dataset import dataset, touch_memory
from benchlib.peers import Nginx
from benchlib.plan import LATENCY_BYTES, Plan
from benchlib.processes import BenchFailed
from benchlib.runs import OURS, Contender, Row, Sample, in_turns
from benchlib.store import S3Server
from benchlib.system import System

NGINX, SOCAT, RCLONE, STORE_CURL = "nginx+curl", "socat", "rclone", "store+curl"
RCLONE_CURL = "rclone, then curl"
RCLONE_KEY = "rclone/data"


@dataclass
class Arena:
    """The files, and the peers that there are; None for those that are missing."""

    plan: Plan
    datasets: Path
    outputs: Path
    nginx: Nginx | None
    store: S3Server | None
    socat: bool
    rclone: bool
    say: Callable[[str], None]
    notes: list[str] = field(default_factory=list)
    memory_from_start: bool = False
    _url: str = ""

    def dataset(self, size: int) -> Path:
        """Return a file of this size, made on first use, then read once: the cache is warm."""
        return dataset(self.datasets, size, self.say)

    def rows(self, system: System) -> Iterator[Row]:
        """Run the contests of one mode, smallest size first."""
        for size in self.plan.sizes(system.mode):
            if time.monotonic() > self.plan.deadline:
                self.notes.append(f"mode {system.mode}, {size:,} bytes: left out, time is up")
                continue
            yield from self._rows(system, self.dataset(size))

    def latency(self, system: System) -> dict[str, Any]:
        """Fetch a small dataset many times, one after the other, on one open client."""
        source, times = self.dataset(LATENCY_BYTES), self.plan.latency_runs
        system.latencies(source.name, self._output(OURS), 5)
        peer = []
        if self.nginx:
            peer = self.nginx.latencies(source.name, self._output(NGINX), times)
        ours = system.latencies(source.name, self._output(OURS), times)
        self._clear()
        return {
            "mode": system.mode,
            "size_bytes": LATENCY_BYTES,
            "runs": times,
            **_quantiles(ours),
            "peers": {NGINX: _quantiles(peer)} if peer else {},
            "raw_seconds": ours,
        }

    def command_seconds(self, system: System) -> list[float]:
        """Return what whole commands take for a small dataset: the start of Python, mostly."""
        source = self.dataset(LATENCY_BYTES)
        took = [system.command_seconds(source.name, self._output(OURS)) for _ in range(3)]
        self._clear()
        return took

    def _rows(self, system: System, source: Path) -> Iterator[Row]:
        if system.mode == "offload":
            assert self.store is not None
            yield self._row(system, source, "upload", self._uploads(system, source, self.store))
            self._upload(system, source, self.store)
            yield self._row(system, source, "download", self._downloads(system, source))
            yield self._row(system, source, "both", self._both(system, source, self.store))
            self.store.clear()
        else:
            yield self._row(system, source, system.mode, self._transfers(system, source))

    def _row(self, system: System, source: Path, what: str, contenders: Sequence[Contender]) -> Row:
        size = source.stat().st_size
        self.say(f"mode {system.mode}, {what}: {size:,} bytes")
        self.memory_from_start |= not system.forget_peaks()
        scratch = self.plan.folder / "scratch"
        samples = in_turns(
            contenders,
            self.plan.runs(size),
            self.plan.row_deadline(),
            lambda: touch_memory(scratch, size),
        )
        peaks = system.peaks()
        for path in self.outputs.iterdir():
            if not filecmp.cmp(source, path, shallow=False):
                raise BenchFailed(f"{path.name} is not what was sent ({what}, {size:,} bytes)")
        self._clear()
        return Row(system.mode, what, size, samples, peaks)

    def _transfers(self, system: System, source: Path) -> list[Contender]:
        sync = self.plan.sync
        contenders = [self._ours(system, source)]
        if nginx := self.nginx:
            out = self._output(NGINX)
            contenders.append(self._peer(NGINX, lambda: nginx.fetch(source.name, out, sync=sync)))
        if self.socat:
            end = self._output(SOCAT)
            contenders.append(self._peer(SOCAT, lambda: peers.socat(source, end, sync=sync)))
        return contenders

    def _uploads(self, system: System, source: Path, store: S3Server) -> list[Contender]:
        def fresh() -> None:
            store.clear()
            os.utime(source)

        ours = Contender(OURS, lambda: system.request_offload(source.name)[0], fresh)
        if not self.rclone:
            return [ours]
        upload = lambda: peers.rclone_copyto(source, store, RCLONE_KEY)  # noqa: E731
        return [ours, Contender(RCLONE, upload, store.clear)]

    def _upload(self, system: System, source: Path, store: S3Server) -> None:
        """Put the dataset into the store once, for the downloads."""
        store.clear()
        os.utime(source)
        self._url = system.request_offload(source.name)[1]

    def _downloads(self, system: System, source: Path) -> list[Contender]:
        contenders = [self._ours(system, source)]
        if peers.program("curl"):
            out, sync = self._output(STORE_CURL), self.plan.sync
            contenders.append(
                self._peer(STORE_CURL, lambda: peers.curl(self._url, out, {}, sync=sync))
            )
        return contenders

    def _both(self, system: System, source: Path, store: S3Server) -> list[Contender]:
        """Upload and download of a fresh version: one fetch, against one rclone and one curl."""
        out, sync = self._output(RCLONE_CURL), self.plan.sync

        def clear() -> None:
            store.clear()
            out.unlink(missing_ok=True)

        def fresh() -> None:
            clear()
            self._output(OURS).unlink(missing_ok=True)
            os.utime(source)

        def theirs() -> Sample:
            up = peers.rclone_copyto(source, store, RCLONE_KEY)
            down = peers.curl(store.presigned(RCLONE_KEY), out, {}, sync=sync)
            first = up.seconds + (down.first_byte_seconds or 0.0)
            return Sample(up.seconds + down.seconds, first, {**up.cpu_seconds, **down.cpu_seconds})

        ours = Contender(OURS, lambda: system.fetch(source.name, self._output(OURS)), fresh)
        if not self.rclone or not peers.program("curl"):
            return [ours]
        return [ours, Contender(RCLONE_CURL, theirs, clear)]

    def _ours(self, system: System, source: Path) -> Contender:
        out = self._output(OURS)
        return Contender(
            OURS, lambda: system.fetch(source.name, out), lambda: out.unlink(missing_ok=True)
        )

    def _peer(self, name: str, run: Callable[[], Sample]) -> Contender:
        return Contender(name, run, lambda: self._output(name).unlink(missing_ok=True))

    def _output(self, name: str) -> Path:
        return self.outputs / f"{name.replace(', then ', '+')}.out"

    def _clear(self) -> None:
        for path in self.outputs.iterdir():
            path.unlink()


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        "median_seconds": ordered[last // 2],
        "p95_seconds": ordered[round(last * 0.95)],
        "largest_seconds": ordered[last],
    }
