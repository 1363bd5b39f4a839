"""What a dataset holds, told by SHA-256, and the datasets of the soak, which change on purpose.

Every state that a dataset was ever in is known, so what a fetch brings is either one of them,
whole, or wrong. No code is shared with what is judged.
"""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import make_file
from tunnelsync.settings import KIB, MIB

PIECE_BYTES = 256 * KIB
PATCH_BYTES = 64  # one write of so few bytes is never seen in part
SIZES = {
    "empty": 0,
    "table.csv": 40_000,
    "block.bin": 4 * MIB,
    "odd.bin": 9 * MIB + 1,
    "middle.bin": 24 * MIB,
    "large.bin": 64 * MIB,
}


@dataclass(frozen=True, slots=True)
class Contents:
    """Bytes, told by their number and the SHA-256 of each piece of 256 KiB."""

    size: int
    pieces: tuple[bytes, ...]

    def begins_with(self, other: "Contents") -> bool:
        """Whether the other is a true beginning of this, as far as whole pieces tell."""
        whole = other.size // PIECE_BYTES
        return other.size <= self.size and other.pieces[:whole] == self.pieces[:whole]


class Hasher:
    """Takes bytes as they come, and tells what they were."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._open = hashlib.sha256()

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        while view:
            part = view[: PIECE_BYTES - self.size % PIECE_BYTES]
            self._open.update(part)
            self.size += len(part)
            if self.size % PIECE_BYTES == 0:
                self._pieces.append(self._open.digest())
                self._open = hashlib.sha256()
            view = view[len(part) :]

    def contents(self) -> Contents:
        """Return what has come so far."""
        rest = [self._open.digest()] if self.size % PIECE_BYTES else []
        return Contents(self.size, (*self._pieces, *rest))


def contents_of(path: Path) -> Contents | None:
    """Return what a file holds, or None if there is none."""
    try:
        return _hashed(_read(path))
    except FileNotFoundError:
        return None


def _hashed(parts: Iterable[bytes]) -> Contents:
    hasher = Hasher()
    for part in parts:
        hasher.feed(part)
    return hasher.contents()


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(PIECE_BYTES):
            yield data


class Dataset:
    """A file under a connector's root, and each state that it was in, the present one last.

    A state is noted before it comes true. All of this blocks, and one change is made at a time.
    """

    def __init__(self, mac: str, path: Path, size: int, seed: int) -> None:
        self.mac = mac
        self.name = path.name
        self.path = path
        self.changing = False
        self.states: list[Contents] = []
        self._nominal = size
        self._spare = path.parent.with_name(f"{path.parent.name}-{path.name}.next")
        self._write(size, seed)

    @property
    def size(self) -> int:
        """Its size now, in bytes."""
        return self.states[-1].size

    @property
    def present(self) -> int:
        """The number of the present state."""
        return len(self.states) - 1

    def replace(self, chance: random.Random) -> None:
        """Put another file in its place, of another size, as a careful writer does."""
        size = max(1, self._nominal - chance.randrange(self._nominal // 2 + 1))
        self._write(size, chance.getrandbits(32))

    def edit(self, chance: random.Random) -> None:
        """Write into it where it lies: first near its beginning, then near its end.

        Who read the beginning before and the end after holds what there never was.
        """
        last = self.size - PATCH_BYTES
        begin, end = (chance.randrange(min(last, PIECE_BYTES) + 1) for _ in range(2))
        for at in (begin, last - end):
            patch = {at: chance.randbytes(PATCH_BYTES)}
            self.states.append(_hashed(_patched(self.path, patch)))
            with self.path.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), patch[at], at)

    def shorten(self, chance: random.Random) -> None:
        """Cut a little off its end, where it lies."""
        size = self.size - 1 - chance.randrange(min(self.size - 1, PIECE_BYTES))
        self.states.append(_hashed(_cut(self.path, size)))
        os.truncate(self.path, size)

    def _write(self, size: int, seed: int) -> None:
        make_file(self._spare, size, seed)
        self.states.append(_hashed(_read(self._spare)))
        os.replace(self._spare, self.path)


def _patched(path: Path, patches: Mapping[int, bytes]) -> Iterator[bytes]:
    data = bytearray(path.read_bytes())
    for at, patch in patches.items():
        data[at : at + len(patch)] = patch
    yield bytes(data)


def _cut(path: Path, size: int) -> Iterator[bytes]:
    left = size
    for data in _read(path):
        yield data[:left]
        left -= min(left, len(data))


def make_datasets(mac: str, root: Path, seed: int) -> list[Dataset]:
    """Make the datasets of one connector in a new root; no two have a block alike."""
    root.mkdir()
    return [
        Dataset(mac, root / name, size, seed + number)
        for number, (name, size) in enumerate(SIZES.items())
    ]
