"""The file that everybody moves: random, on the disk, and in the page cache."""

import os
from collections.abc import Callable
from pathlib import Path

POOL_BYTES = 32 * 2**20
READ_BYTES = 2**20


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
