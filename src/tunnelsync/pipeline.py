"""A dataset on its way into the store as segments: each is told of as soon as it is up.

`Pipeline` puts what is missing, a few segments at a time, and in the order in which they are
wanted. When all are up, the digests are put beside them, so that the version is found again. What
it has put before it came to an early end is removed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from tunnelsync import objects, segments
from tunnelsync.errors import StoreRefused, StoreUnavailable, TunnelSyncError
from tunnelsync.leftovers import each
from tunnelsync.multipart import Operations
from tunnelsync.segments import Cut, Segment, Shelf
from tunnelsync.settings import StoreSettings
from tunnelsync.together import Together
from tunnelsync.versions import OCTETS, Found, Set, Versions
from tunnelsync.window import Reading, Window

log = logging.getLogger(__name__)

PAUSES_SECONDS = 1, 3, 9
"""Before each further try to put something, so that a store's restart does not cost it all."""


class Pipeline:
    """The segments of one version. ``reused`` tells that they were in the store already.

    ``expires_seconds`` is how long their addresses hold, from when they are signed.
    """

    def __init__(
        self,
        settings: StoreSettings,
        store: Operations,
        versions: Versions,
        key: str,
        size_bytes: int,
        found: Found | None,
        expires_seconds: int,
    ) -> None:
        most = segments.segment_size(size_bytes, settings.part_bytes)
        self._set = found.set if found and found.set else Set(secrets.token_hex(8), most)
        self.shelf = Shelf(size_bytes, self._set.most_bytes, found.packed if found else b"")
        if found:
            self.shelf.fill()
        self.reused = found is not None
        self.expires_seconds = expires_seconds
        self._settings = settings
        self._store = store
        self._versions = versions
        self._key = key
        self._told: set[Cut] = set()
        self._failed = False

    def run(self, offset: int) -> Sequence[Cut]:
        """Return the segments that are up from this byte on, as many as one answer takes.

        Nothing while what a failed one has put is being removed.
        """
        if self._failed:
            return ()
        most, digests_bytes = self._settings.answer_segments, self._settings.answer_digests_bytes
        return self.shelf.run(offset, most=most, digests_bytes=digests_bytes)

    async def stands(self, one: Cut) -> bool:
        """Tell whether a segment that is up is still there: one that we have just put is."""
        fresh = not self.reused and one not in self._told
        return fresh or await self._versions.holds(self._key_of(one), one.length)

    async def signed(self, cuts: Sequence[Cut]) -> tuple[Segment, ...]:
        """Return segments with their addresses."""
        sign, expires_seconds = self._store.sign, self.expires_seconds
        self._told.update(cuts)
        return tuple(
            [
                segments.segment(
                    one, self.shelf.packed, await sign(self._key_of(one), expires_seconds, None)
                )
                for one in cuts
            ]
        )

    async def fill(
        self,
        reading: Reading,
        settled: bool,
        wanted: Callable[[], Iterable[int]],
        tell: Callable[[], None],
    ) -> None:
        """Put what is missing. ``wanted`` names the bytes that are waited for; ``tell`` is called
        each time a segment is up.

        Raises `DatasetChanged`, `ReadFailed`, or an error of the store.
        """
        self.shelf.packed = reading.packed
        pointed = False

        async def work() -> None:
            while (one := self.shelf.take(wanted())) is not None:
                await _patiently(partial(self._put, one, reading))
                tell()

        try:
            if (first := self.shelf.take(wanted())) is not None:
                # Alone, for on a slow line the others would hold it back. And once: as long as
                # nothing has come, who asked may have another way.
                await self._put(first, reading)
                tell()
            together = Together()
            for _ in range(max(1, self._settings.parts_at_once)):
                together.add(work())
            await together.wait()
            pointed = True
            packed = bytes(reading.packed)
            await _patiently(
                partial(self._versions.put_blocks, self._key, packed, settled, self._set)
            )
        except BaseException:
            if not pointed:
                self._failed = True
                await asyncio.shield(self._versions.multipart.own(self._remove()))
            raise

    async def _put(self, one: Cut, reading: Reading) -> None:
        """Put one segment; it counts only if the dataset was the same after it was read."""
        window = Window(reading, one.offset, one.length)
        there = {"Bucket": self._settings.bucket, "Key": self._key_of(one)}
        try:
            await self._store.send(window, "put_object", **there, ContentType=OCTETS)
        except StoreUnavailable:
            window.take_back()
            raise
        await reading.dataset.unchanged()
        self.shelf.put(one)

    def _key_of(self, one: Cut) -> str:
        return objects.segment_key(self._key, self._set.id, one.offset)

    async def _remove(self) -> None:
        """Remove what was put; what the store keeps is for `store gc`, or its rule."""
        bucket, multipart = self._settings.bucket, self._versions.multipart
        left = {self._key_of(one) for one in self.shelf.begun}
        landing = {self._key_of(one) for one in self.shelf.under_way}
        why = "it is silent"

        async def remove(key: str) -> None:
            await self._store.request("delete_object", Bucket=bucket, Key=key)
            left.discard(key)

        try:
            async with asyncio.timeout(self._settings.abort_seconds):
                await each([remove(key) for key in sorted(left)])
        except TimeoutError:
            landing |= left
        except StoreRefused as exc:
            why = exc.message
        except TunnelSyncError as exc:
            why = exc.message
            landing |= left
        if left:
            log.warning("%d segments stay in the store for now: %s", len(left), why)
        for key in landing:  # what was cut off on its way may still come
            multipart.remove_later(key)


async def _patiently(put: Callable[[], Awaitable[object]]) -> None:
    """Put something; a store that is away for a moment is waited for."""
    for seconds in PAUSES_SECONDS:
        with suppress(StoreUnavailable):
            await put()
            return
        await asyncio.sleep(seconds)
    await put()
