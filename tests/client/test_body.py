"""The memory of what is read past aiohttp."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, socket, sys
from tunnelsync.client import body

ours, theirs = socket.socketpair()
if sys.argv[1] == "read":
    body._Direct(ours, 1)
for turn in range(12):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [b"x" * body.DIRECT_READ_BYTES for _ in range(12)]
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
IS_GLIBC = platform.libc_ver()[0] == "glibc" and sys.maxsize > 2**32


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        env={
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


@pytest.mark.skipif(not IS_GLIBC, reason="only the malloc of a glibc of 64 bits works so")
def test_the_memory_of_a_block_is_kept_for_the_next() -> None:
    assert faults("read") * 10 < faults("nothing")
