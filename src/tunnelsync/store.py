"""The S3 store: a connector puts a dataset there once, and any number of clients fetch it.

How it maps onto S3, where HASH is BLAKE3 over the dataset's name and etag::

    PREFIX/MAC/HASH/data      the dataset as it is: one PUT, or a multipart upload by windows
    PREFIX/MAC/HASH/blocks    its packed digests, 32 bytes each; there before ``data`` is whole

Bodies are signed as UNSIGNED-PAYLOAD: a client proves each block anyway, and a signature over
the payload would read every part twice. This is the only file that imports aioboto3 and botocore,
and only on use: they take half a second.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Self

from aiohttp import ClientError as HttpError

from tunnelsync import frames
from tunnelsync.errors import BadSetting, StoreRefused, StoreUnavailable, TunnelSyncError
from tunnelsync.frames import DIGEST_BYTES
from tunnelsync.headers import content_disposition
from tunnelsync.objects import (
    BLOCKS,
    DATA,
    KEYS_HINT,
    Stored,
    no_bucket,
    object_key,
    origin,
    part_size,
    refusal,
)
from tunnelsync.settings import StoreSettings
from tunnelsync.window import Readable, Reading, Window

OCTETS = "application/octet-stream"
LIFETIME_SECONDS = 7 * 24 * 3600  # SigV4 signs nothing that lives longer

log = logging.getLogger(__name__)


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
        self._owned: set[asyncio.Task[Any]] = set()
        self._left: dict[str, dict[str, Any]] = {}  # open uploads to be aborted, by their id
        self._clients: list[Any] = []
        self._bucket_found = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        async with self._stack:
            await asyncio.gather(*self._owned, return_exceptions=True)
            await self._abort_left()

    async def offer(
        self, mac: str, dataset: Readable, progress: Callable[[int], None] | None = None
    ) -> Stored:
        """Put a dataset into the store, unless this version is there, and return its addresses.

        ``progress`` is told the bytes uploaded so far. Raises `DatasetChanged`, `ReadFailed`,
        `StoreUnavailable` or `StoreRefused`; then, as when cancelled, no upload is left open
        (one that a silent store keeps is aborted at the next offer, or at the close).
        """
        await self._connect()
        await self._abort_left()
        key = object_key(self._settings.prefix, mac, dataset.name, dataset.etag)
        # A dataset edited twice within one tick of its clock keeps its etag. So what was read
        # while it was young is never used again: the store remembers, beside the digests.
        age_ns = time.time_ns() - max(dataset.mtime_ns, dataset.ctime_ns)
        settled = age_ns >= self._settings.settle_seconds * 1e9
        packed = await self._find(key, dataset.size) if settled else None
        reused = packed is not None
        if packed is None:
            async with Reading(dataset, self._executor, progress) as reading:
                await self._upload(key, reading, settled)
            packed = bytes(reading.packed)
        digests = frames.split_digests(packed)
        disposition = content_disposition(dataset.name)
        expires_seconds = min(self._settings.url_lifetime_seconds, LIFETIME_SECONDS)
        return Stored(
            download_url=await self._presign(key + DATA, expires_seconds, disposition),
            blocks_url=await self._presign(key + BLOCKS, expires_seconds, None),
            size=dataset.size,
            etag=dataset.etag,
            root=frames.root(digests),
            count=len(digests),
            expires_seconds=expires_seconds,
            reused=reused,
        )

    # --- connecting -----------------------------------------------------------------------

    async def _connect(self) -> None:
        async with self._connecting:
            if not self._clients:
                # Off the loop: half a second of imports, and of reading the tables of the API.
                loop = asyncio.get_running_loop()
                making = partial(loop.run_in_executor, self._executor, _clients, self._settings)
                self._clients = await self._call(making)
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
            raise no_bucket(self._where)
        place = {} if region == "us-east-1" else {"LocationConstraint": region}
        extra = {"CreateBucketConfiguration": place} if place else {}
        try:
            await self._request("create_bucket", Bucket=bucket, **extra)
        except StoreRefused:
            if await self._ask("head_bucket", Bucket=bucket) is None:
                raise  # not made by another connector meanwhile

    # --- what is there --------------------------------------------------------------------

    async def _find(self, key: str, size_bytes: int) -> bytes | None:
        """Return the packed digests if this version is in the store, whole and settled."""
        bucket, digests_bytes = self._settings.bucket, frames.block_count(size_bytes) * DIGEST_BYTES
        data = await self._ask("head_object", Bucket=bucket, Key=key + DATA)
        if data is None or data["ContentLength"] != size_bytes:
            return None
        blocks = await self._ask("get_object", Bucket=bucket, Key=key + BLOCKS)
        if blocks is None:
            return None
        async with blocks["Body"] as body:
            fits = blocks["ContentLength"] == digests_bytes
            if not fits or blocks["Metadata"].get("settled") != "yes":
                body.close()
                return None
            packed: bytes = await self._call(body.read)
        return packed if len(packed) == digests_bytes else None

    async def _presign(self, key: str, expires_seconds: int, disposition: str | None) -> str:
        """Return the address of an object at the public endpoint; nothing is sent."""
        parameters = {
            "Bucket": self._settings.bucket,
            "Key": key,
            "ResponseContentType": OCTETS,
            **({"ResponseContentDisposition": disposition} if disposition else {}),
        }
        sign = partial(self._clients[-1].generate_presigned_url, "get_object")
        url: str = await self._call(partial(sign, Params=parameters, ExpiresIn=expires_seconds))
        return url

    # --- uploading ------------------------------------------------------------------------

    async def _upload(self, key: str, reading: Reading, settled: bool) -> None:
        bucket = self._settings.bucket

        async def before_end() -> None:
            """What comes before the last byte: the last stat, and the digests."""
            await reading.dataset.unchanged()
            await self._request(
                "put_object",
                Bucket=bucket,
                Key=key + BLOCKS,
                Body=bytes(reading.packed),
                ContentType=OCTETS,
                Metadata={"settled": "yes" if settled else "no"},
            )

        size_bytes = reading.dataset.size
        part_bytes = part_size(size_bytes, self._settings.part_bytes)
        data = {"Bucket": bucket, "Key": key + DATA}
        if size_bytes > part_bytes:
            await self._multipart(data, reading, part_bytes, before_end)
        elif size_bytes:
            window = Window(reading, 0, size_bytes, before_end)
            await self._send(window, "put_object", **data, ContentType=OCTETS)
        else:
            await before_end()
            await self._request("put_object", **data, Body=b"", ContentType=OCTETS)

    async def _multipart(
        self,
        data: dict[str, Any],
        reading: Reading,
        part_bytes: int,
        before_end: Callable[[], Awaitable[None]],
    ) -> None:
        """Upload by parts. Whatever ends it, no upload stays open: begin and end are shielded,
        for one that is cut off may still have happened, and would be known to nobody."""
        begun = self._own(self._request("create_multipart_upload", **data, ContentType=OCTETS))
        ended: asyncio.Task[Any] | None = None
        try:
            upload = {**data, "UploadId": (await asyncio.shield(begun))["UploadId"]}
            parts = await self._parts(upload, reading, part_bytes)
            await before_end()
            complete = partial(self._request, "complete_multipart_upload", **upload)
            ended = self._own(complete(MultipartUpload={"Parts": parts}))
            await asyncio.shield(ended)
        except BaseException:
            await asyncio.shield(self._own(self._abort(data, begun, ended)))
            raise

    async def _parts(
        self, upload: dict[str, Any], reading: Reading, part_bytes: int
    ) -> list[dict[str, Any]]:
        size_bytes = reading.dataset.size
        starts = range(0, size_bytes, part_bytes)
        waiting = iter(enumerate(starts, 1))
        parts: dict[int, str] = {}

        async def work() -> None:
            for number, start in waiting:
                window = Window(reading, start, min(part_bytes, size_bytes - start))
                answer = await self._send(window, "upload_part", **upload, PartNumber=number)
                parts[number] = answer["ETag"]

        try:
            async with asyncio.TaskGroup() as group:
                for _ in starts[: max(1, self._settings.parts_at_once)]:
                    group.create_task(work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [{"PartNumber": number, "ETag": parts[number]} for number in sorted(parts)]

    async def _abort(
        self, data: dict[str, Any], begun: asyncio.Task[Any], ended: asyncio.Task[Any] | None
    ) -> None:
        answer, *end = await asyncio.gather(
            begun, *([ended] if ended else []), return_exceptions=True
        )
        if isinstance(answer, BaseException) or (end and not isinstance(end[0], BaseException)):
            return  # never begun, or whole
        self._left[answer["UploadId"]] = {**data, "UploadId": answer["UploadId"]}
        await self._abort_left()

    async def _abort_left(self) -> None:
        """Abort the uploads that must not stay open; what a silent store keeps is tried again
        at the next offer, and when the store is closed."""
        for number, upload in list(self._left.items()):
            try:
                async with asyncio.timeout(self._settings.abort_seconds):
                    await self._ask("abort_multipart_upload", **upload)
            except (TimeoutError, TunnelSyncError) as exc:
                log.warning("%s keeps an open upload of %s: %s", self._where, upload["Key"], exc)
                if not isinstance(exc, StoreRefused):
                    return
            self._left.pop(number, None)

    def _own(self, work: Any) -> asyncio.Task[Any]:
        """Start what must come to its end; closing the store waits for it."""
        task = asyncio.create_task(work)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)
        return task

    # --- requests -------------------------------------------------------------------------

    async def _call(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Await the store for ``read_seconds`` at most; raise our errors in place of its own."""
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                return await make()
        except _boto_errors() as exc:
            raise self._error(exc) from None

    async def _request(self, operation: str, **parameters: Any) -> Any:
        return await self._call(partial(getattr(self._clients[0], operation), **parameters))

    async def _ask(self, operation: str, **parameters: Any) -> Any:
        """Return the answer of a HEAD or GET, or None where there is nothing.

        A key that may not list is told 403 for what is missing. If it is refused for another
        reason, the upload that follows will say so: for a bucket that is taken as found.
        """
        from botocore.exceptions import ClientError

        async def ask() -> Any:
            try:
                return await getattr(self._clients[0], operation)(**parameters)
            except ClientError as exc:
                status = _status(exc)
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
                return await getattr(self._clients[0], operation)(Body=window, **parameters)
        except _boto_errors() as exc:
            raise (window.failure or self._error(exc)) from None

    def _error(self, exc: Exception) -> TunnelSyncError:
        """Return our error for one of boto's or the network's, without what they quote."""
