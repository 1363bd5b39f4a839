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
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from io import UnsupportedOperation
from typing import Any, Protocol, Self

from aiohttp import ClientError as HttpError
from blake3 import blake3
from yarl import URL

from tunnelsync import frames
from tunnelsync.errors import (
    BadSetting,
    DatasetChanged,
    ReadFailed,
    StoreRefused,
    StoreUnavailable,
    TransferGone,
    TunnelSyncError,
)
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES
from tunnelsync.headers import content_disposition
from tunnelsync.protocol import printable
from tunnelsync.settings import MIB, StoreSettings

DATA, BLOCKS = "/data", "/blocks"
OCTETS = "application/octet-stream"
READ_BYTES = MIB  # from the disk: one hop to the executor each
WRITE_BYTES = 256 * 1024  # to the socket: what a slow line must take within read_seconds
LEAST_PART_BYTES = 2 * BLOCK_BYTES  # S3 takes no part below 5 MiB but the last
MOST_PARTS = 9000  # S3 takes 10,000
LIFETIME_SECONDS = 7 * 24 * 3600  # SigV4 signs nothing that lives longer
BODIES_AT_ONCE = 16  # in the whole store, at 2 to 3 MiB each
POOL = 100  # connections: more than bodies, so that an abort never waits behind them
ABORT_SECONDS = 10.0  # how long a way out waits for a silent store
FULL = frozenset({"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded"})

log = logging.getLogger(__name__)


class Readable(Protocol):
    """What the store asks of a dataset: a descriptor, and the version that it is."""

    name: str
    size: int
    etag: str
    mtime_ns: int
    ctime_ns: int

    def fileno(self) -> int:
        """Return the descriptor, which stays open while it is offered."""

    async def unchanged(self) -> None:
        """Raise `DatasetChanged` unless the etag is what it was."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A dataset in the store; sizes in bytes. The addresses are signed, so they are secrets."""

    download_url: str = field(repr=False)
    blocks_url: str = field(repr=False)
    size: int
    etag: str
    root: str
    count: int
    expires_seconds: int
    reused: bool


def object_key(prefix: str, mac: str, name: str, etag: str) -> str:
    """Return ``prefix/MAC/HASH``, below which lie the objects of one version of a dataset."""
    version = blake3(f"{name}\0{etag}".encode()).hexdigest()
    return "/".join([*filter(None, prefix.split("/")), mac, version])


