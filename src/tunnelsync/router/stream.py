"""Mode stream: the client's request, and the connector's init, chunks and complete that feed it."""

import asyncio
from email.utils import formatdate
from functools import partial
from typing import TypeVar

from aiohttp import web

from tunnelsync import protocol
from tunnelsync.errors import (
    BadRequest,
    PreconditionFailed,
    RangeNotSatisfiable,
    TransferGone,
    WrongOffset,
)
from tunnelsync.headers import content_disposition
from tunnelsync.identity import Mac
from tunnelsync.protocol import Coding, Mode, printable
from tunnelsync.router.access import connector_of
from tunnelsync.router.asking import Asked, answered, asked_in
from tunnelsync.router.bodies import (
    error_answer,
    header_message,
    json_answer,
    number_in,
    read_message,
    request_id_in,
)
from tunnelsync.router.chunks import Chunk
from tunnelsync.router.context import ROUTER
from tunnelsync.router.relay import relay, start
from tunnelsync.router.said import Reply
from tunnelsync.router.transfer import Transfer
from tunnelsync.sockets import abort
from tunnelsync.transfer import State

Words = TypeVar("Words", protocol.Init, protocol.Complete)

# --- the client's side ------------------------------------------------------------------------


async def request_stream(request: web.Request) -> web.StreamResponse:
    """``POST /datasets/request-stream``: frames, or without a coding the plain bytes."""
    return await stream(request, await asked_in(request))


async def stream(request: web.Request, asked: Asked) -> web.StreamResponse:
    """Ask the connector for a dataset and relay it."""

    def command(request_id: str) -> protocol.Command:
        return protocol.GetDatasetStream(
            request_id,
            asked.dataset,
            coding=asked.coding,
            offset=asked.offset,
            length=asked.length,
            conditions=asked.conditions,
        )

    async def deliver(request: web.Request, transfer: Transfer, init: Reply) -> web.StreamResponse:
        assert isinstance(init, protocol.Init)
        return await answer(request, transfer, init, asked.coding)

    return await answered(request, asked, Mode.STREAM, command, deliver)


async def answer(
    request: web.Request, transfer: Transfer, init: protocol.Init, coding: str
) -> web.StreamResponse:
    """Send the head that an init tells of, and relay the body."""
    settings = request.app[ROUTER].settings
    if init.status in (412, 416):
        transfer.last_byte()
        return refusal(transfer.dataset, init)
    headers = streamed_headers(transfer.dataset, init, coding)
    length = 0 if init.status == 304 else init.length
    here = transfer.chunks.ready
    response = await start(
        transfer, request, status=init.status, length=length, headers=headers, here=here
    )
    await relay(transfer, request, response, coding, settings)
    return response


