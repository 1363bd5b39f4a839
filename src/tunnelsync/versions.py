"""One version of a dataset in the store: whether it is there, and how it becomes one object.

Its ``blocks`` object, the packed digests, says in its metadata what they are of: of ``data``, or
of a whole set of segments, out of which ``data`` can be composed inside the store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from tunnelsync import frames, objects, segments
from tunnelsync.errors import StoreRefused, StoreUnavailable
from tunnelsync.frames import DIGEST_BYTES
from tunnelsync.multipart import Multipart, Operations
from tunnelsync.objects import BLOCKS, DATA
from tunnelsync.settings import StoreSettings
from tunnelsync.window import Reading, Window

OCTETS = "application/octet-stream"
SEGMENTS = re.compile(rf"({objects.SET.pattern})-([0-9]{{1,15}})")


@dataclass(frozen=True, slots=True)
class Set:
    """A set of segments that is whole: its name, and the most bytes of one."""

    id: str
    most_bytes: int

    def __str__(self) -> str:
        return f"{self.id}-{self.most_bytes}"


@dataclass(frozen=True, slots=True)
class Found:
    """A version that is in the store: its packed digests, its age, and the set it is in, if any."""

    packed: bytes
    age_seconds: float
    set: Set | None


class Versions:
    """The versions in one store. All raise what its operations raise."""

    def __init__(self, settings: StoreSettings, store: Operations) -> None:
        self._settings = settings
        self._bucket = settings.bucket
        self._store = store
        self.multipart = Multipart(settings, store)

    async def find(self, key: str, size_bytes: int) -> Found | None:
        """Return a version if it is there: whole, settled, and in the first half of its life."""
        digests_bytes = frames.block_count(size_bytes) * DIGEST_BYTES
        blocks = await self._store.ask("get_object", Bucket=self._bucket, Key=key + BLOCKS)
        if blocks is None:
            return None
        said = blocks["Metadata"]
        age_seconds = objects.age_seconds(blocks, blocks["LastModified"])
        async with blocks["Body"] as body:
            fits = blocks["ContentLength"] == digests_bytes and said.get("settled") == "yes"
            if not fits or age_seconds > self._settings.object_lifetime_seconds / 2:
                body.close()
                return None
            packed: bytes = await self._store.wait(body.read)
        if len(packed) != digests_bytes:
            return None
        if of := SEGMENTS.fullmatch(said.get("segments", "")):
            return Found(packed, age_seconds, Set(of[1], int(of[2])))
        whole = await self.holds(key + DATA, size_bytes)
        return Found(packed, age_seconds, None) if whole else None

    async def holds(self, key: str, size_bytes: int) -> bool:
        """Tell whether an object is there, and of this size."""
        found = await self._store.ask("head_object", Bucket=self._bucket, Key=key)
        return found is not None and found["ContentLength"] == size_bytes

    async def put_blocks(self, key: str, packed: bytes, settled: bool, of: Set | None) -> None:
        """Put the digests of a version, which say that it is whole; or of data about to be."""
        said = {"settled": "yes" if settled else "no"} | ({"segments": str(of)} if of else {})
        await self._store.request(
            "put_object",
            Bucket=self._bucket,
            Key=key + BLOCKS,
            Body=packed,
            ContentType=OCTETS,
            Metadata=said,
        )

    async def upload(self, key: str, reading: Reading, settled: bool) -> None:
        """Put a version as one object."""

        async def before_end() -> None:
            """What comes before the last byte: the last stat, and the digests."""
            await reading.dataset.unchanged()
            await self.put_blocks(key, bytes(reading.packed), settled, None)

        size_bytes = reading.dataset.size
        part_bytes = objects.part_size(size_bytes, self._settings.part_bytes)
        data = {"Bucket": self._bucket, "Key": key + DATA}
        send = self._store.send

        async def part(start: int, **upload: Any) -> str:
            window = Window(reading, start, min(part_bytes, size_bytes - start))
            return str((await send(window, "upload_part", **upload))["ETag"])

        if size_bytes > part_bytes:
            parts = [partial(part, start) for start in range(0, size_bytes, part_bytes)]
            await self.multipart.upload(parts, before_end, data, ContentType=OCTETS)
        elif size_bytes:
            window = Window(reading, 0, size_bytes, before_end)
            await send(window, "put_object", **data, ContentType=OCTETS)
        else:
            await before_end()
            await self._store.request("put_object", **data, Body=b"", ContentType=OCTETS)

    async def compose(self, key: str, size_bytes: int, found: Found) -> bool:
        """Make the one object of a version out of its segments, inside the store.

        False if one of them is not there, or the store cannot do it: nothing has changed then.
        """
        whole = found.set
        assert whole is not None

        async def part(one: segments.Cut, **upload: Any) -> str:
            source = objects.segment_key(key, whole.id, one.offset)
            there = {"Bucket": self._bucket, "Key": source}
            if not await self.holds(source, one.length):
                raise _Gone
            copied = await self._store.ask("upload_part_copy", **upload, CopySource=there)
            if copied is None:
                raise _Gone
            return str(copied["CopyPartResult"]["ETag"])

        parts = [partial(part, one) for one in segments.cut(size_bytes, whole.most_bytes)]
        before_end = partial(self.put_blocks, key, found.packed, True, None)
        data = {"Bucket": self._bucket, "Key": key + DATA}
        try:
            await self.multipart.upload(parts, before_end, data, ContentType=OCTETS)
        except (_Gone, StoreRefused, StoreUnavailable):
            return False  # a store that is away is told of by the upload that comes in its place
        return True


class _Gone(Exception):
    """A segment is not there any more."""
