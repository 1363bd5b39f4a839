"""The system calls of running processes, by ``strace``: how many, and what bytes they copied."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

MISSING = "strace is not installed (`apt-get install strace` brings it)"
REFUSED = "ptrace is refused here, so that strace cannot look at a process"
RESULT = re.compile(r"\d+ +(?:<\.\.\. )?(\w+)[ (].*= (-?\d+)")
"""One line of a call that has ended: ``PID name(...) = 5``, or ``PID <... name resumed>) = 5``."""
COPIES = re.compile(r"(p?read|readv|preadv2?|recv\w*|p?write|writev|pwritev2?|send(to|msg))(64)?")
"""System calls whose result is a number of bytes that went through the memory of the process."""


@dataclass(slots=True)
class SystemCalls:
    """What one process did meanwhile."""

    count: int = 0
    bytes_copied: int = 0


def counted(lines: Iterable[str]) -> SystemCalls:
    """Return what a log of strace tells; a call that did not end is none."""
    calls = SystemCalls()
    for line in lines:
        if found := RESULT.match(line):
            calls.count += 1
            if COPIES.fullmatch(found[1]):
                calls.bytes_copied += max(0, int(found[2]))
    return calls


def refusal() -> str:
    """Return why there is no strace here, or nothing."""
    if shutil.which("strace") is None:
        return MISSING
    with subprocess.Popen(("sleep", "60")) as other:
        try:
            with _attached(other.pid, Path("/dev/null")) as began:
                return "" if began else REFUSED
        finally:
            other.kill()


@contextmanager
def watched(pids: Mapping[str, int], folder: Path) -> Iterator[dict[str, SystemCalls]]:
    """Count meanwhile what each named process and its threads do; filled in at the end."""
    logs = {name: folder / f"{name}.strace" for name in pids}
    tallies: dict[str, SystemCalls] = {}
    with ExitStack() as stack:
        for name, pid in pids.items():
            assert stack.enter_context(_attached(pid, logs[name])), REFUSED
        yield tallies
    for name, log in logs.items():
        with log.open() as lines:
            tallies[name] = counted(lines)


@contextmanager
def _attached(pid: int, log: Path) -> Iterator[bool]:
    """Have strace on a process and its threads; False if it cannot."""
    command = ("strace", "-f", "-s", "0", "-e", "signal=none", "-o", log, "-p", str(pid))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            yield "attached" in strace.stderr.readline()
        finally:
            strace.send_signal(signal.SIGINT)
            strace.communicate()
