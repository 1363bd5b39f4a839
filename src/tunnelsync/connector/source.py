"""A dataset opened inside the jail: descriptor, etag, reads, and the last stat.

All file work runs on one executor that is given, so that the loop never waits for a disk, and a
slow disk never holds up DNS.
"""

import asyncio
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from typing import Self, TypeVar

from aiofiles.os import wrap as on_executor

from tunnelsync.connector.jail import (
    READ_FLAGS,
    Jail,
    jail_here,
    refusal,
    refuse_special,
)
from tunnelsync.connector.listing import Folders, etag_of
from tunnelsync.connector.outgoing import Span
from tunnelsync.errors import (
    BadRequest,
    BadSetting,
    DatasetChanged,
    NotADataset,
    ReadFailed,
)
from tunnelsync.frames import digest, digest_of
from tunnelsync.protocol import ListAnswer, check_name, printable

Data = TypeVar("Data", bytes, memoryview)

READ_BYTES = 1024 * 1024
"""Read at a time where nothing is kept: hashed while a cache holds it, with few turns of a lock."""
_THREAD = threading.local()
AT_ONCE_BYTES = 64 * 1024
"""Up to so many bytes a turn on the executor costs more than the work that is done in it."""


@dataclass(frozen=True, slots=True)
class Block:
    """The bytes of one block, and their digest."""

    data: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Spanned:
    """Where the bytes of one block are, and the digest that they had when they were read."""

    data: Span
    digest: bytes


