"""The journal of a part file: which of its blocks are verified, so that the next run trusts them.

A file of records, each a 4-byte big-endian length, a payload, and the first 16 bytes of the
payload's BLAKE3. The first payload is JSON: whose blocks these are. Each other one is blocks that
were written before: 8-byte index, 32-byte digest; zeros for a digest take a block back. What comes
after a record that is cut or wrong is not believed.

A last record of 8 bytes is the seal of a run that ended in order: the ctime of its part file, which
every write changes and nobody can set. Under another ctime, or without a seal, a block in the part
file is what the journal says only if its digest proves it.
"""

import errno
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from tunnelsync import frames
from tunnelsync.frames import DIGEST_BYTES

FORMAT = 1
CHECK_BYTES = 16
LENGTH = struct.Struct(">I")
ENTRY = struct.Struct(f">Q{DIGEST_BYTES}s")
SEAL = struct.Struct(">Q")
TAKEN_BACK = bytes(DIGEST_BYTES)
"""What no block has for a digest: one that the journal named is not to be trusted any more."""
RECORD_BYTES = 4 * 1024 * 1024
"""The longest record; more blocks than it holds go into several."""
NOT_ITS_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO})
"""A file that cannot be read for one of these may be right all the same."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dataset is asked for: blocks of another origin are never joined with its own."""

    router: str
    mac: str
    dataset: str


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a dataset; size in bytes."""

    size: int
    etag: str
    modified_ns: int

    def same(self, other: "Version") -> bool:
        """Tell whether blocks of the other may stand beside blocks of this one.

        Without an etag nothing says that two answers are of one version.
        """
        return self.etag != "" and (self.size, self.etag) == (other.size, other.etag)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a journal says: verified blocks of this version, by index.

    ``sealed_ns`` is the ctime under which they need no second look; None if there is none.
    """

    origin: Origin
    version: Version
    blocks: Mapping[int, bytes]
    sealed_ns: int | None = None


def encode(kept: Kept) -> bytes:
    """Return a whole journal, which is not sealed."""
    head = {"format": FORMAT, **asdict(kept.origin), **asdict(kept.version)}
    return _record(orjson.dumps(head)) + encode_blocks(kept.blocks.items())


def encode_blocks(blocks: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the records of blocks that became verified."""
    packed = b"".join(ENTRY.pack(index, digest) for index, digest in blocks)
    step = RECORD_BYTES - RECORD_BYTES % ENTRY.size
    return b"".join(_record(packed[at : at + step]) for at in range(0, len(packed), step))


def encode_seal(ctime_ns: int) -> bytes:
    """Return the record that ends a journal in order."""
    return _record(SEAL.pack(ctime_ns))


def decode(data: bytes) -> Kept | None:
    """Return what a journal says, or None if it says nothing that can be believed."""
    records = list(_records(data))
    try:
        head = orjson.loads(records[0])
        if _number(head["format"]) != FORMAT:
            return None
        origin = Origin(*(_text(head[name]) for name in ("router", "mac", "dataset")))
        version = Version(
            _number(head["size"]), _text(head["etag"]), _number(head["modified_ns"], -(2**63))
        )
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    blocks: dict[int, bytes] = {}
    count = frames.block_count(version.size)
    sealed_ns = None
    for packed in records[1:]:
        if len(packed) == SEAL.size:
            (sealed_ns,) = SEAL.unpack(packed)
        if len(packed) % ENTRY.size:
            break
        blocks |= {index: one for index, one in ENTRY.iter_unpack(packed) if index < count}
    right = {index: one for index, one in blocks.items() if one != TAKEN_BACK}
    return Kept(origin, version, right, sealed_ns)


class Journal:
    """The journal in a file; all of it blocks. ``limit_bytes`` is the most that is read."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self._limit = limit_bytes
        self._descriptor = -1

    def read(self) -> Kept | None:
        """Return what the file says, or None: no file, too long a one, or not to be believed.

        Raises `OSError` for trouble that is not the file's own: nothing is known of it then.
        """
        try:
            with open(self.path, "rb", opener=_unblocking) as file:
                data = file.read(self._limit + 1) or b""
        except OSError as error:
            if error.errno in NOT_ITS_OWN:
                raise
            return None
        return decode(data) if len(data) <= self._limit else None

    @property
    def begun(self) -> bool:
        """Whether it is being written."""
        return self._descriptor >= 0

    def begin(self, kept: Kept) -> None:
        """Write it anew, in one step, and go on with `append`, which syncs it.

        One without blocks need not outlive a power cut, and costs no wait for the disk.
        """
        self.close()
        fresh = self._fresh
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(fresh, flags, 0o666)
        try:
            _write(self._descriptor, encode(kept))
            if kept.blocks:
                os.fsync(self._descriptor)
            os.replace(fresh, self.path)
        except OSError:
            self.close()
            fresh.unlink(missing_ok=True)
            raise

    def append(self, blocks: Iterable[tuple[int, bytes]]) -> None:
        """Add blocks whose bytes are written already, and sync it: it outlives a power cut.

        What fails leaves it as it was, for what follows half a record would not be believed.
        """
        self._append(encode_blocks(blocks))

    def seal(self, ctime_ns: int) -> None:
        """Say, after all else, under which ctime the part file needs no second look."""
        self._append(encode_seal(ctime_ns))

    def _append(self, records: bytes) -> None:
        end = os.fstat(self._descriptor).st_size
        try:
            _write(self._descriptor, records)
        except OSError:
            os.ftruncate(self._descriptor, end)
            os.lseek(self._descriptor, end, os.SEEK_SET)
            raise
        os.fdatasync(self._descriptor)

    def remove(self) -> bool:
        """Delete the file, but not one that has replaced ours; True if there was one."""
        ours = self._descriptor < 0 or self._is_ours()
        self.close()
        if not ours:
            return False
        with suppress(FileNotFoundError):
            self._fresh.unlink()
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True

    @property
    def _fresh(self) -> Path:
        # No longer than the path itself, which may be as long as a name can be.
        return self.path.with_suffix(".new")

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.lstat())
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Close the file; harmless when it is closed."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _unblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _record(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload + frames.digest(payload)[:CHECK_BYTES]


def _records(data: bytes) -> Iterable[bytes]:
    at = 0
    while at + LENGTH.size <= len(data):
        (length,) = LENGTH.unpack_from(data, at)
        start, at = at + LENGTH.size, at + LENGTH.size + length + CHECK_BYTES
        if length > RECORD_BYTES or at > len(data):
            return
        payload = data[start : start + length]
        if frames.digest(payload)[:CHECK_BYTES] != data[at - CHECK_BYTES : at]:
            return
        yield payload


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise TypeError
    return value


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