def streamed_headers(
    dataset: str, version: protocol.Init | protocol.StatAnswer, coding: str
) -> dict[str, str]:
    """Return the headers of an answer that carries a dataset, or tells of one."""
    headers = {
        "ETag": f'"{version.etag}"',
        "Last-Modified": formatdate(version.modified_ns // 10**9, usegmt=True),
        "Cache-Control": "private, no-transform",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
        "Content-Type": "application/octet-stream",
        protocol.H_SIZE: str(version.size),
        protocol.H_MODIFIED: str(version.modified_ns),
    }
    if coding == Coding.RAW:
        headers["Accept-Ranges"] = "bytes"
        headers["Content-Disposition"] = content_disposition(dataset)
    else:
        headers[protocol.H_OFFSET] = str(version.offset)
    if version.status == 206 and coding == Coding.RAW:
        last = version.offset + version.length - 1
        headers["Content-Range"] = f"bytes {version.offset}-{last}/{version.size}"
    return headers


def refusal(
    dataset: str, version: protocol.Init | protocol.StatAnswer, *, in_header: bool = False
) -> web.Response:
    """Return the answer for a condition that failed, or a range that cannot be."""
    if version.status == 412:
        failed = PreconditionFailed(f"{printable(dataset)} is not the version that was asked for")
        response = error_answer(failed, in_header=in_header)
    else:
        beyond = f"the range is not within the {version.size} bytes of {printable(dataset)}"
        response = error_answer(RangeNotSatisfiable(beyond), in_header=in_header)
        response.headers["Content-Range"] = f"bytes */{version.size}"
    response.headers["ETag"] = f'"{version.etag}"'
    return response


# --- the connector's side ---------------------------------------------------------------------


async def init(request: web.Request) -> web.Response:
    """``POST /datasets/stream/init``: the client gets its status and headers."""
    transfer, said = await _said(request, protocol.Init)
    transfer.on_init(said)
    return json_answer({"status": "ok"})


async def complete(request: web.Request) -> web.Response:
    """``POST /datasets/stream/complete``: the closing word, or the error that ended it."""
    transfer, said = await _said(request, protocol.Complete)
    transfer.on_complete(said)
    return json_answer({"status": "ok"})


async def offset(request: web.Request) -> web.Response:
    """``GET /datasets/stream/offset``: break off the uploads there are; where to go on.

    With ``?detach=no`` nothing is broken off, and ``next`` is where those that have come end.
    """
    _, mac = connector_of(request)
    transfer = _claimed(request, request_id_in(request), mac)
    if transfer.state is State.ENDED:
        raise TransferGone(f"transfer {transfer.request_id} has ended")
    if request.query.get("detach") == "no":
        chunks = transfer.chunks
        return json_answer({"offset": chunks.taken, "next": chunks.next_offset})
    return json_answer({"offset": transfer.chunks.detach()})


async def chunk(request: web.Request) -> web.Response:
    """``POST /datasets/stream/chunk``: bytes of the body from an offset on.

    The body is read by the client's handler. The answer comes when all of it was taken; 409
    tells the right offset, 410 that nobody wants it.
    """
    _, mac = connector_of(request)
    transfer = _claimed(request, request_id_in(request), mac)
    said_init = header_message(request, protocol.H_INIT, protocol.Init)
    said_complete = header_message(request, protocol.H_COMPLETE, protocol.Complete)
    for said in (said_init, said_complete):
        if said is not None and said.request_id != transfer.request_id:
            raise BadRequest("a header of the chunk names another request")
    transport = request.transport
    if transport is None:
        raise TransferGone("the connection is gone")
    if said_init is not None and transfer.state is not State.ENDED:
        transfer.on_init(said_init)
    upload = Chunk(
        offset=number_in(request, "offset"),
        length=request.content_length,
        content=request.content,
        abort=partial(abort, transport),
        done=asyncio.get_running_loop().create_future(),
        protocol=request.protocol,
        after=number_in(request, "after") if "after" in request.query else None,
    )
    try:
        transfer.on_chunk(upload)
        await upload.done
    except WrongOffset as error:
        return error_answer(error, offset=transfer.chunks.next_offset)
    finally:
        transfer.chunks.drop(upload)
    if said_complete is not None:
        transfer.on_complete(said_complete)
    answer = json_answer({"offset": transfer.chunks.taken})
    if upload.spliced:
        answer.force_close()
    return answer


async def _said(request: web.Request, kind: type[Words]) -> tuple[Transfer, Words]:
    """Read a small body about a transfer; one that is named in the query is checked before."""
    _, mac = connector_of(request)
    named = request.query.get("request_id")
    if named is not None:
        _claimed(request, named, mac)
    said = await read_message(request, kind, request.app[ROUTER].settings)
    if named not in (None, said.request_id):
        raise BadRequest("the body names another request than the address")
    return _claimed(request, said.request_id, mac), said


def _claimed(request: web.Request, request_id: str, mac: Mac | None) -> Transfer:
    return request.app[ROUTER].switchboard.transfers.claim(request_id, mac)
