"""A dataset on its way into the store: read once, through windows that are bodies of requests.

A `Reading` reads the open descriptor on the executor and keeps the digest of each block that
goes by; a `Window` is some of its blocks, of which 1 MiB at a time is in memory; `Multipart`
makes one object of many parts, and leaves no upload open. None knows the S3 library.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import UnsupportedOperation
from typing import Any, Protocol, Self

from blake3 import blake3

from tunnelsync import frames
from tunnelsync.errors import (
    DatasetChanged,
    ReadFailed,
    StoreRefused,
    TransferGone,
    TunnelSyncError,
)
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES
from tunnelsync.protocol import printable
from tunnelsync.settings import MIB, StoreSettings

READ_BYTES = MIB  # from the disk: one hop to the executor each
MOST_LEFT = 2000  # to be removed later: two datasets' segments; of more the oldest stay
WRITE_BYTES = 256 * 1024  # to the socket: what a slow line must take within the patience

Request = Callable[..., Coroutine[Any, Any, Any]]
"""An operation of S3 by its name, with its parameters; raises our errors."""
Part = Callable[..., Coroutine[Any, Any, str]]
"""Brings one part of a multipart upload, given its parameters; returns the part's ETag."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Operations:
    """How a store is spoken to without its library; each raises our errors.

    ``request`` is an operation by its name, ``ask`` one that is None for what is missing, and
    ``send`` one whose body is a window, which goes before the name. ``wait`` waits for what the
    library does besides; ``sign`` returns the address of an object by its key, for so many
    seconds, with a content disposition.
    """

    request: Request
    ask: Request
    send: Request
    wait: Callable[[Callable[[], Awaitable[Any]]], Coroutine[Any, Any, Any]]
    sign: Callable[[str, int, str | None], Coroutine[Any, Any, str]]


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


class Reading:
    """The bytes of one dataset on their way out, and the digests of those that were read.

    Used with ``async with``, which waits for the reads that run: the descriptor may be closed.
    ``packed`` holds the digests, whole once every block was read.
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
        end = offset + length
        data = b"".join(self._pieces(offset, end))
        hasher.update(data)
        if end % BLOCK_BYTES == 0 or end == self.dataset.size:
            slot = (end - 1) // BLOCK_BYTES * DIGEST_BYTES
            self.packed[slot : slot + DIGEST_BYTES] = hasher.digest()
        return data

    def _pieces(self, at: int, end: int) -> Iterator[bytes]:
        name = printable(self.dataset.name)
        while at < end:
            try:
                piece = os.pread(self.dataset.fileno(), end - at, at)
            except OSError as exc:
                raise ReadFailed(f"{name} at byte {at}: {exc.strerror}") from exc
            if not piece:
                shrank = f"it ended at byte {at} of {self.dataset.size}"
                raise DatasetChanged(f"{name} shrank while it was read: {shrank}")
            yield piece
            at += len(piece)

    def sent(self, count: int) -> None:
        """Count bytes that the store's connection took, or (below 0) that go out again."""
        self._sent_bytes += count
        if self._progress:
            self._progress(self._sent_bytes)