class Source:
    """A dataset, open for reading: made by `Root.open`, closed by ``async with`` or `close`.

    ``size`` is in bytes; ``etag`` is the version that `unchanged` holds the dataset to.
    """

    def __init__(
        self,
        name: str,
        file: FileIO,
        found: os.stat_result,
        executor: ThreadPoolExecutor,
        opener: ThreadPoolExecutor,
    ) -> None:
        self.name = name
        self.size, self.mtime_ns, self.ctime_ns = (
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )
        self.etag = etag_of(found)
        self._file = file
        self._whole: Block | None = None
        self._executor = executor
        self._opener = opener
        self._reading = threading.Lock()  # close waits for a read whose caller was cancelled

    async def block(self, offset: int, length: int) -> Block:
        """Return one block and its digest, in one turn on the executor.

        The dataset was seen `unchanged` after the read, so an edit ends a long transfer soon.
        Raises what `read` and `unchanged` raise.
        """
        if (held := self.held(offset, length)) is not None:
            return held
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._block, offset, length)

    def held(self, offset: int, length: int) -> Block | None:
        """Return a block that needs no reading, for the dataset was read as it was opened."""
        if self._whole is None:
            return None
        if length == self.size:
            return self._whole
        data = self._whole.data[offset : offset + length]
        return Block(data, digest(data))

    def _hold(self) -> None:
        """Read a short dataset, and close it."""
        with self._file:
            self._whole = self._block(0, self.size)

    async def span(self, offset: int, length: int) -> Spanned:
        """Return one block's digest, and in place of its bytes where in the file they are.

        Raises what `block` raises.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._span, offset, length)

    def _span(self, offset: int, length: int) -> Spanned:
        found = digest_of(self._reads(offset, length, self._reread))
        self._unchanged()
        return Spanned(Span(self, offset, length), found)

    def _block(self, offset: int, length: int) -> Block:
        data = self._read(offset, length)
        self._unchanged()
        return Block(data, digest(data))

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``, both in bytes.

        Raises `DatasetChanged` when the dataset ends before that, `ReadFailed` for the disk.
        """
        data: bytes = await on_executor(self._read)(offset, length, executor=self._executor)
        return data

    def _read(self, offset: int, length: int) -> bytes:
        # pread, for a seek and a read of aiofiles would be two hops, and a block may be short.
        parts = list(self._reads(offset, length, self._pread))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _pread(self, length: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def _reread(self, length: int, offset: int) -> memoryview:
        """Read into this thread's own buffer, which the next read overwrites."""
        if not hasattr(_THREAD, "buffer"):
            _THREAD.buffer = memoryview(bytearray(READ_BYTES))
        buffer: memoryview = _THREAD.buffer[:length]
        return buffer[: os.preadv(self._file.fileno(), [buffer], offset)]

    def _reads(self, offset: int, length: int, read: Callable[[int, int], Data]) -> Iterator[Data]:
        held = 0
        with self._reading:
            while held < length:
                try:
                    part = read(length - held, offset + held)
                except OSError as exc:
                    message = f"{printable(self.name)} at byte {offset + held}: {exc.strerror}"
                    raise ReadFailed(message) from exc
                if not part:
                    end = f"it ended at byte {offset + held} of {self.size}"
                    raise DatasetChanged(f"{printable(self.name)} shrank while it was read: {end}")
                yield part
                held += len(part)

    async def unchanged(self) -> None:
        """Raise `DatasetChanged`, saying what changed, unless the etag is what it was."""
        await on_executor(self._unchanged)(executor=self._executor)

    def _unchanged(self) -> None:
        try:
            now = os.fstat(self._file.fileno())
        except OSError as exc:
            raise ReadFailed(f"{printable(self.name)} has no stat: {exc.strerror}") from exc
        if etag_of(now) == self.etag:
            return
        if now.st_size != self.size:
            verb = "shrank" if now.st_size < self.size else "grew"
            what = f"{verb} from {self.size} to {now.st_size} bytes"
        elif now.st_nlink == 0:
            what = "was replaced or deleted"
        elif now.st_mtime_ns != self.mtime_ns:
            what = "was edited"
        else:
            what = "was edited and its mtime put back, or it was renamed or given other permissions"
        raise DatasetChanged(f"{printable(self.name)} {what} while it was read")

    def fileno(self) -> int:
        """Return the descriptor, which stays this object's own."""
        return self._file.fileno()

    async def close(self) -> None:
        """Close the descriptor, once a running read has ended; cancelling does not stop it."""
        if self._whole is not None:
            return  # it is closed
        # Behind a read that hangs, it is not to keep others from being opened.
        job = (self._executor if self._reading.locked() else self._opener).submit(self._close)
        await asyncio.shield(asyncio.wrap_future(job))

    def _close(self) -> None:
        with self._reading:
            self._file.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class Root:
    """The folder whose regular files are the datasets, held by a descriptor.

    ``opener`` opens and closes, so that this never waits for the blocks that ``executor`` reads;
    ``list_entries`` bounds a page, ``folder_entries`` a folder that is sorted. Raises
    `BadSetting` if ``path`` is not a folder that can be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        executor: ThreadPoolExecutor,
        opener: ThreadPoolExecutor | None = None,
        *,
        list_entries: int,
        folder_entries: int,
        jail: Jail | None = None,
    ) -> None:
        try:
            self._fd = os.open(path, READ_FLAGS | os.O_DIRECTORY)
        except (OSError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else str(exc)
            what = f"root {printable(os.fspath(path))} cannot be read: {why}"
            raise BadSetting(what, hint="Give --root a folder that you may read.") from exc
        self._executor = executor
        self._opener = opener or executor
        self._list_entries = list_entries
        self._folder_entries = folder_entries
        self._jail = jail or jail_here(self._fd)

    async def open(self, name: str, *, at_once_bytes: int = 0) -> Source:
        """Open a dataset, to be used with ``async with``.

        One of at most ``at_once_bytes`` is read in the same turn, and has no descriptor then.
        Raises `BadName`, `DatasetNotFound`, `NotADataset`, `OutsideRoot` or `DatasetDenied`, and
        what `Source.block` raises.
        """
        check_name(name)
        # Not aiofiles.open: cancelled, it would leave the descriptor to nobody.
        job = self._opener.submit(self._open_dataset, name, at_once_bytes)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            job.add_done_callback(_close_unwanted)
            raise

    def _open_dataset(self, name: str, at_once_bytes: int) -> Source:
        fd, found = self._open(name)
        try:
            if stat.S_ISDIR(found.st_mode):
                raise NotADataset(f"{printable(name)} is a folder")
            file = FileIO(fd)
        except BaseException:
            os.close(fd)
            raise
        source = Source(name, file, found, self._executor, self._opener)
        if 0 < source.size <= at_once_bytes:
            source._hold()
        return source

    def _open(self, name: str) -> tuple[int, os.stat_result]:
        """Return the descriptor of a regular file or a folder, and what it is."""
        try:
            fd = self._jail(self._fd, name)
        except OSError as exc:
            raise refusal(exc, name) from exc
        try:
            found = os.fstat(fd)
            refuse_special(found, name)
        except BaseException:
            os.close(fd)
            raise
        return fd, found

    async def list(self, folder: str, *, after: str, limit: int) -> ListAnswer:
        """List a page of one folder ("" is the root): names after ``after``, in their order.

        Raises what `open` raises, `TooLarge` for a folder of too many entries, and `BadRequest`
        for a ``limit`` below 1; one above ``list_entries`` means that.
        """
        if folder:
            check_name(folder)
        if limit < 1:
            raise BadRequest("the limit of a listing must be at least 1")
        limit = min(limit, self._list_entries)
        folders = Folders(self._open, self._folder_entries)
        page: ListAnswer = await on_executor(folders.page)(
            folder, after, limit, executor=self._executor
        )
        return page

    def close(self) -> None:
        """Close the root's descriptor; call it when nothing is being opened any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _close_unwanted(job: Future[Source]) -> None:
    """Close what a cancelled `Root.open` opened; runs where the job ends, off the loop."""
    if not job.cancelled() and job.exception() is None:
        job.result()._close()
