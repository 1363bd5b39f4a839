"""The memory of what is read past aiohttp."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from tunnelsync.client import body

if sys.argv[1] == "kept":
    body.keep_memory()
for turn in range(12):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [b"x" * body.DIRECT_READ_BYTES for _ in range(12)]
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc works so")
def test_the_memory_of_a_block_is_kept_for_the_next() -> None:
    assert faults("kept") * 10 < faults("as it comes")
