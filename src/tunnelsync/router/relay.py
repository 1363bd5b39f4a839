"""Bytes from a connector's uploads to a client's response, as they arrive.

Nothing here looks inside the body, and most of it stays in the kernel (see ``splice``). What was
taken off an upload is written before more is read; an upload that breaks is followed by the next
one, and the client sees nothing of it.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from aiohttp import ClientError, web

from tunnelsync import frames, protocol, wire
from tunnelsync.errors import Stalled, TunnelSyncError
from tunnelsync.protocol import Coding
from tunnelsync.router.chunks import Chunk
from tunnelsync.router.said import ResultBody
from tunnelsync.router.splice import Splice
from tunnelsync.router.transfer import CLIENT_TAKES, ITS_RETURN, Transfer
from tunnelsync.settings import RouterSettings
from tunnelsync.sockets import abort

LAST_WORDS_SECONDS = 5.0
"""How long a client has to take what is left after a failure, before it is cut off."""
NEXT_BYTES = "the next bytes"
SPLICE_FROM_BYTES = 4 * 1024 * 1024
"""Below so many bytes left, the copies cost less than a pipe and another connection."""
BROKEN = (ClientError, ConnectionError, web.PayloadAccessError)
WRITE_BYTES = 256 * 1024
"""What a client must take of a body within its deadline, besides what its connection holds."""
SHORT_BYTES = 64 * 1024
"""Up to so many bytes of a body come at once, and go out with the head."""
STARTED = "tunnelsync-started"
"""Where a request keeps its response once it is prepared: no other can be sent then."""


class _Short(web.StreamResponse):
    """An answer whose head waits for the first bytes of its body, to go out with them."""

    _send_headers_immediately = False


async def start(
    transfer: Transfer,
    request: web.Request,
    *,
    status: int = 200,
    length: int,
    headers: Mapping[str, str],
    here: bool,
) -> web.StreamResponse:
    """Send the head of an answer whose body has so many bytes; its first ones may be ``here``."""
    together = here and length <= SHORT_BYTES
    response = (_Short if together else web.StreamResponse)(status=status, headers=headers)
    response.headers[protocol.H_REQUEST_ID] = transfer.request_id
    if transfer.mode != "list":
        response.headers[protocol.H_MODE] = transfer.mode_used or transfer.mode
    response.content_length = length
    await response.prepare(request)
    request[STARTED] = response
    return response


async def send_whole(
    transfer: Transfer, request: web.Request, body: ResultBody, settings: RouterSettings
) -> web.StreamResponse:
    """Answer with a result as it came, unparsed."""
    headers = {"Content-Type": "application/json"}
    response = await start(transfer, request, length=body.size, headers=headers, here=True)
    async with (
        _never_clean_unless_whole(transfer, request, response, Coding.RAW),
        transfer.within(settings.idle_seconds, CLIENT_TAKES),
    ):
        for part in (body.joined(),) if body.size <= SHORT_BYTES else body.parts:
            await _written(transfer, response, part)
        await response.write_eof()
    transfer.last_byte()
    return response


async def send_message(
    transfer: Transfer, request: web.Request, message: object, settings: RouterSettings
) -> web.StreamResponse:
    """Answer with a message of ours as `send_whole` does: under the client's deadline."""
    data = wire.dumps(message)
    return await send_whole(transfer, request, ResultBody((data,), len(data), b""), settings)


async def relay(
    transfer: Transfer,
    request: web.Request,
    response: web.StreamResponse,
    coding: str,
    settings: RouterSettings,
) -> None:
    """Relay the whole body into a prepared response; its length is announced already.

    After a failure the response is broken off, so that it is never taken for whole; in the
    coding blocks a failure frame says why. Raises what ended the transfer.
    """
    init, chunks, deadline = transfer.said.init, transfer.chunks, transfer.deadline
    assert init is not None
    async with (
        _never_clean_unless_whole(transfer, request, response, coding),
        transfer.within(settings.idle_seconds, "its first bytes"),
    ):
        while chunks.taken < init.length:
            chunks.check_stop()
            chunk = await chunks.next()
            deadline.expect(settings.idle_seconds, NEXT_BYTES)
            if not await _relay_chunk(
                transfer, chunk, request, response, zero_copy=settings.zero_copy
            ):
                deadline.expect(settings.resume_seconds, ITS_RETURN)
        await response.write_eof()
    transfer.last_byte()