def part_size(size_bytes: int, least_bytes: int) -> int:
    """Return the bytes of one part: whole blocks, and few enough parts for S3."""
    least = max(LEAST_PART_BYTES, least_bytes, -(-size_bytes // MOST_PARTS))
    return frames.block_count(least) * BLOCK_BYTES


def origin(url: str) -> str:
    """Return ``scheme://host[:port]`` of an http(s) address, in the one way to write it.

    Raises `BadSetting`, which does not repeat the address: its query may be a secret.
    """
    try:
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise ValueError
        found = URL(url)
        if found.scheme not in ("http", "https") or not found.port or "@" in found.raw_authority:
            raise ValueError
        return str(found.origin())
    except ValueError:
        raise BadSetting("the address of a store must be http(s)://HOST[:PORT]") from None


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
        self._bodies = asyncio.Semaphore(BODIES_AT_ONCE)
        self._owned: set[asyncio.Task[Any]] = set()
        self._left: list[dict[str, Any]] = []
        self._clients: list[Any] = []
        self._bucket_found = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.gather(*self._owned, return_exceptions=True)
        await self._abort_left()
        await self._stack.aclose()

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
            async with _Reading(dataset, self._executor, progress) as reading:
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
                making = loop.run_in_executor(self._executor, self._make_clients)
                self._clients = await self._call(lambda: making)
                for client in self._clients:
                    self._stack.push_async_callback(client.close)
            if not self._bucket_found:
                await self._find_bucket()
                self._bucket_found = True

    def _make_clients(self) -> list[Any]:
        """Return the client that uploads and, last, the one that signs for the public endpoint.

        They are made on a loop of this thread's, and bound to none before their first request.
        """
        import aioboto3
        from botocore.config import Config

        settings = self._settings
        config = Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=settings.connect_seconds,
            read_timeout=None,  # aiohttp's starts at "100 Continue", ours in _call and _send
            retries={"total_max_attempts": max(1, settings.attempts), "mode": "standard"},
            max_pool_connections=POOL,
            s3={"addressing_style": "path", "payload_signing_enabled": False},
        )

        async def make(endpoint: str) -> Any:
            context = aioboto3.Session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=settings.region,
                aws_access_key_id=settings.access_key.reveal() or None,
                aws_secret_access_key=settings.secret_key.reveal() or None,
                config=config,
            )
            return await context.__aenter__()

        endpoints = dict.fromkeys((settings.endpoint, settings.public))
        return [asyncio.run(make(one)) for one in endpoints]

    async def _find_bucket(self) -> None:
        """Raise `StoreRefused` without a bucket: some stores make one at the first upload."""
        bucket, region = self._settings.bucket, self._settings.region
        if await self._head("head_bucket", Bucket=bucket) is not None:
            return
        if not self._settings.create_bucket:
            raise self._no_bucket()
        place = {} if region == "us-east-1" else {"LocationConstraint": region}
        extra = {"CreateBucketConfiguration": place} if place else {}
        try:
            await self._request("create_bucket", Bucket=bucket, **extra)
        except StoreRefused:
            if await self._head("head_bucket", Bucket=bucket) is None:
                raise  # not made by another connector meanwhile

    # --- small requests -------------------------------------------------------------------

    async def _call(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Await the store for ``read_seconds`` at most; raise our errors in place of its own."""
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                return await make()
        except _store_errors() as exc:
            raise self._error(exc) from None

    async def _request(self, operation: str, **parameters: Any) -> Any:
        return await self._call(partial(getattr(self._clients[0], operation), **parameters))

    async def _head(self, operation: str, **parameters: Any) -> Any:
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

    async def _find(self, key: str, size_bytes: int) -> bytes | None:
        """Return the packed digests if this version is in the store, whole and settled."""
        bucket, digests_bytes = self._settings.bucket, frames.block_count(size_bytes) * DIGEST_BYTES
        data = await self._head("head_object", Bucket=bucket, Key=key + DATA)
        if data is None or data["ContentLength"] != size_bytes:
            return None
        blocks = await self._head("get_object", Bucket=bucket, Key=key + BLOCKS)
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

    async def _upload(self, key: str, reading: "_Reading", settled: bool) -> None:
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
            window = _Window(reading, 0, size_bytes, before_end)
            await self._send(window, "put_object", **data, ContentType=OCTETS)
        else:
            await before_end()
            await self._request("put_object", **data, Body=b"", ContentType=OCTETS)

    async def _send(self, window: "_Window", operation: str, **parameters: Any) -> Any:
        """Send a body; the store may take ``read_seconds`` for each piece, and for its answer."""
        async with self._bodies:
            try:
                async with asyncio.timeout(self._settings.read_seconds) as window.deadline:
                    window.patience_seconds = self._settings.read_seconds
                    return await getattr(self._clients[0], operation)(Body=window, **parameters)
            except _store_errors() as exc:
                raise (window.failure or self._error(exc)) from None

    async def _multipart(
        self,
        data: dict[str, Any],
        reading: "_Reading",
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
        self, upload: dict[str, Any], reading: "_Reading", part_bytes: int
    ) -> list[dict[str, Any]]:
        size_bytes = reading.dataset.size
        starts = range(0, size_bytes, part_bytes)
        waiting = iter(enumerate(starts, 1))
        parts: dict[int, str] = {}

        async def work() -> None:
            for number, start in waiting:
                window = _Window(reading, start, min(part_bytes, size_bytes - start))
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
        self._left.append({**data, "UploadId": answer["UploadId"]})
        await self._abort_left()

    async def _abort_left(self) -> None:
        """Abort the uploads that must not stay open; what a silent store keeps is tried again
        at the next offer, and when the store is closed."""
        while self._left:
            upload = self._left.pop()
            try:
                async with asyncio.timeout(ABORT_SECONDS):
                    await self._head("abort_multipart_upload", **upload)
            except (TimeoutError, TunnelSyncError) as exc:
                log.warning("%s keeps an open upload of %s: %s", self._where, upload["Key"], exc)
                if not isinstance(exc, StoreRefused):
                    self._left.append(upload)
                    return

    def _own(self, work: Any) -> asyncio.Task[Any]:
        """Start what must come to its end; closing the store waits for it."""
        task = asyncio.create_task(work)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)
        return task

    # --- errors ---------------------------------------------------------------------------

    def _no_bucket(self) -> StoreRefused:
        return StoreRefused(
            f"{self._where} has no such bucket",
            hint="Create the bucket, set TUNNELSYNC_STORE_BUCKET to one that exists, or set "
            "TUNNELSYNC_STORE_CREATE_BUCKET=true on the connector; or fetch with --mode stream.",
        )

    def _error(self, exc: Exception) -> TunnelSyncError:
        """Return our error for one of boto's or the network's, without what they quote."""
        from botocore import exceptions as boto
        from botocore.parsers import ResponseParserError

        if isinstance(exc, boto.ClientError):
            return self._refusal(_status(exc), _code(exc))
        if isinstance(exc, TimeoutError):
            return StoreUnavailable(
                f"{self._where} was silent for {self._settings.read_seconds:g} s"
            )
        if isinstance(exc, boto.ConnectTimeoutError):
            return StoreUnavailable(
                f"{self._where} took no connection in {self._settings.connect_seconds:g} s"
            )
        if isinstance(exc, boto.SSLError):
            return StoreUnavailable(
                f"{self._where} and this machine do not agree on TLS",
                hint="Check its certificate, and AWS_CA_BUNDLE if it is signed by your own CA.",
            )
        network = (boto.ConnectionError, boto.HTTPClientError, HttpError, OSError)
        if isinstance(exc, (*network, ResponseParserError)):
            return StoreUnavailable(f"{self._where} cannot be reached, or is no S3 store")
        if isinstance(exc, boto.NoCredentialsError | boto.PartialCredentialsError):
            return StoreRefused(f"{self._where} needs keys, and there are none", hint=KEYS_HINT)
        return StoreRefused(f"{self._where} cannot be used ({type(exc).__name__})", hint=KEYS_HINT)

    def _refusal(self, status: int, code: str) -> TunnelSyncError:
        if code == "NoSuchBucket":
            return self._no_bucket()
        if status == 507 or code in FULL:
            return StoreRefused(
                f"{self._where} has no space left ({code})",
                hint="Free space in the store or raise its quota, or fetch with --mode stream.",
            )
        if code == "RequestTimeTooSkewed":
            return StoreRefused(
                f"{self._where} has another time than this machine",
                hint="Set the connector's clock (NTP): signatures hold for 15 minutes.",
            )
        if status in (401, 403):
            return StoreRefused(f"{self._where} refused the keys ({code})", hint=KEYS_HINT)
        if status >= 500 or status in (408, 429):
            return StoreUnavailable(f"{self._where} answered {status} ({code})")
        return StoreRefused(f"{self._where} refused with {status} ({code})")


class _Reading:
    """The bytes of one dataset on their way out, and the digests of those that were read.

    Used with ``async with``, which waits for the reads that run: the descriptor may be closed.
    """

    def __init__(
        self,
        dataset: Readable,
        executor: ThreadPoolExecutor,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.dataset = dataset
        self.packed = bytearray(frames.block_count(dataset.size) * DIGEST_BYTES)
        self._executor = executor
        self._progress = progress
        self._sent_bytes = 0
        self._jobs: set[Future[bytes]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closed = True
        running = [asyncio.wrap_future(job) for job in list(self._jobs)]
        await asyncio.gather(*running, return_exceptions=True)

    async def read(self, offset: int, length: int, hasher: blake3) -> bytes:
        """Return exactly so many bytes, and keep the digest of a block that they complete.

        Raises `DatasetChanged` when the dataset ends before that, `ReadFailed` for the disk.
        """
        if self._closed:
            raise TransferGone("the upload has ended")
        job = self._executor.submit(self._read, offset, length, hasher)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return await asyncio.wrap_future(job)

    def _read(self, offset: int, length: int, hasher: blake3) -> bytes:
        parts, at, end = [], offset, offset + length
        while at < end:
            try:
                part = os.pread(self.dataset.fileno(), end - at, at)
            except OSError as exc:
                name = printable(self.dataset.name)
                raise ReadFailed(f"{name} at byte {at}: {exc.strerror}") from exc
            if not part:
                shrank = f"it ended at byte {at} of {self.dataset.size}"
                raise DatasetChanged(
                    f"{printable(self.dataset.name)} shrank while it was read: {shrank}"
                )
            parts.append(part)
            at += len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        hasher.update(data)
        if end % BLOCK_BYTES == 0 or end == self.dataset.size:
            slot = (end - 1) // BLOCK_BYTES * DIGEST_BYTES
            self.packed[slot : slot + DIGEST_BYTES] = hasher.digest()
        return data

    def sent(self, count: int) -> None:
        """Count bytes that the store's connection took, or (below 0) that go out again."""
        self._sent_bytes += count
        if self._progress:
            self._progress(self._sent_bytes)


class _Window:
    """Whole blocks of a dataset as the body of a request.

    botocore asks for its length, and for ``seek`` before it tries again; aiohttp iterates over
    it, which reads on the executor. ``failure`` is why it could not go on.
    """

    deadline: asyncio.Timeout
    patience_seconds: float

    def __init__(
        self,
        reading: _Reading,
        start: int,
        length: int,
        before_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.failure: TunnelSyncError | None = None
        self._reading = reading
        self._start = start
        self._length = length
        self._before_end = before_end
        self._sent_bytes = 0

    def __len__(self) -> int:
        return self._length

    def read(self, length: int = -1) -> bytes:
        """Refuse: botocore takes only a body that has it, and it would block the loop."""
        raise UnsupportedOperation("the body of an upload is iterated over")

    def seek(self, offset: int) -> None:
        """Begin again, which is all that botocore asks for."""
        self._reading.sent(-self._sent_bytes)
        self._sent_bytes = 0
        self._wait_for_store()

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        end = self._start + self._length
        hasher = blake3()
        try:
            for offset in range(self._start, end, READ_BYTES):
                self.deadline.reschedule(None)  # a slow disk is not the store's silence
                if offset % BLOCK_BYTES == 0:
                    hasher = blake3()
                length = min(READ_BYTES, end - offset)
                data = memoryview(await self._reading.read(offset, length, hasher))
                if offset + length == end and self._before_end:
                    await self._before_end()
                for at in range(0, length, WRITE_BYTES):
                    self._wait_for_store()
                    piece = data[at : at + WRITE_BYTES]
                    yield piece
                    self._sent_bytes += len(piece)
                    self._reading.sent(len(piece))
        except TunnelSyncError as exc:
            self.failure = exc
            self.deadline.reschedule(0)  # ends the request, before botocore tries again
            raise
        self._wait_for_store()

    def _wait_for_store(self) -> None:
        self.deadline.reschedule(asyncio.get_running_loop().time() + self.patience_seconds)


KEYS_HINT = (
    "Check TUNNELSYNC_STORE_ACCESS_KEY and TUNNELSYNC_STORE_SECRET_KEY (or the AWS credentials) "
    "and what they may do in the bucket, or fetch with --mode stream."
)


@cache
def _store_errors() -> tuple[type[Exception], ...]:
    """What boto and the network raise; a time-out is an `OSError`."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return BotoCoreError, ClientError, ResponseParserError, HttpError, OSError


def _status(exc: Any) -> int:
    """Return the HTTP status of a ClientError."""
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(exc: Any) -> str:
    """Return the S3 code of a ClientError, of which only letters and digits are believed."""
    code = str(exc.response.get("Error", {}).get("Code", ""))
    return "".join(c for c in code if c.isascii() and c.isalnum())[:64] or "no code"
