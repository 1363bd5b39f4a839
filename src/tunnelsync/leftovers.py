"""What is left over in the store: objects that have had their life, uploads that nobody will end.

A version's data and blocks are one object, as old as the younger of them. Nothing is touched but
keys of ours, see ``objects.py``; ages are those of the store's own clock. One page of a listing is
in memory at a time.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from tunnelsync import objects
from tunnelsync.errors import StoreRefused
from tunnelsync.multipart import Request
from tunnelsync.objects import BLOCKS, Kept, OpenUpload
from tunnelsync.settings import StoreSettings
from tunnelsync.together import Together

AT_ONCE = 16  # removals: what a store takes from one client without slowing others
Age = Callable[[], float]
"""How many seconds old a thing must be to go, asked anew for each answer of the store."""


class Leftovers:
    """Finds and removes what is left over; ``request`` and ``ask`` are those of the store.

    All raise `StoreRefused` or `StoreUnavailable`; what was removed before stays so.
    """

    def __init__(self, settings: StoreSettings, *, request: Request, ask: Request) -> None:
        self._bucket = settings.bucket
        self._prefix = settings.prefix
        self._request, self._ask = request, ask

    async def objects(self, older_than: Age) -> AsyncIterator[list[Kept]]:
        """Yield the objects that are older, page by page."""
        beneath = objects.beneath(self._prefix)
        last: Kept | None = None  # its other key may be on the next page
        token: dict[str, str] = {}
        while True:
            page = await self._request(
                "list_objects_v2", Bucket=self._bucket, Prefix=beneath, **token
            )
            whole, last = objects.kept(page.get("Contents", ()), self._prefix, last)
            more = page.get("IsTruncated") and page.get("NextContinuationToken")
            if last and not more:
                whole.append(last)
            if old := [one for one in whole if objects.age_seconds(page, one.at) >= older_than()]:
                yield old
            if not more:
                return
            token = {"ContinuationToken": more}

    async def uploads(self, older_than: Age, mac: str = "") -> AsyncIterator[list[OpenUpload]]:
        """Yield the multipart uploads that were begun earlier, those of one connector or of all."""
        beneath = objects.beneath(self._prefix, mac)
        found = False
        async for page in self._upload_pages(beneath):
            found |= bool(page.get("Uploads"))
            if old := self._older(page, mac, older_than):
                yield old
        if found or not beneath:
            return
        # MinIO lists under a prefix only what has just that key, and all that there is without.
        try:
            page = await self._request("list_multipart_uploads", Bucket=self._bucket)
        except StoreRefused:
            return  # a policy allows the prefix alone, which MinIO's have no way to say
        if old := self._older(page, mac, older_than):
            yield old

    def _older(self, page: dict[str, Any], mac: str, older_than: Age) -> list[OpenUpload]:
        ours = objects.open_uploads(page.get("Uploads", ()), self._prefix, mac)
        return [one for one in ours if objects.age_seconds(page, one.at) >= older_than()]

    async def _upload_pages(self, beneath: str) -> AsyncIterator[dict[str, Any]]:
        marker: dict[str, str] = {}
        while True:
            page = await self._request(
                "list_multipart_uploads", Bucket=self._bucket, Prefix=beneath, **marker
            )
            yield page
            following = {
                name: page[f"Next{name}"]
                for name in ("KeyMarker", "UploadIdMarker")
                if page.get(f"Next{name}")
            }
            if not page.get("IsTruncated") or following in ({}, marker):
                return
            marker = following

    async def remove(self, kept: Sequence[Kept], older_than: Age) -> list[Kept]:
        """Remove objects, and return those that are gone: one that was renewed meanwhile stays."""
        gone: list[Kept] = []

        async def one(left: Kept) -> None:
            # Blocks come first when a version is put there anew.
            now = await self._ask("head_object", Bucket=self._bucket, Key=left.version + BLOCKS)
            if now and objects.age_seconds(now, now["LastModified"]) < older_than():
                return
            for key in sorted(left.keys, reverse=True):  # data first: blocks alone are small
                await self._request("delete_object", Bucket=self._bucket, Key=key)
            gone.append(left)

        await each([one(left) for left in kept])
        return gone

    async def abort(self, uploads: Sequence[OpenUpload]) -> None:
        """Abort uploads; one that has ended meanwhile is none any more."""
        await each(
            [
                self._ask(
                    "abort_multipart_upload", Bucket=self._bucket, Key=one.key, UploadId=one.id
                )
                for one in uploads
            ]
        )


async def each(work: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Do all of it, so many at once; the first failure ends it."""
    left = iter(work)

    async def some() -> None:
        for one in left:
            await one

    together = Together()
    for _ in work[:AT_ONCE]:
        together.add(some())
    try:
        await together.wait()
    finally:
        for one in left:
            one.close()
