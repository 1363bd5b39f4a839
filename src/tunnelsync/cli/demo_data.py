"""The data of ``tunnelsync demo``: what each connector offers, and the SHA-256 to compare with.

Everything is done in steps of a few milliseconds, so that a signal is heard between two of them
and no thread goes on writing into a folder that is being removed.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunnelsync.settings import MIB

TABLE = "orders.csv"
MEDIUM = "8-mib.bin"
LARGE = "256-mib.bin"
TABLE_ROWS = 20_000
STEP_BYTES = 4 * MIB
CITIES = ("Bogotá", "Kraków", "Lagos", "München", "Osaka", "São Paulo")

Steps = Generator[None, None, str]
"""Work in small steps, which returns a SHA-256 in hex."""


@dataclass(frozen=True, slots=True)
class Site:
    """One connector of the demo: its MAC, its root, and the SHA-256 of each dataset in it."""

    mac: str
    root: Path
    sha256: Mapping[str, str]


async def make_site(mac: str, root: Path) -> Site:
    """Make the datasets of one connector in an empty root; no two connectors have a block alike."""
    parts: dict[str, Callable[[], Iterator[bytes]]] = {
        TABLE: lambda: _orders(random.Random(mac)),
        MEDIUM: lambda: _random(8 * MIB),
        LARGE: lambda: _random(256 * MIB),
    }
    digests = {name: await _done(_written(root / name, make())) for name, make in parts.items()}
    return Site(mac, root, digests)


async def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex: a check that shares no code with what it checks."""
    return await _done(_read(path))


async def _done(steps: Steps) -> str:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return str(end.value)
        await asyncio.sleep(0)


def _written(path: Path, parts: Iterator[bytes]) -> Steps:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            yield
    return digest.hexdigest()


def _read(path: Path) -> Steps:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(STEP_BYTES):
            digest.update(part)
            yield
    return digest.hexdigest()


def _random(size_bytes: int) -> Iterator[bytes]:
    """Yield steps that nothing can compress, each another window into a few random bytes."""
    pool = random.randbytes(STEP_BYTES + size_bytes // STEP_BYTES)
    for start in range(size_bytes // STEP_BYTES):
        yield pool[start : start + STEP_BYTES]


def _orders(chance: random.Random) -> Iterator[bytes]:
    lines = ["order,day,city,amount"]
    for number in range(1, TABLE_ROWS + 1):
        day = f"2024-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
        lines.append(f"{number},{day},{chance.choice(CITIES)},{chance.randint(100, 99999) / 100}")
    yield "\n".join([*lines, ""]).encode()
