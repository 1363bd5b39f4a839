"""The queue of chunk requests: which one is taken, and what is said to the others."""

import asyncio

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from tunnelsync.errors import BadRequest, BrokenOff, TransferGone, WrongOffset
from tunnelsync.router.chunks import Chunk, ChunkQueue

BODY = 1000


class Upload:
    """A chunk request as the queue sees it, and whether its connection was aborted."""

    def __init__(self, offset: int, length: int | None = None) -> None:
        loop = asyncio.get_running_loop()
        content = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
        self.aborted = False
        self.chunk = Chunk(offset, length, content, self.abort, loop.create_future())

    def abort(self) -> None:
        self.aborted = True


def put(queue: ChunkQueue, offset: int, length: int | None = None) -> Upload:
    upload = Upload(offset, length)
    queue.put(upload.chunk, BODY)
    return upload


async def test_the_first_chunk_starts_where_the_transfer_stands() -> None:
    queue = ChunkQueue(limit=2, taken=300)
    for wrong in (0, 299, 301):
        with pytest.raises(WrongOffset, match="300"):
            put(queue, wrong, 10)
    upload = put(queue, 300, 10)
    assert await queue.next() is upload.chunk
    assert queue.next_offset == 310


async def test_b5_the_next_one_starts_where_the_last_one_ends() -> None:
    queue = ChunkQueue(limit=2)
    first = put(queue, 0, 100)
    for wrong in (0, 99, 101):
        with pytest.raises(WrongOffset, match="100"):
            put(queue, wrong, 10)
    second = put(queue, 100, 100)
    with pytest.raises(WrongOffset):
        put(queue, 200, 10)
    queue.taken = 100
    queue.drop(first.chunk)
    assert await queue.next() is second.chunk
    put(queue, 200, 10)


async def test_behind_a_chunk_of_unknown_length_there_is_no_place() -> None:
    queue = ChunkQueue(limit=2)
    put(queue, 0)
    for offset in (0, 10):
        with pytest.raises(WrongOffset):
            put(queue, offset, 10)


async def test_a_chunk_past_the_body_is_refused() -> None:
    queue = ChunkQueue(limit=2)
    with pytest.raises(BadRequest, match="1000"):
        put(queue, 0, BODY + 1)
    put(queue, 0, BODY)


async def test_next_waits_for_a_chunk() -> None:
    queue = ChunkQueue(limit=2)
    waiting = asyncio.create_task(queue.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    upload = put(queue, 0, 10)
    assert await waiting is upload.chunk


async def test_b12_detach_breaks_off_what_there_is_and_tells_the_offset() -> None:
    queue = ChunkQueue(limit=2)
    first, second = put(queue, 0, 100), put(queue, 100, 100)
    queue.taken = 42
    assert queue.detach() == 42
    assert first.aborted
    assert second.aborted
    assert first.chunk.detached
    with pytest.raises(WrongOffset):
        await first.chunk.done
    assert queue.next_offset == 42
    put(queue, 42, 10)


async def test_what_was_sent_comes_before_the_error() -> None:
    queue = ChunkQueue(limit=2)
    put(queue, 0, 500)
    queue.taken = 100
    assert queue.stop_after(300, BrokenOff("the disk"))
    queue.check_stop()
    queue.taken = 300
    with pytest.raises(BrokenOff, match="the disk"):
        queue.check_stop()


async def test_an_error_does_not_wait_for_bytes_that_cannot_come() -> None:
    queue = ChunkQueue(limit=2)
    assert not queue.stop_after(300, BrokenOff("no chunk request brings them"))
    upload = put(queue, 0, 500)
    assert not queue.stop_after(0, BrokenOff("all is taken"))
    assert queue.stop_after(300, BrokenOff("the disk"))
    queue.drop(upload.chunk)  # its connection broke
    with pytest.raises(BrokenOff, match="the disk"):
        await queue.next()


async def test_the_end_answers_everybody_once() -> None:
    queue = ChunkQueue(limit=2)
    first, second = put(queue, 0, 10), put(queue, 10, 10)
    first.chunk.finish()
    queue.finish(TransferGone("ended"))
    await first.chunk.done
    with pytest.raises(TransferGone):
        await second.chunk.done
    queue.finish()
    assert not first.aborted


def after(queue: ChunkQueue, offset: int, length: int, follows: int) -> Upload:
    upload = Upload(offset, length)
    upload.chunk.after = follows
    queue.put(upload.chunk, BODY)
    return upload


async def test_b5_one_that_comes_before_the_one_it_follows_waits_for_it() -> None:
    queue = ChunkQueue(limit=2, taken=100)
    second = after(queue, 300, 50, follows=100)
    waiting = asyncio.create_task(queue.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert queue.next_offset == 100
    for offset, length in ((100, 199), (100, 201), (100, None), (350, 10)):
        with pytest.raises(WrongOffset, match="stands at 100"):
            put(queue, offset, length)
    first = put(queue, 100, 200)
    assert await waiting is first.chunk
    assert queue.next_offset == 350
    queue.taken = 300
    queue.drop(first.chunk)
    assert await queue.next() is second.chunk
    third = after(queue, 350, 10, follows=300)
    assert queue.next_offset == 360
    assert queue.detach() == 300
    assert second.aborted
    assert third.aborted


async def test_b5_only_the_next_but_one_may_come_early() -> None:
    queue = ChunkQueue(limit=2)
    for follows in (50, 200):
        with pytest.raises(WrongOffset):
            after(queue, 100, 10, follows=follows)
    after(queue, 100, 10, follows=0)
    with pytest.raises(WrongOffset):
        after(queue, 200, 10, follows=0)


async def test_an_error_does_not_wait_for_one_that_came_early() -> None:
    queue = ChunkQueue(limit=2)
    after(queue, 100, 100, follows=0)
    assert not queue.stop_after(150, BrokenOff("the disk"))
