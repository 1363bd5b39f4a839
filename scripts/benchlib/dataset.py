"""The file that everybody moves, in the page cache; and the memory that its copies will take."""

import os
from collections.abc import Callable
from pathlib import Path

POOL_BYTES = 32 * 2**20
READ_BYTES = 2**20
COPIES = 2
"""So many are written at most: the store's, and the output."""
ZEROS = bytes(READ_BYTES)


def dataset(folder: Path, size: int, say: Callable[[str], None]) -> Path:
    """Return a file of this size, made on first use, then read once: the cache is warm."""
    path = folder / f"{size}.bin"
    if not path.exists():
        say(f"making a file of {size:,} bytes")
        pool = memoryview(os.urandom(min(size, POOL_BYTES)))
        with path.open("wb") as file:
            for start in range(0, size, len(pool)):
                file.write(pool[: size - start])
            os.fsync(file.fileno())
    with path.open("rb", buffering=0) as file:
        chunk = bytearray(READ_BYTES)
        while file.readinto(chunk):
            pass
    return path


def touch_memory(scratch: Path, dataset_bytes: int) -> None:
    """Have the host of a virtual machine back the memory that the copies will take.

    It takes free pages away after some seconds, and the first touch of each then costs ten times
    as much as writing it: who came upon them would be chance. A file that was written and removed
    leaves those pages that the next one gets.
    """
    with scratch.open("wb", buffering=0) as file:
        for _ in range(COPIES * dataset_bytes // READ_BYTES):
            file.write(ZEROS)
    scratch.unlink()
