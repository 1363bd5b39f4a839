"""The signals of a command: the first one stops its work, the second one the process."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cli.ran import environment

SLOW_TO_STOP = """
import asyncio, sys
from tunnelsync.cli import running
from tunnelsync.cli.output import Interrupted

async def work():
    print("works", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("stops", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

try:
    running.run(work(), terminated_code=0)
except Interrupted as interrupted:
    sys.exit(interrupted.code)
"""


@pytest.fixture
def slow() -> Iterator["subprocess.Popen[str]"]:
    """A process that ends well after SIGTERM, once it has read a line."""
    command, pipe = (sys.executable, "-c", SLOW_TO_STOP), subprocess.PIPE
    with subprocess.Popen(
        command, env=environment(), stdin=pipe, stdout=pipe, text=True
    ) as process:
        try:
            says(process, "works")
            yield process
        finally:
            process.kill()


def says(process: "subprocess.Popen[str]", what: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{what}\n"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_it_at_once_and_never_well(
    slow: "subprocess.Popen[str]", first: signal.Signals
) -> None:
    slow.send_signal(first)
    says(slow, "stops")
    slow.send_signal(signal.SIGTERM)
    assert slow.wait(20) == 130


@pytest.mark.parametrize(
    ("first", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 130)]
)
def test_a_terminal_that_is_closed_meanwhile_does_not_end_it_at_once(
    slow: "subprocess.Popen[str]", first: signal.Signals, code: int
) -> None:
    slow.send_signal(first)
    says(slow, "stops")
    slow.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        slow.wait(0.2)
    slow.communicate("\n", timeout=20)
    assert slow.returncode == code