async def _relay_chunk(
    transfer: Transfer,
    chunk: Chunk,
    request: web.Request,
    response: web.StreamResponse,
    *,
    zero_copy: bool,
) -> bool:
    """Relay one upload to its end; False if it broke before that, or was detached.

    What comes with the heads is copied; a long rest stays in the kernel where that can be.
    """
    assert transfer.said.init is not None
    chunks, body_bytes = transfer.chunks, transfer.said.init.length
    end = body_bytes if chunk.length is None else chunk.offset + chunk.length
    going = True
    while going and chunks.taken < end:
        long = zero_copy and transfer.written and end - chunks.taken >= SPLICE_FROM_BYTES
        # One whose length was not told comes in pieces with heads of their own.
        if long and chunk.length is not None and chunk.protocol and not chunk.content.is_eof():
            way = Splice.between(chunk.protocol.transport, request.transport)
            if way is not None:
                with way:
                    await _splice(transfer, chunk, request, response, end, way)
                break
        going = await _copy(transfer, chunk, response, end)
    if chunk.detached:
        return False
    if chunks.taken >= body_bytes:
        return True
    chunks.drop(chunk)
    unbroken = chunks.taken >= end or (chunk.length is None and chunk.content.exception() is None)
    if unbroken:
        chunk.finish()
    return unbroken


async def _copy(transfer: Transfer, chunk: Chunk, response: web.StreamResponse, end: int) -> bool:
    """Pass on what has arrived of an upload; False if nothing more will."""
    try:
        data = await chunk.content.readany()
    except BROKEN:
        return False
    if chunk.detached or not data:
        return False
    await _write(transfer, response, data[: end - transfer.chunks.taken])
    return True


async def _write(transfer: Transfer, response: web.StreamResponse, data: bytes) -> None:
    transfer.chunks.taken += len(data)
    transfer.deadline.expected = CLIENT_TAKES
    await _written(transfer, response, data)
    transfer.deadline.expected = NEXT_BYTES
    transfer.chunks.check_stop()


async def _written(transfer: Transfer, response: web.StreamResponse, data: bytes) -> None:
    """Write in pieces, each of which is a sign of life of a client on a slow line."""
    for at in range(0, len(data), WRITE_BYTES):
        piece = memoryview(data)[at : at + WRITE_BYTES] if len(data) > WRITE_BYTES else data
        transfer.wrote(len(piece))  # before: also if the wait for the client breaks off
        await response.write(piece)
        transfer.deadline.alive()


async def _splice(
    transfer: Transfer,
    chunk: Chunk,
    request: web.Request,
    response: web.StreamResponse,
    end: int,
    way: Splice,
) -> None:
    """Move the rest of an upload from socket to socket, until its end or its break.

    The server knows nothing of these bytes, so the upload's connection ends with them.
    """
    chunks, deadline, target = transfer.chunks, transfer.deadline, request.transport
    assert chunk.protocol is not None
    assert target is not None
    try:
        # Nothing is awaited from the last read to the pause, so no byte can come in between.
        arrived = chunk.content.read_nowait(-1)
    except BROKEN:
        return
    chunk.protocol.pause_reading()
    chunk.splice(way.cut)
    try:
        await _write(transfer, response, arrived)
        deadline.expected = CLIENT_TAKES
        target.set_write_buffer_limits(0)
        await request.writer.drain()
        target.set_write_buffer_limits()
        while chunks.taken < end and not chunk.detached:
            deadline.expected = NEXT_BYTES
            count = await way.take(end - chunks.taken)
            if not count:
                break
            chunks.taken += count
            deadline.expected = CLIENT_TAKES
            while way.held:
                transfer.wrote(await way.put())
                deadline.alive()
            chunks.check_stop()
    except BaseException:
        chunk.abort()
        raise
    if chunks.taken >= end:
        chunk.content.feed_eof()
    else:
        chunk.abort()


@asynccontextmanager
async def _never_clean_unless_whole(
    transfer: Transfer, request: web.Request, response: web.StreamResponse, coding: str
) -> AsyncIterator[None]:
    """Break a response off when its body does not come to its end."""
    try:
        yield
    except TunnelSyncError as error:
        with suppress(ConnectionError, TimeoutError):
            await _break_off(transfer, request, response, coding, error)
        raise
    except BaseException:
        abort(request.transport)
        raise


async def _break_off(
    transfer: Transfer,
    request: web.Request,
    response: web.StreamResponse,
    coding: str,
    error: TunnelSyncError,
) -> None:
    """End a response before its end, with the reason where the coding has a place for it."""
    transport = request.transport
    if transport is None:
        return
    if isinstance(error, Stalled) and transfer.deadline.expected == CLIENT_TAKES:
        abort(transport)
        return
    asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, abort, transport)
    if isinstance(response, _Short):
        await response.write(b"")  # its head, if that still waits for the first bytes
    last_words = frames.encode_failure(error)
    left = (transfer.said.init.length if transfer.said.init else 0) - transfer.written
    # If they filled it, or were cut off at its end, HTTP would have the body for whole.
    fits = coding == Coding.BLOCKS and len(last_words) < left
    if fits and frames.between_frames(transfer.written):
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            await response.write(last_words)
    transport.close()
