"""The router and the connector with readers in a process of their own: what the parts share."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchlib import readers, system
from benchlib.figures import Scene
from benchlib.processes import BenchFailed, Process, clean_environ, end

SCRIPT = Path(readers.__file__)


@dataclass(frozen=True, slots=True)
class Read:
    """What a group of readers got."""

    bytes: int
    seconds: float

    @property
    def megabytes_per_second(self) -> float:
        """The rate of all of them together."""
        return self.bytes / 1e6 / self.seconds


class Readers:
    """A process that reads groups of streams, one group after the other."""

    def __init__(self, popen: "subprocess.Popen[str]", port: int) -> None:
        self._popen = popen
        self._port = port

    def begin(
        self,
        datasets: Sequence[str],
        rate_bytes: float = 0,
        seconds: float = 0,
        parts: Sequence[str] = (),
    ) -> None:
        """Begin a group, and wait until each has its first byte.

        ``parts`` has the ``Range`` of each; without it they read all.
        """
        ranges = parts or [""] * len(datasets)
        paths = [f"/datasets/{system.MAC}/{one}" for one in datasets]
        asked = {
            "port": self._port,
            "asked": list(zip(paths, ranges, strict=True)),
            "rate_bytes": rate_bytes,
            "seconds": seconds,
        }
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(asked) + "\n")
        self._popen.stdin.flush()
        if (line := self._line()) != "begun":
            raise BenchFailed(f"the readers: {line}")

    def end(self) -> Read:
        """Wait until the group has ended."""
        answer = json.loads(self._line())
        if "error" in answer:
            raise BenchFailed(f"the readers: {answer['error']}")
        return Read(**answer)

    def read(
        self,
        datasets: Sequence[str],
        rate_bytes: float = 0,
        seconds: float = 0,
        parts: Sequence[str] = (),
    ) -> Read:
        """Read a group to its end."""
        self.begin(datasets, rate_bytes, seconds, parts)
        return self.end()

    def _line(self) -> str:
        assert self._popen.stdout is not None
        if line := self._popen.stdout.readline():
            return line.strip()
        raise BenchFailed(f"the readers ended with {self._popen.wait()}")


@dataclass(frozen=True, slots=True)
class Served:
    """A router and a connector that run, and who reads from them."""

    router: Process
    connector: Process
    url: str
    readers: Readers

    @property
    def port(self) -> int:
        """The router's port, on 127.0.0.1."""
        return int(self.url.rpartition(":")[2])


@contextmanager
def serving(scene: Scene) -> Iterator[Served]:
    """Start router, connector and readers afresh, and end them."""
    with system.router(scene.logs) as router:
        url = system.address(router)
        with system.connector(url, scene.datasets, scene.logs) as connector:
            connector.wait_for_line("connected to")
            popen = subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=clean_environ(),
                text=True,
            )
            try:
                port = int(url.rpartition(":")[2])
                yield Served(router, connector, url, Readers(popen, port))
            finally:
                for pipe in (popen.stdin, popen.stdout):
                    assert pipe is not None
                    pipe.close()
                end(popen)


def sparse(scene: Scene, size: int) -> str:
    """Make a dataset of zeros that takes no room on the disk, and return its name."""
    name = f"{size}.zero"
    with (scene.datasets / name).open("wb") as file:
        file.truncate(size)
    return name
