"""What a process holds, as the kernel tells it, and what a router counts."""

from pathlib import Path

import raw_http
from harness import Process
from tunnelsync.settings import KIB


def rss_bytes(process: Process) -> int:
    """Return what a process holds in memory now (VmRSS)."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * KIB
    raise AssertionError("no VmRSS")


def descriptors(process: Process) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def files_open(process: Process) -> list[str]:
    """Return the datasets that a process has open."""
    found = []
    for one in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            found.append(str(one.readlink()))
        except FileNotFoundError:
            continue
    return [path for path in found if "/datasets/" in path]


def bytes_read(pid: int) -> int:
    """Return what a process has read so far, from files and sockets."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise AssertionError("no rchar")


def metric(url: str, name: str) -> float:
    """Return one number of ``/metrics``."""
    for line in raw_http.ask(url, "GET", "/metrics").body.decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(f"no {name}")
