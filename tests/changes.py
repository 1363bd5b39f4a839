"""What may happen to a dataset while it is read."""

import os
from pathlib import Path

from harness import sparse_file


def grow(path: Path) -> None:
    """Add to its end."""
    with path.open("ab") as file:
        file.write(b"more")


def edit(path: Path) -> None:
    """Change its beginning, and put its mtime back."""
    found = path.stat()
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def swap(path: Path) -> None:
    """Put another one of the same size in its place."""
    other = sparse_file(path.with_name("other"), path.stat().st_size, {0: b"another version"})
    other.replace(path)
