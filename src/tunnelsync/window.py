"""A dataset on its way into the store: read once, through windows that are bodies of requests.

A `Reading` reads the open descriptor on the executor and keeps the digest of each block that
goes by; a `Window` is some of its blocks, of which 1 MiB at a time is in memory. Neither knows
the S3 library.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import UnsupportedOperation
from typing import Protocol, Self

from blake3 import blake3

from tunnelsync import frames
from tunnelsync.errors import (
    DatasetChanged,
    ReadFailed,
    TransferGone,
    TunnelSyncError,
)
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES
from tunnelsync.protocol import printable
from tunnelsync.settings import MIB

READ_BYTES = MIB  # from the disk: one hop to the executor each
WRITE_BYTES = 256 * 1024  # to the socket: what a slow line must take within the patience


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