class Window:
    """Whole blocks of a dataset as the body of one request, sent inside its ``deadline``.

    botocore asks for its length, and for ``seek`` before it tries again; aiohttp iterates over
    it, which reads on the executor. ``before_end`` is awaited before the last piece. ``failure``
    is why it could not go on.
    """

    def __init__(
        self,
        reading: Reading,
        start: int,
        length: int,
        before_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.deadline = asyncio.timeout(None)
        self.failure: TunnelSyncError | None = None
        self._reading = reading
        self._start = start
        self._length = length
        self._before_end = before_end
        self._patience_seconds = 0.0
        self._sent_bytes = 0

    def __len__(self) -> int:
        return self._length

    def read(self, length: int = -1) -> bytes:
        """Refuse: botocore takes only a body that has it, and it would block the loop."""
        raise UnsupportedOperation("the body of an upload is iterated over")

    def seek(self, offset: int) -> None:
        """Begin again, which is all that botocore asks for."""
        self.take_back()
        self._wait_for_store()

    def take_back(self) -> None:
        """Count nothing of it as sent."""
        self._reading.sent(-self._sent_bytes)
        self._sent_bytes = 0

    def begin(self, patience_seconds: float) -> None:
        """Give the store so long from now for each piece that it takes, and for its answer."""
        self._patience_seconds = patience_seconds
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
        self.deadline.reschedule(asyncio.get_running_loop().time() + self._patience_seconds)


class Multipart:
    """The multipart uploads of a store. Whatever ends one, it does not stay open: begin and end
    are shielded, for one that is cut off may still have happened, and would be known to nobody.
    """

    def __init__(self, settings: StoreSettings, store: Operations) -> None:
        self._settings = settings
        self._request, self._ask = store.request, store.ask
        self._owned: set[asyncio.Task[Any]] = set()
        self._left: dict[str, tuple[str, dict[str, Any]]] = {}
        """What is to be aborted or removed, by id or key: the operation, and its parameters."""

    async def close(self) -> None:
        """Wait for what must come to its end, and abort what was left open."""
        await asyncio.gather(*self._owned, return_exceptions=True)
        await self.abort_left()

    async def upload(
        self,
        parts: Sequence[Part],
        before_end: Callable[[], Awaitable[None]],
        data: dict[str, Any],
        **kind: Any,
    ) -> None:
        """Make the object ``data`` (its Bucket and Key) of parts, ``parts_at_once`` at a time."""
        begun = self.own(self._request("create_multipart_upload", **data, **kind))
        ended: asyncio.Task[Any] | None = None
        try:
            upload = {**data, "UploadId": (await asyncio.shield(begun))["UploadId"]}
            whole = {"Parts": await self._parts(upload, parts)}
            await before_end()
            complete = self._request("complete_multipart_upload", **upload, MultipartUpload=whole)
            ended = self.own(complete)
            await asyncio.shield(ended)
        except BaseException:
            await asyncio.shield(self.own(self._abort(data, begun, ended)))
            raise

    async def _parts(self, upload: dict[str, Any], parts: Sequence[Part]) -> list[dict[str, Any]]:
        waiting = iter(enumerate(parts, 1))
        tags: dict[int, str] = {}

        async def work() -> None:
            for number, part in waiting:
                tags[number] = await part(**upload, PartNumber=number)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in parts[: max(1, self._settings.parts_at_once)]:
                    group.create_task(work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]

    async def _abort(
        self, data: dict[str, Any], begun: asyncio.Task[Any], ended: asyncio.Task[Any] | None
    ) -> None:
        answer, *end = await asyncio.gather(
            begun, *([ended] if ended else []), return_exceptions=True
        )
        if isinstance(answer, BaseException) or (end and not isinstance(end[0], BaseException)):
            return  # never begun, or whole
        upload = {**data, "UploadId": answer["UploadId"]}
        self._leave(answer["UploadId"], "abort_multipart_upload", upload)
        await self.abort_left()

    def remove_later(self, key: str) -> None:
        """Have an object removed the next time, if it is there then."""
        self._leave(key, "delete_object", {"Bucket": self._settings.bucket, "Key": key})

    def _leave(self, number: str, operation: str, what: dict[str, Any]) -> None:
        self._left[number] = operation, what
        if len(self._left) > MOST_LEFT:
            _, oldest = self._left.pop(next(iter(self._left)))
            log.warning("an upload of %s stays in the store, for `store gc`", oldest["Key"])

    async def abort_left(self) -> None:
        """End what must not stay; what a silent store keeps is tried again next time."""
        for number, (operation, what) in list(self._left.items()):
            # In a task of its own: its deadlines cancel it, and must not be taken for our end.
            asking = asyncio.create_task(self._ask(operation, **what))
            try:
                done, _ = await asyncio.wait({asking}, timeout=self._settings.abort_seconds)
            finally:
                asking.cancel()
            ended = await asyncio.gather(asking, return_exceptions=True)
            if isinstance(failed := ended[0], BaseException):
                known = isinstance(failed, TunnelSyncError)
                told = str(failed) if done and known else "silence"
                log.warning("an upload of %s stays in the store: %s", what["Key"], told)
                if not isinstance(failed, StoreRefused):
                    return
            self._left.pop(number, None)

    def own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Return a task that comes to its end in any case: `close` waits for it."""
        task = asyncio.create_task(work)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)
        return task
