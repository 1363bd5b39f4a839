"""Child processes of the bench: started in a clean environment, metered, and ended by their pid.

What a process has cost is read from the kernel, from outside: its CPU clock, and the high-water
mark of its memory, which the kernel lets its owner set back.
"""

import os
import pwd
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

START_SECONDS = 30.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.01
WATCH_SECONDS = 0.02
LEAKS = ("TUNNELSYNC_", "AWS_", "RCLONE_", "SSL_CERT_")
"""Settings of whoever runs the bench that would change what is measured."""

Value = TypeVar("Value")


class BenchFailed(Exception):
    """The bench cannot go on; the message says why."""


class Process:
    """One child process, whose output goes to a log file; ended when its ``with`` ends."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        folder: Path,
        environ: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """Start it; as another user, with no group but its own, if we are root."""
        other: dict[str, Any] = {}
        if user and os.geteuid() == 0:
            other = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        self.name = name
        self.log_path = folder / f"{name.replace(' ', '-')}-{time.monotonic_ns()}.log"
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                [os.fspath(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environ(environ),
                cwd=folder,
                **other,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(self.popen)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.popen.pid

    def log(self) -> str:
        """Return what the process has written so far."""
        return self.log_path.read_text(errors="replace")

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait until its log holds the pattern; raise `BenchFailed` if it ends before."""
        return self.wait_until(lambda: re.search(pattern, self.log()), f"write {pattern!r}")

    def wait_until(self, predicate: Callable[[], Value | None], what: str) -> Value:
        """Poll until the predicate gives something; raise `BenchFailed` if the process ends."""
        deadline = time.monotonic() + START_SECONDS
        while not (found := predicate()):
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise BenchFailed(f"{self.name} did not {what}:\n{self.log()[-2000:]}")
            time.sleep(POLL_SECONDS)
        return found


def end(popen: "subprocess.Popen[bytes]") -> None:
    """End a child that may have ended already: SIGTERM, and SIGKILL if that does not help."""
    if popen.poll() is None:
        popen.send_signal(signal.SIGTERM)
        try:
            popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            popen.kill()
    popen.wait()


def clean_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without settings, keys and proxies, and with ``extra``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(LEAKS) and not name.lower().endswith("_proxy")
    }
    return kept | {"AWS_EC2_METADATA_DISABLED": "true"} | dict(extra or {})


def free_ports(count: int) -> list[int]:
    """Return so many different ports of 127.0.0.1 that nobody listens on now."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]


def listens(port: int) -> bool:
    """Whether a socket listens on a port of this machine, without connecting to it."""
    wanted = f":{port:04X}"
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(path).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and local.endswith(wanted):
                return True
    return False


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process so far, to the nanosecond.

    The kernel's clock of another process, as ``clock_getcpuclockid(3)`` would name it.
    """
    return time.clock_gettime((~pid << 3) | 2)


def forget_peak(pid: int) -> bool:
    """Set the high-water mark of a process's memory back to now; False where that is refused."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(pid: int) -> int:
    """Return the most memory (VmHWM) that a process has held since `forget_peak`."""
    return _told_bytes(pid, "VmHWM")


def held_bytes(pid: int) -> int:
    """Return the memory (VmRSS) that a process holds now."""
    return _told_bytes(pid, "VmRSS")


def _told_bytes(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise BenchFailed(f"process {pid} tells no {name}")
    return int(found[1]) * 1024


@contextmanager
def watched(pid: int, into: list[int]) -> Iterator[None]:
    """Put the most memory into a list that a process has held, also if it ends meanwhile.

    Its resource usage after its end would not do: that holds what it had before its ``exec``,
    which is our own memory.
    """
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            try:
                into[:] = [peak_bytes(pid)]
            except (OSError, BenchFailed):
                return
            over.wait(WATCH_SECONDS)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def metered(pids: Mapping[str, int], into: dict[str, float]) -> Iterator[None]:
    """Put the CPU seconds that each named process uses meanwhile into a dictionary."""
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    yield
    into.update({name: cpu_seconds(pid) - before[name] for name, pid in pids.items()})
