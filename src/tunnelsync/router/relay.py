"""Bytes from a connector's uploads to a client's response, as they arrive.

Nothing here looks inside the body. What was taken off an upload is written before more is read;
an upload that breaks is followed by the next one, and the client sees nothing of it.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from aiohttp import ClientError, web

from tunnelsync import frames, protocol
from tunnelsync.errors import Stalled, TunnelSyncError
from tunnelsync.protocol import Coding
from tunnelsync.router.chunks import Chunk
from tunnelsync.router.transfer import CLIENT_TAKES, ITS_RETURN, ResultBody, Transfer
from tunnelsync.settings import RouterSettings

LAST_WORDS_SECONDS = 5.0
"""How long a client has to take what is left after a failure, before it is cut off."""
NEXT_BYTES = "the next bytes"
BROKEN = (ClientError, ConnectionError, web.PayloadAccessError)
STARTED = "tunnelsync-started"
"""Where a request keeps its response once it is prepared: no other can be sent then."""


async def start(
    transfer: Transfer,
    request: web.Request,
    *,
    status: int = 200,
    length: int,
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Send the head of an answer whose body has so many bytes."""
    response = web.StreamResponse(status=status, headers=headers)
    response.headers[protocol.H_REQUEST_ID] = transfer.request_id
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
    response = await start(transfer, request, length=body.size, headers=headers)
    async with (
        _never_clean_unless_whole(transfer, request, response, Coding.RAW),
        transfer.within(settings.idle_seconds, CLIENT_TAKES),
    ):
        for part in body.parts:
            await response.write(part)
            transfer.deadline.alive()
            transfer.wrote(len(part))
        await response.write_eof()
    transfer.last_byte()
    return response


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
            if not await _relay_chunk(transfer, chunk, response, init.length):
                deadline.expect(settings.resume_seconds, ITS_RETURN)
        await response.write_eof()
    transfer.last_byte()


async def _relay_chunk(
    transfer: Transfer, chunk: Chunk, response: web.StreamResponse, body_bytes: int
) -> bool:
    """Relay one upload to its end; False if it broke before that, or was detached."""
    chunks, deadline, content = transfer.chunks, transfer.deadline, chunk.content
    while chunks.taken < body_bytes:
        try:
            data = await content.readany()
        except BROKEN:
            chunks.drop(chunk)
            return False
        if chunk.detached:
            return False
        if not data:
            break
        data = data[: body_bytes - chunks.taken]
        chunks.taken += len(data)
        deadline.expected = CLIENT_TAKES
        await response.write(data)
        deadline.expected = NEXT_BYTES
        deadline.alive()
        transfer.wrote(len(data))
        chunks.check_stop()
    whole = chunk.length is None or chunks.taken >= chunk.offset + chunk.length
    if chunks.taken < body_bytes:
        chunks.drop(chunk)
        chunk.finish()
    return whole


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
        if request.transport is not None:
            request.transport.abort()
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
        transport.abort()
        return
    asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, transport.abort)
    if coding == Coding.BLOCKS and frames.position(transfer.chunks.taken).skip_bytes == 0:
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            await response.write(frames.encode_failure(error))
    transport.close()
