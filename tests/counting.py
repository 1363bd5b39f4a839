"""Counts, in place of times, of what a request and a MiB cost each role; on real processes.

Start-up cancels out: each count is the difference between many and few, divided by how many more.
``make counts`` prints them beside their baselines; with ``--update`` they become the baselines.
"""

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import orjson

import counts
import strace
from harness import CONNECTED, LISTENING, MAC, Process, clean_environ, make_file
from tunnelsync.settings import MIB

PROGRAM = Path(__file__).parent / "counted.py"
SMALL, REQUESTS = ("small", 1000), (10, 110)
LARGE_MIB = (16, 80)
ROUNDS = 3
"""How often a large dataset is fetched: the least of them waited least for the other roles."""
QUIET_SECONDS = 0.1
"""What the roles still do after a fetch: the log, the end of the transfer."""
FETCH_SECONDS = 60.0
TOLD = re.compile(r"^counted (\d+) (\d+)$")

COPIED, LEFT = "bytes copied", "blocks left"
UNSTEADY = tuple(
    f"{role}, {what} for each MiB"
    for role in ("router", "client")
    for what in ("calls", "system calls")
)
"""What differs by a quarter and more between runs: how often these wait for bytes is chance."""

Count = Mapping[str, Mapping[str, float]]
"""A number for each kind of count and each role."""


class Roles:
    """A router, a connector and an open client, that count their calls unless ``plain``."""

    def __init__(
        self, folder: Path, *, plain: bool, environ: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._command = (sys.executable, str(PROGRAM), *(["--plain"] if plain else []))
        self._environ = clean_environ(environ)
        self._stack = ExitStack()
        self.processes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            make_file(self.folder / "root" / SMALL[0], SMALL[1])
            for size in LARGE_MIB:
                make_file(self.folder / "root" / f"{size}", size * MIB)
            router = self._start(stack, "router", "--host", "127.0.0.1", "--port", "0")
            url = router.wait_for_line(LISTENING)[1]
            root = str(self.folder / "root")
            arguments = ("--router", url, "--mac", MAC, "--root", root)
            self._start(stack, "connector", *arguments).wait_for_line(CONNECTED)
            fifo = self.folder / "wanted"
            os.mkfifo(fifo)
            self._start(stack, "client", url, str(fifo))
            self._wanted = stack.enter_context(fifo.open("wb", buffering=0))
            self.fetch(SMALL[0], 30)
            self.fetch(f"{LARGE_MIB[0]}", 1)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack, role: str, *arguments: str) -> Process:
        process = Process(role, (*self._command, role, *arguments), self._environ)
        stack.callback(process.stop)
        self.processes[role] = process
        return process

    def fetch(self, dataset: str, times: int) -> None:
        """Fetch a dataset so often, and wait until the roles have nothing left to do."""
        client = self.processes["client"]
        seen = client.line_count()
        self._wanted.write(orjson.dumps([MAC, dataset, str(self.folder / "out"), times]) + b"\n")
        client.wait_for_line(r"^fetched$", FETCH_SECONDS, after=seen)
        time.sleep(QUIET_SECONDS)

    def calls(self, dataset: str, times: int) -> Count:
        """Return the calls of each role for some fetches, and the blocks of memory they left."""
        before = {role: self._told(one) for role, one in self.processes.items()}
        self.fetch(dataset, times)
        after = {role: self._told(one) for role, one in self.processes.items()}
        kinds = enumerate(("calls", LEFT))
        return {
            kind: {role: after[role][at] - before[role][at] for role in after} for at, kind in kinds
        }

    def system_calls(self, dataset: str, times: int) -> Count:
        """Return the system calls of each role for some fetches, and the bytes they copied."""
        pids = {role: process.pid for role, process in self.processes.items()}
        with strace.watched(pids, self.folder) as tallies:
            self.fetch(dataset, times)
        return {
            "system calls": {role: one.count for role, one in tallies.items()},
            COPIED: {role: one.bytes_copied for role, one in tallies.items()},
        }

    def _told(self, process: Process) -> tuple[int, int]:
        seen = process.line_count()
        os.kill(process.pid, signal.SIGUSR1)
        found = process.wait_for_line(TOLD, after=seen)
        return int(found[1]), int(found[2])


def for_each(few: Count, many: Count, more: float, what: str) -> dict[str, float]:
    """Return each count by name, for each one of those that were more."""
    return {
        f"{role}, {kind} for each {what}": (many[kind][role] - few[kind][role]) / more
        for kind in many
        for role in many[kind]
    }


def least(rounds: list[Count]) -> Count:
    """Return the least of each count."""
    return {
        kind: {role: min(one[kind][role] for one in rounds) for role in rounds[0][kind]}
        for kind in rounds[0]
    }


def each_request(take: Callable[[str, int], Count]) -> dict[str, float]:
    """Return what one small dataset more costs."""
    few, many = (take(SMALL[0], times) for times in REQUESTS)
    return for_each(few, many, REQUESTS[1] - REQUESTS[0], "request")


def each_mib(take: Callable[[str, int], Count], rounds: int = ROUNDS) -> dict[str, float]:
    """Return what one MiB more costs; of bytes, how many for each byte."""
    small, large = (least([take(f"{size}", 1) for _ in range(rounds)]) for size in LARGE_MIB)
    found = for_each(small, large, LARGE_MIB[1] - LARGE_MIB[0], "MiB")
    return {
        name.replace("MiB", "byte") if COPIED in name else name: (
            count / MIB if COPIED in name else count
        )
        for name, count in found.items()
        if name not in UNSTEADY and LEFT not in name
    }


def python_calls(folder: Path) -> dict[str, float]:
    """Return the calls of Python and C functions, and the memory that requests leave in use."""
    with Roles(folder, plain=False) as roles:
        return each_request(roles.calls) | each_mib(roles.calls)


def system_calls(folder: Path) -> dict[str, float]:
    """Return the system calls, and the bytes they copied for each byte of a long dataset."""
    with Roles(folder, plain=True) as roles:
        requests, mibs = each_request(roles.system_calls), each_mib(roles.system_calls)
    return mibs | {name: count for name, count in requests.items() if COPIED not in name}


def main(arguments: list[str]) -> None:
    """Print all counts beside their baselines; with ``--update`` write them."""
    baselines, versions = counts.Baselines.read(), counts.versions_here()
    with tempfile.TemporaryDirectory(prefix="tunnelsync-counts-") as name:
        kinds = {"calls": python_calls, "system calls": system_calls}
        if refused := strace.refusal():
            print(f"no system calls: {refused}")
            del kinds["system calls"]
        measured: dict[str, float] = {}
        for kind, take in kinds.items():
            (folder := Path(name, kind)).mkdir()
            measured |= take(folder)
    if baselines.knows(versions, measured):
        for one in baselines.compare(versions, measured):
            print(f"{'+' if one.grew else '-' if one.shrank else ' '} {one}")
    else:
        print(counts.UNKNOWN.format(versions))
        print(orjson.dumps(measured, option=orjson.OPT_INDENT_2).decode())
    if "--update" in arguments:
        baselines.renew(versions, measured)
        print(f"written: {counts.PATH}")


if __name__ == "__main__":
    main(sys.argv[1:])
