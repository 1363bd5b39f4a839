"""A dataset as several objects of the store, each of use as soon as it is up; no I/O.

A *segment* is a run of whole blocks, and an object of its own. The first one is small, so that the
first byte comes early; they grow to a size that keeps their number bounded. Which of them comes
next is asked for: `Shelf` brings first what somebody waits for, and then what follows it.
"""

import base64
import binascii
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunnelsync import frames
from tunnelsync.errors import ProtocolError
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES
from tunnelsync.objects import LEAST_PART_BYTES, part_size

MOST_SEGMENTS = 980
"""Of the largest size; with the smaller ones before them they stay below 1000, which is what a
store lists, or removes, in one answer."""

SMALL_PART = 64


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a segment lies in its dataset, in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Segment:
    """Where the store has a part of a dataset; ``blocks`` are its digests, packed, as base64."""

    offset: int
    length: int
    download_url: str
    blocks: str


@dataclass(frozen=True, slots=True)
class SegmentsAnswer:
    """Mode offload for a client that takes segments: those that are up, from where it asked on.

    ``root`` is told once all of the dataset is up. ``store_origins`` is added by the router: a
    client downloads from no other.
    """

    segments: tuple[Segment, ...]
    dataset: str
    size: int
    etag: str
    modified_ns: int
    expires_seconds: int
    root: str | None = None
    reused: bool = False
    store_origins: tuple[str, ...] = ()
    status: str = "success"


def segment_size(size_bytes: int, part_bytes: int) -> int:
    """Return the most bytes of one segment: whole blocks, and few enough segments.

    Those that go up at once come last together, and then are still to be downloaded: so they
    are a small part of their dataset.
    """
    return part_size(size_bytes, min(part_bytes, size_bytes // SMALL_PART), MOST_SEGMENTS)


def cut(size_bytes: int, most_bytes: int) -> tuple[Cut, ...]:
    """Cut a dataset into segments: from 8 MiB on they double, up to ``most_bytes``.

    None is smaller but the last one, for S3 composes an object only of parts from 5 MiB on.
    """
    cuts: list[Cut] = []
    at, length = 0, LEAST_PART_BYTES
    while at < size_bytes:
        cuts.append(Cut(at, min(length, size_bytes - at)))
        at += length
        length = max(length, min(2 * length, most_bytes))
    return tuple(cuts)


def digests_in(packed: bytes | bytearray, one: Cut) -> bytes:
    """Return the packed digests of a segment, out of those of its dataset."""
    first = one.offset // BLOCK_BYTES
    last = first + frames.block_count(one.length)
    return bytes(packed[first * DIGEST_BYTES : last * DIGEST_BYTES])


def segment(one: Cut, packed: bytes | bytearray, download_url: str) -> Segment:
    """Return a segment as it is told; ``packed`` are the digests of the whole dataset."""
    blocks = base64.b64encode(digests_in(packed, one)).decode()
    return Segment(one.offset, one.length, download_url, blocks)


def proof_of(said: Segment, size_bytes: int) -> bytes:
    """Return the packed digests of a segment of a dataset of this size.

    Raises `ProtocolError` for one that cannot be: not of whole blocks, or with other digests.
    """
    end = said.offset + said.length
    fits = 0 <= said.offset < end <= size_bytes and said.offset % BLOCK_BYTES == 0
    if not fits or (end % BLOCK_BYTES and end != size_bytes):
        raise ProtocolError(f"{said.length} bytes from {said.offset} on cannot be a segment")
    try:
        packed = base64.b64decode(said.blocks.encode(), validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("the digests of a segment are not base64") from None
    if len(packed) != frames.block_count(said.length) * DIGEST_BYTES:
        raise ProtocolError(f"a segment of {said.length} bytes came with other digests")
    return packed


class Shelf:
    """The segments of one version: which are up, and which one is brought next.

    ``packed`` holds the digests of the dataset, right where a segment is up.
    """

    def __init__(self, size_bytes: int, most_bytes: int, packed: bytes | bytearray = b"") -> None:
        self.cuts = cut(size_bytes, most_bytes)
        self.packed = packed
        self._starts = [one.offset for one in self.cuts]
        self._up = bytearray(len(self.cuts))
        self._begun = bytearray(len(self.cuts))

    @property
    def whole(self) -> bool:
        """Whether all of them are up."""
        return all(self._up)

    @property
    def begun(self) -> list[Cut]:
        """Those that are up, or may be."""
        return [one for one, begun in zip(self.cuts, self._begun, strict=True) if begun]

    @property
    def under_way(self) -> list[Cut]:
        """Those that are not up, but may be."""
        pairs = zip(self.cuts, self._begun, self._up, strict=True)
        return [one for one, begun, up in pairs if begun and not up]

    def fill(self) -> None:
        """Note that all of them are up."""
        self._up = self._begun = bytearray(b"\1" * len(self.cuts))

    def put(self, one: Cut) -> None:
        """Note that one is up."""
        self._up[self._at(one.offset)] = 1

    def take(self, wanted: Iterable[int]) -> Cut | None:
        """Return what is to be brought next, or None if all has begun.

        First what holds a byte that is wanted, then what follows one, then whatever is missing.
        """
        starts = [self._at(offset) for offset in wanted]
        index = next((at for at in starts if at < len(self.cuts) and not self._begun[at]), -1)
        for at in (*starts, 0):
            if index < 0:
                index = self._begun.find(0, at)
        if index < 0:
            return None
        self._begun[index] = 1
        return self.cuts[index]

    def run(self, offset: int, *, most: int, digests_bytes: int) -> Sequence[Cut]:
        """Return the segments that are up from the one with this byte on, without a gap.

        At most so many, and with so many bytes of digests, but one in any case.
        """
        found: list[Cut] = []
        room = digests_bytes
        for index in range(self._at(offset), len(self.cuts)):
            one = self.cuts[index]
            room -= frames.block_count(one.length) * DIGEST_BYTES
            if not self._up[index] or len(found) >= max(1, most) or (found and room < 0):
                break
            found.append(one)
        return found

    def _at(self, offset: int) -> int:
        """Return the index of the segment with a byte; their number for one past the end."""
        past = not self.cuts or offset >= self.cuts[-1].end
        return len(self.cuts) if past else max(0, bisect_right(self._starts, offset) - 1)
