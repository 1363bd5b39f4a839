"""A way of a dataset from file to file, and one run of it: what it took, what it cost the relay."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchlib import peers
from benchlib.processes import (
    BenchFailed,
    clean_environ,
    cpu_seconds,
    forget_peak,
    peak_bytes,
)
from benchlib.runs import Sample

RUN_SECONDS = 120
"""For one command; also the slowest takes a tenth of that on an idle machine."""
READY_SECONDS = 30.0
LOCAL = "127.0.0.1"
RELAY = "relay"
QUIET_CURL = ("curl", "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*")
Run = Callable[[Path, bool], Sample]
"""Brings the dataset into a file, with or without a final sync."""


@dataclass(frozen=True)
class Setting:
    """What all relays find: the dataset, an nginx that serves it (if there is one; a relay that
    needs it says so), and a folder for their own files."""

    source: Path
    nginx: peers.Nginx | None
    folder: Path

    @property
    def origin(self) -> str:
        """The address of the nginx."""
        assert self.nginx is not None
        return self.nginx.url

    @property
    def origin_port(self) -> int:
        """The port of the nginx, on 127.0.0.1."""
        return int(self.origin.rpartition(":")[2])

    def home(self, name: str) -> Path:
        """Make a folder for one relay."""
        path = self.folder / name
        path.mkdir()
        return path


def _nothing() -> None:
    pass


def measured(
    receive: Callable[[Path], object],
    pids: Sequence[int] = (),
    prepare: Callable[[], None] = _nothing,
) -> Run:
    """Return a run of whole commands, which also tells what they cost the relay's processes."""

    def run(path: Path, sync: bool) -> Sample:
        prepare()
        for pid in pids:
            forget_peak(pid)
        before = sum(map(cpu_seconds, pids))
        began = time.perf_counter()
        receive(path)
        seconds = time.perf_counter() - began
        if sync:
            seconds += peers.synced(path)
        if not pids:
            return Sample(seconds)
        used = sum(map(cpu_seconds, pids)) - before
        return Sample(seconds, None, {RELAY: used}, {RELAY: max(map(peak_bytes, pids))})

    return run


def command(*words: str | os.PathLike[str], environ: dict[str, str] | None = None) -> str:
    """Run a command to its end, and return its output; raise `BenchFailed` if it fails."""
    name = Path(words[0]).name
    try:
        done = subprocess.run(
            words,
            env=clean_environ(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=RUN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"{name} took more than {RUN_SECONDS} s") from None
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode:
        raise BenchFailed(f"{name} ended with {done.returncode}: {said[-300:]}")
    return said


def through(url: str, source: Path, pids: Sequence[int] = ()) -> Run:
    """Return a run that gets the dataset from an address with curl, once that answers."""
    address = f"{url}/{source.name}"
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            command(*QUIET_CURL, "--max-time", "5", "--range", "0-0", "-o", os.devnull, address)
            break
        except BenchFailed as error:
            if time.monotonic() > deadline:
                raise BenchFailed(f"nothing comes through it: {error}") from None
            time.sleep(0.05)

    def receive(path: Path) -> None:
        command(*QUIET_CURL, "-o", path, address)

    return measured(receive, pids)
