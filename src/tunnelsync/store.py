"""The S3 store: a connector puts a dataset there once, and any number of clients fetch it.

How it maps onto S3, where HASH is BLAKE3 over the dataset's name and etag::

    PREFIX/MAC/HASH/data      the dataset as it is: one PUT, or a multipart upload by windows
    PREFIX/MAC/HASH/segments/SET/OFFSET
                              or a part of it, of use before the others are there
    PREFIX/MAC/HASH/blocks    its packed digests, 32 bytes each; there before ``data`` is whole,
                              and after the last segment of the set that it names

A version is used again in the first half of its life (``object_lifetime_seconds``), and uploaded
anew in the second: so what an address names stays for half a life at least, while the address
holds and the download that it began goes on. What is past its life is for ``leftovers.py``.

Bodies are signed as UNSIGNED-PAYLOAD: a client proves each block anyway, and a signature over
the payload would read every part twice.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Self

from tunnelsync import frames, objects, s3
from tunnelsync.errors import BadSetting, StoreRefused, StoreUnavailable, TunnelSyncError
from tunnelsync.headers import content_disposition
from tunnelsync.leftovers import Leftovers
from tunnelsync.multipart import Operations
from tunnelsync.objects import BLOCKS, DATA, Stored, origin
from tunnelsync.pipeline import Pipeline
from tunnelsync.settings import StoreSettings
from tunnelsync.versions import OCTETS, Found, Versions
from tunnelsync.window import Readable, Reading, Window

LIFETIME_SECONDS = 7 * 24 * 3600  # SigV4 signs nothing that lives longer
STILL_SILENT = 0.5
"""A store that was silent for ``read_seconds`` is not asked again for this part of them."""


class Store:
    """One bucket of an S3 store, used with ``async with``; connects at the first `offer`.

    File reads and imports run on the executor. Raises `BadSetting` for an impossible address
    or prefix.
    """

    def __init__(self, settings: StoreSettings, executor: ThreadPoolExecutor) -> None:
        if {".", ".."} & set(settings.prefix.split("/")):
            raise BadSetting("the store's prefix must not hold '.' or '..'")
        self._where = f"the store at {origin(settings.endpoint)}, bucket {settings.bucket!r},"
        origin(settings.public)
        self._settings = settings
        self._executor = executor
        self._stack = AsyncExitStack()
        self._connecting = asyncio.Lock()
        self._bodies = asyncio.Semaphore(max(1, settings.bodies_at_once))
        self._operations = Operations(
            self._request, self._ask, self._send, self._call, self._presign
        )
        self._versions = Versions(settings, self._operations)
        self._clients: list[Any] = []
        self._bucket_found = False
        self._silent_until = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        async with self._stack:
            await self._versions.multipart.close()

    async def offer(
        self, mac: str, dataset: Readable, progress: Callable[[int], None] | None = None
    ) -> Stored:
        """Put a dataset into the store, unless this version is there, and return its addresses.

        ``progress`` is told the bytes uploaded so far. Raises `DatasetChanged`, `ReadFailed`,
        `StoreUnavailable` or `StoreRefused`; then, as when cancelled, no upload is left open
        (one that a silent store keeps is aborted at the next offer, or at the close).
        """
        key = await self._begin(mac, dataset)
        found = await self._find(key, dataset)
        if found and found.set and not await self._versions.compose(key, dataset.size, found):
            found = None
        if found is None:
            async with Reading(dataset, self._executor, progress) as reading:
                await self._versions.upload(key, reading, self._settled(dataset))
        digests = frames.split_digests(found.packed if found else bytes(reading.packed))
        disposition = content_disposition(dataset.name)
        expires_seconds = self._expires_seconds(found)
        return Stored(
            download_url=await self._presign(key + DATA, expires_seconds, disposition),
            blocks_url=await self._presign(key + BLOCKS, expires_seconds, None),
            size=dataset.size,
            etag=dataset.etag,
            root=frames.root(digests),
            count=len(digests),
            expires_seconds=expires_seconds,
            reused=found is not None,
        )

    async def pipeline(self, mac: str, dataset: Readable, *, anew: bool) -> Pipeline | None:
        """Return the segments of this version, which may all be there; ``anew`` trusts none.

        None if it is there as one object. Raises what `offer` does.
        """
        key = await self._begin(mac, dataset)
        found = None if anew else await self._find(key, dataset)
        if found and not found.set:
            return None
        settings, expires_seconds = self._settings, self._expires_seconds(found)
        return Pipeline(
            settings, self._operations, self._versions, key, dataset.size, found, expires_seconds
        )

    async def fill(
        self,
        pipeline: Pipeline,
        dataset: Readable,
        wanted: Callable[[], Iterable[int]],
        tell: Callable[[], None],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Put the segments that are missing; see `Pipeline.fill`."""
        async with Reading(dataset, self._executor, progress) as reading:
            await pipeline.fill(reading, self._settled(dataset), wanted, tell)

    async def _begin(self, mac: str, dataset: Readable) -> str:
        left_seconds = self._silent_until - asyncio.get_running_loop().time()
        if left_seconds > 0:  # who comes now does not wait until that is found once more
            again = f"it is asked again in {math.ceil(left_seconds)} s"
            raise StoreUnavailable(f"{self._where} was silent a moment ago; {again}")
        await self._connect()
        await self._versions.multipart.abort_left()
        return objects.object_key(self._settings.prefix, mac, dataset.name, dataset.etag)

    async def settle(self, dataset: Readable) -> None:
        """Wait until a dataset that was just written is old enough; raises `DatasetChanged`.

        A time in the future, by another machine's clock, is not waited for.
        """
        left_seconds = self._unsettled_seconds(dataset)
        if 0 < left_seconds <= self._settings.settle_seconds:
            await asyncio.sleep(left_seconds)
            await dataset.unchanged()

    def _settled(self, dataset: Readable) -> bool:
        """Tell whether a dataset is old enough to be what its etag says.

        One edited twice within one tick of its clock keeps its etag. So what was read while it
        was young is never used again: the store remembers, beside the digests.
        """
        return self._unsettled_seconds(dataset) <= 0

    def _unsettled_seconds(self, dataset: Readable) -> float:
        times, most_seconds = (dataset.mtime_ns, dataset.ctime_ns), self._settings.settle_seconds
        return objects.unsettled_seconds(*times, time.time_ns(), most_seconds)

    async def _find(self, key: str, dataset: Readable) -> Found | None:
        return await self._versions.find(key, dataset.size) if self._settled(dataset) else None

    def _expires_seconds(self, found: Found | None) -> int:
        """Return how long an address may hold: no longer than the object lives."""
        left_seconds = self._settings.object_lifetime_seconds - (found.age_seconds if found else 0)
        most = self._settings.url_lifetime_seconds, LIFETIME_SECONDS, int(left_seconds)
        return max(1, min(most))

    async def leftovers(self) -> Leftovers:
        """Return what finds and removes old objects and open uploads of this store."""
        await self._connect()
        return Leftovers(self._settings, request=self._request, ask=self._ask)

    # --- connecting -----------------------------------------------------------------------

    async def _connect(self) -> None:
        async with self._connecting:
            if not self._clients:
                # Off the loop: half a second of imports, and of reading the tables of the API.
                loop = asyncio.get_running_loop()
                making = loop.run_in_executor(self._executor, s3.make_clients, self._settings)
                try:
                    self._clients = await making
                except s3.errors() as exc:
                    raise s3.error_of(exc, self._where, self._settings) from None
                for client in self._clients:
                    self._stack.push_async_callback(client.close)
            if not self._bucket_found:
                await self._find_bucket()
                self._bucket_found = True

    async def _find_bucket(self) -> None:
        """Raise `StoreRefused` without a bucket: some stores make one at the first upload."""
        bucket, region = self._settings.bucket, self._settings.region
        if await self._ask("head_bucket", Bucket=bucket) is not None:
            return
        if not self._settings.create_bucket:
            raise objects.no_bucket(self._where)
        place = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            elsewhere = place if region != "us-east-1" else {}
            await self._request("create_bucket", Bucket=bucket, **elsewhere)
        except StoreRefused:
            if await self._ask("head_bucket", Bucket=bucket) is None:
                raise  # not made by another connector meanwhile

    async def _presign(self, key: str, expires_seconds: int, disposition: str | None) -> str:
        """Return the address of an object at the public endpoint; nothing is sent."""
        parameters = {"Bucket": self._settings.bucket, "Key": key, "ResponseContentType": OCTETS}
        if disposition:
            parameters["ResponseContentDisposition"] = disposition
        sign = partial(self._clients[-1].generate_presigned_url, "get_object")
        url: str = await self._bounded(partial(sign, Params=parameters, ExpiresIn=expires_seconds))
        return url

    # --- requests -------------------------------------------------------------------------

    async def _call(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Await an answer of the store."""
        answer = await self._bounded(make)
        self._silent_until = 0.0
        return answer

    async def _bounded(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Await for ``read_seconds`` at most; raise our errors in place of the library's."""
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                return await make()
        except s3.errors() as exc:
            raise self._error(exc) from None

    async def _request(self, operation: str, **parameters: Any) -> Any:
        return await self._call(partial(getattr(self._clients[0], operation), **parameters))

    async def _ask(self, operation: str, **parameters: Any) -> Any:
        """Return the answer to an operation, or None where there is nothing to do it with.

        A key that may not list is told 403 for what is missing. If it is refused for another
        reason, the upload that follows will say so: for a bucket that is taken as found.
        """

        async def ask() -> Any:
            try:
                return await getattr(self._clients[0], operation)(**parameters)
            except s3.errors() as exc:
                status = s3.status_of(exc)
                if status == 404 or (status == 403 and operation in ("head_object", "get_object")):
                    return None
                if status == 403 and operation == "head_bucket":
                    return {}
                raise

        return await self._call(ask)

    async def _send(self, window: Window, operation: str, **parameters: Any) -> Any:
        """Send a body; the store may take ``read_seconds`` for each piece, and for its answer."""
        try:
            async with self._bodies, window.deadline:
                window.begin(self._settings.read_seconds)
                answer = await getattr(self._clients[0], operation)(Body=window, **parameters)
            self._silent_until = 0.0
            return answer
        except s3.errors() as exc:
            raise (window.failure or self._error(exc)) from None

    def _error(self, exc: Exception) -> TunnelSyncError:
        """Return our error for one of the library's; of a silence, note when it is over."""
        if s3.is_silence(exc):
            silent_seconds = self._settings.read_seconds * STILL_SILENT
            self._silent_until = asyncio.get_running_loop().time() + silent_seconds
        return s3.error_of(exc, self._where, self._settings)
