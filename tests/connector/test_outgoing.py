"""Spans of a file on their way out: by the kernel where its cache has them, else by a thread."""

import asyncio
import ctypes
import mmap
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_writer import StreamWriter
from aiohttp.payload import Payload

from played_router import content
from tunnelsync.connector.outgoing import POSSIBLE, Outgoing, Piece, Span, _FileWay

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="files are sent by the kernel on Linux alone")
SIZE = 1_000_000
LIBC = ctypes.CDLL(None)


class File:
    """An open file that remembers what was read of it in a thread."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self.reads: list[tuple[int, int]] = []

    def fileno(self) -> int:
        return self._descriptor

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        data = await asyncio.to_thread(os.pread, self._descriptor, length, offset)
        if len(data) < length:
            raise OSError("it is too short")
        return data

    def evict(self) -> None:
        """Have the system forget it, but for what is on the disk; it passes over pages in use."""
        os.fsync(self._descriptor)
        for _ in range(1000):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if not self._is_cached():
                return
        raise AssertionError("the system keeps it in its cache")

    def _is_cached(self) -> bool:
        with mmap.mmap(self._descriptor, 0, mmap.MAP_PRIVATE) as view:
            pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
            start = ctypes.c_char.from_buffer(view)
            failed = LIBC.mincore(ctypes.byref(start), ctypes.c_size_t(len(view)), pages)
            del start  # or the view cannot be closed
        assert not failed
        return any(page & 1 for page in pages)


@asynccontextmanager
async def line() -> AsyncIterator[tuple[StreamWriter, socket.socket]]:
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    there.setblocking(False)
    protocol = BaseProtocol(loop)
    transport, _ = await loop.create_connection(lambda: protocol, sock=here)
    try:
        yield StreamWriter(protocol, loop), there
    finally:
        transport.close()
        there.close()


@asynccontextmanager
async def way(
    alive: Callable[[], None] = lambda: None,
) -> AsyncIterator[tuple[_FileWay, socket.socket]]:
    async with line() as (writer, there):
        made = _FileWay(writer, alive)
        try:
            yield made, there
        finally:
            made.close()


async def received(there: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await asyncio.get_running_loop().sock_recv(there, size)
    return bytes(data)


@pytest.mark.parametrize("evicted", [True, False])
async def test_a_span_arrives_and_the_loop_never_reads_a_disk(
    tmp_path: Path, evicted: bool
) -> None:
    (tmp_path / "data").write_bytes(data := content(SIZE))
    file = File(tmp_path / "data")
    assert os.pread(file.fileno(), SIZE, 0) == data  # so that the cache has it
    if evicted:
        file.evict()
    async with way() as (made, there):
        sent = asyncio.create_task(made.send(Span(file, 10, SIZE - 20)))
        assert await received(there, SIZE - 20) == data[10:-10]
        await sent
    assert file.reads or not evicted
    os.close(file.fileno())


async def test_of_a_span_that_goes_out_slowly_each_part_is_a_sign_of_life(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(content(SIZE))
    file, signs = File(tmp_path / "data"), 0

    def alive() -> None:
        nonlocal signs
        signs += 1

    async with way(alive) as (made, there):
        here = made._writer.transport.get_extra_info("socket")  # type: ignore[union-attr]
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SIZE // 10)
        sent = asyncio.create_task(made.send(Span(file, 0, SIZE)))
        await received(there, SIZE)
        await sent
    assert signs > 1 or file.reads  # of what the system does not say that it has it in its cache
    os.close(file.fileno())


async def test_what_was_written_before_a_span_arrives_before_it(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(data := content(SIZE))
    file, before = File(tmp_path / "data"), content(SIZE + 1)
    async with way() as (made, there):
        transport = made._writer.transport
        assert transport is not None
        transport.write(before)
        came = there.recv(SIZE)  # so that there is room, and something waits for it
        assert transport.get_write_buffer_size()
        sent = asyncio.create_task(made.send(Span(file, 0, SIZE)))
        came += await received(there, len(before) + SIZE - len(came))
        assert came == before + data
        await sent
    os.close(file.fileno())


async def test_a_disk_that_is_slower_than_the_line_may_be_is_no_stall() -> None:
    stall_seconds = 0.1

    async def pieces() -> AsyncGenerator[Piece, None]:
        yield b"one"
        await asyncio.sleep(3 * stall_seconds)  # as long as a disk may take
        yield b"other"

    async with line() as (writer, there):
        async with asyncio.timeout(20) as deadline:
            payload = Outgoing(pieces(), 8).payload(deadline, stall_seconds)
            assert isinstance(payload, Payload)
            await payload.write_with_length(writer, 8)
        assert await received(there, 8) == b"oneother"


async def test_a_file_that_ends_before_the_span_breaks_the_connection(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(content(10))
    file = File(tmp_path / "data")
    async with way() as (made, _):
        with pytest.raises(OSError, match=r"ended|short"):
            await made.send(Span(file, 10, 10))
    os.close(file.fileno())
