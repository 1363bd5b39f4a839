"""``POST /datasets/result``: a whole answer, or an error before the first byte."""

from functools import partial

from aiohttp import web
from blake3 import blake3

from tunnelsync import protocol, wire
from tunnelsync.errors import BadRequest, RouterBusy, TransferGone, TunnelSyncError
from tunnelsync.router.access import connector_of
from tunnelsync.router.bodies import json_answer, read_parts
from tunnelsync.router.context import ROUTER, Router
from tunnelsync.router.transfer import ResultBody
from tunnelsync.transfer import State

ERROR_BYTES = 64 * 1024
"""A result of at most so many bytes is looked into for an error; a longer one is none."""


async def result(request: web.Request) -> web.Response:
    """Take a result: who sends it is checked before its body is read."""
    router = request.app[ROUTER]
    _, mac = connector_of(request)
    parts: list[bytes] | None = None
    if "request_id" in request.query:
        request_id = request.query["request_id"]
    else:
        parts, request_id = await _inline(request, router)
    transfer = router.switchboard.transfers.claim(request_id, mac)
    if transfer.state is State.ENDED and transfer.said.result is None:
        raise TransferGone(f"nobody waits for transfer {request_id} any more")
    held = 0

    def hold(count: int) -> None:
        nonlocal held
        router.buffers.take(count)
        held += count

    try:
        if parts is None:
            settings = router.settings
            buffered = isinstance(transfer.command, protocol.GetDataset)
            parts = await read_parts(
                request,
                limit_bytes=settings.buffer_json_bytes if buffered else settings.result_bytes,
                idle_seconds=settings.idle_seconds,
                count=hold,
            )
        transfer.on_result(_body(parts), _error_in(parts))
    except BaseException as error:
        router.buffers.release(held)
        if isinstance(error, RouterBusy):
            transfer.deadline.fail(error)
        raise
    transfer.at_end(partial(router.buffers.release, held))
    return json_answer({"status": "ok"})


async def _inline(request: web.Request, router: Router) -> tuple[list[bytes], str]:
    """Read a result that names its request inside."""
    limit = router.settings.inline_result_bytes
    idle = router.settings.idle_seconds
    parts = await read_parts(request, limit_bytes=limit, idle_seconds=idle)
    request_id = wire.loads(b"".join(parts)).get("request_id")
    if not isinstance(request_id, str):
        raise BadRequest("request_id is neither in the query nor in the body")
    return parts, request_id


def _body(parts: list[bytes]) -> ResultBody:
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return ResultBody(tuple(parts), sum(map(len, parts)), hasher.digest())


def _error_in(parts: list[bytes]) -> TunnelSyncError | None:
    if sum(map(len, parts)) > ERROR_BYTES:
        return None
    return protocol.problem_in(wire.loads(b"".join(parts)))
