"""The system under test: a router, a connector and a client, each a process of its own."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchlib.processes import (
    BenchFailed,
    Process,
    clean_environ,
    end,
    forget_peak,
    metered,
    peak_bytes,
)
from benchlib.runs import Sample

MAC = "02-00-00-00-00-01"
COMMAND = (sys.executable, "-m", "tunnelsync")
WORKER = Path(__file__).parent / "worker.py"
REQUEST_SECONDS = 300.0
ROLES = ("router", "connector", "client")


class Client:
    """An open client in a process of its own."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self._popen = popen

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    def fetch(
        self,
        dataset: str,
        path: Path,
        mode: str,
        *,
        sync: bool,
        times: int = 1,
        together: int = 0,
    ) -> dict[str, Any]:
        """Fetch a dataset so many times, one after the other, and return what each time took; or
        so many ``together``, and return what all took."""
        wanted = {
            "mac": MAC,
            "dataset": dataset,
            "path": str(path),
            "mode": mode,
            "sync": sync,
            "times": times,
            "together": together,
        }
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(json.dumps(wanted).encode() + b"\n")
        self._popen.stdin.flush()
        line = self._popen.stdout.readline()
        if not line:
            raise BenchFailed(f"the client ended with {self._popen.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchFailed(f"mode {mode}, {dataset}: {answer['error']}")
        return answer


@contextmanager
def client(url: str) -> Iterator[Client]:
    """Start an open client, and end it."""
    popen = subprocess.Popen(
        [sys.executable, str(WORKER), url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environ(),
    )
    try:
        yield Client(popen)
    finally:
        for pipe in (popen.stdin, popen.stdout):
            assert pipe is not None
            pipe.close()
        end(popen)


@dataclass(frozen=True)
class System:
    """A running router, connector and client, and the folder of the datasets."""

    url: str
    root: Path
    mode: str
    sync: bool
    client: "Client"
    pids: Mapping[str, int]

    def fetch(self, dataset: str, path: Path) -> Sample:
        """Fetch a dataset into a file through the open client, and say what it took."""
        cpu: dict[str, float] = {}
        with metered(self.pids, cpu):
            answer = self._ask(dataset, path, 1)
        return Sample(answer["seconds"][0], answer["first_byte_seconds"][0], cpu)

    def latencies(self, dataset: str, path: Path, times: int) -> list[float]:
        """Fetch a dataset so many times, one after the other, and return the seconds of each."""
        return [float(one) for one in self._ask(dataset, path, times)["seconds"]]

    def fetch_together(self, dataset: str, path: Path, times: int, together: int) -> Sample:
        """Fetch a dataset so often, so many at once, into ``path.0`` and on; all they took."""
        cpu: dict[str, float] = {}
        with metered(self.pids, cpu):
            answer = self._ask(dataset, path, times, together)
        return Sample(answer["seconds"][0], None, cpu)

    def _ask(self, dataset: str, path: Path, times: int, together: int = 0) -> dict[str, Any]:
        return self.client.fetch(
            dataset, path, self.mode, sync=self.sync, times=times, together=together
        )

    def request_offload(self, dataset: str) -> tuple[Sample, str]:
        """Ask for a dataset in mode offload; return what the answer took, and its address."""
        body = json.dumps({"mac": MAC, "dataset": dataset}).encode()
        request = urllib.request.Request(
            f"{self.url}/datasets/request-offload",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        cpu: dict[str, float] = {}
        began = time.perf_counter()
        with metered(self.pids, cpu), opener.open(request, timeout=REQUEST_SECONDS) as response:
            answer = json.load(response)
            seconds = time.perf_counter() - began
        if answer["reused"]:
            raise BenchFailed(f"the store had {dataset} already: nothing was uploaded")
        return Sample(seconds, None, cpu), answer["download_url"]

    def command_seconds(self, dataset: str, path: Path) -> float:
        """Return what one ``tunnelsync fetch`` takes, from its start to its end."""
        path.unlink(missing_ok=True)
        command = [*COMMAND, "fetch", "--quiet", "--router", self.url, "--mode", self.mode]
        command += [] if self.sync else ["--no-sync"]
        command += ["--output", str(path), MAC, dataset]
        began = time.perf_counter()
        subprocess.run(command, env=clean_environ(), check=True, timeout=REQUEST_SECONDS)
        return time.perf_counter() - began

    def forget_peaks(self) -> bool:
        """Begin to watch memory anew; False where the kernel does not let us."""
        done = [forget_peak(self.pids[role]) for role in ROLES]
        return all(done)

    def peaks(self) -> dict[str, int]:
        """Return the most memory of each role, in bytes, since `forget_peaks`."""
        return {role: peak_bytes(self.pids[role]) for role in ROLES}


def router(logs: Path, environ: Mapping[str, str] | None = None, *, port: int = 0) -> Process:
    """Start a router; ``address`` waits until it listens."""
    command = (*COMMAND, "router", "--host", "127.0.0.1", "--port", str(port))
    return Process("router", command, logs, environ)


def address(router: Process) -> str:
    """Return the address of a router, once it listens."""
    return str(router.wait_for_line(r"listening on (http://\S+:\d+)")[1])


def connector(
    url: str, root: Path, logs: Path, environ: Mapping[str, str] | None = None, *, mac: str = MAC
) -> Process:
    """Start a connector."""
    offer = (*COMMAND, "connector", "--router", url, "--mac", mac, "--root", str(root))
    return Process("connector", offer, logs, environ)


@contextmanager
def running(
    mode: str, root: Path, logs: Path, *, sync: bool, store: Mapping[str, str], store_pid: int = 0
) -> Iterator[System]:
    """Start the three roles afresh for one mode, and end them."""
    with ExitStack() as stack:
        routing = stack.enter_context(router(logs, store))
        url = address(routing)
        offering = stack.enter_context(connector(url, root, logs, store))
        offering.wait_for_line("connected to")
        fetching = stack.enter_context(client(url))
        pids = {"router": routing.pid, "connector": offering.pid, "client": fetching.pid}
        if store_pid:
            pids["store"] = store_pid
        yield System(url, root, mode, sync, fetching, pids)
