"""``POST /datasets/result``: a whole answer, or an error before the first byte.

With ``offset`` and ``length`` in the query the body is a part of the answer: the parts come in
order, through a proxy that bounds the size of a body, and the last one makes it whole.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from aiohttp import web

from tunnelsync import protocol, wire
from tunnelsync.errors import BadRequest, RouterBusy, TransferGone, TunnelSyncError, WrongOffset
from tunnelsync.router.access import connector_of
from tunnelsync.router.bodies import error_answer, json_answer, number_in, read_parts, too_large
from tunnelsync.router.context import ROUTER, Budget, Router
from tunnelsync.router.said import Gathered, ResultBody
from tunnelsync.router.transfer import Transfer
from tunnelsync.transfer import State

ERROR_BYTES = 64 * 1024
"""A result of at most so many bytes is looked into for an error; a longer one is none."""


async def result(request: web.Request) -> web.Response:
    """Take a result: who sends it is checked before its body is read."""
    router = request.app[ROUTER]
    _, mac = connector_of(request)
    if "request_id" not in request.query:
        pieces, request_id = await _inline(request, router)
        transfer = wanted(router.switchboard.transfers.claim(request_id, mac))
        with holding(router, transfer, sum(map(len, pieces))):
            give(transfer, ResultBody.of(pieces))
        return json_answer({"status": "ok"})
    transfer = wanted(router.switchboard.transfers.claim(request.query["request_id"], mac))
    if "length" in request.query:
        return await _part(request, router, transfer)
    async with _read(request, router, transfer) as pieces:
        give(transfer, ResultBody.of(pieces))
    return json_answer({"status": "ok"})


def wanted(transfer: Transfer) -> Transfer:
    """Return a transfer if its result is still of use, else raise `TransferGone`."""
    if transfer.state is State.ENDED and transfer.said.result is None:
        raise TransferGone(f"nobody waits for transfer {transfer.request_id} any more")
    return transfer


async def _part(request: web.Request, router: Router, transfer: Transfer) -> web.Response:
    """Take a part of a result; 409 tells where the next one must start."""
    total, offset = number_in(request, "length"), number_in(request, "offset")
    limit = _limit_bytes(router, transfer)
    if total > limit:
        raise too_large(total, limit)
    gathered = transfer.said.gathered
    if gathered is None:
        if transfer.said.result is not None:
            raise TransferGone("the result came in one piece")
        gathered = transfer.said.gathered = Gathered(total)
        transfer.at_end(gathered.drop)
    check = partial(gathered.check, total, offset, request.content_length)
    try:
        check()
        async with _read(request, router, transfer) as pieces:
            check()  # the same part may have come on another connection meanwhile
            wanted(transfer)
            transfer.deadline.alive()
            if (whole := gathered.add(pieces)) is not None:
                give(transfer, whole)
    except WrongOffset as error:
        return error_answer(error, offset=gathered.size)
    return json_answer({"offset": gathered.size})


@asynccontextmanager
async def _read(
    request: web.Request, router: Router, transfer: Transfer
) -> AsyncIterator[list[bytes]]:
    """Read a body under the budget of its like; it is held until the transfer ends.

    One that is sent again, for its answer was lost, is only compared, and harms no transfer.
    """
    held, budget = 0, router.budget(transfer.command)

    def hold(count: int) -> None:
        nonlocal held
        budget.take(count)
        held += count

    try:
        parts = await read_parts(
            request,
            limit_bytes=_limit_bytes(router, transfer),
            idle_seconds=router.settings.idle_seconds,
            count=hold,
        )
        again = transfer.said.result is not None
        yield parts
    except BaseException as error:
        budget.release(held)
        if isinstance(error, RouterBusy) and transfer.said.result is None:
            transfer.deadline.fail(error)
        raise
    give_back(budget, transfer, held, again=again)


@contextmanager
def holding(router: Router, transfer: Transfer, size_bytes: int) -> Iterator[None]:
    """Hold a small answer from now until its transfer ends, if the block takes it."""
    budget = router.budget(transfer.command)
    again = transfer.said.result is not None  # then it is held already
    budget.take(size_bytes)
    try:
        yield
    except BaseException:
        budget.release(size_bytes)
        raise
    give_back(budget, transfer, size_bytes, again=again)


def give_back(budget: Budget, transfer: Transfer, size_bytes: int, *, again: bool) -> None:
    """Release the bytes of an answer when its transfer ends, or now if another copy is held."""
    if again:
        budget.release(size_bytes)
    else:
        transfer.at_end(partial(budget.release, size_bytes))


def _limit_bytes(router: Router, transfer: Transfer) -> int:
    buffered = isinstance(transfer.command, protocol.GetDataset)
    return router.settings.buffer_json_bytes if buffered else router.settings.result_bytes


def give(transfer: Transfer, body: ResultBody) -> None:
    """Hand a whole result, or the error in its place, to its transfer."""
    transfer.on_result(body, _error_in(body))


async def _inline(request: web.Request, router: Router) -> tuple[list[bytes], str]:
    """Read a result that names its request inside."""
    limit = router.settings.inline_result_bytes
    idle = router.settings.idle_seconds
    parts = await read_parts(request, limit_bytes=limit, idle_seconds=idle)
    request_id = wire.loads(b"".join(parts)).get("request_id")
    if not isinstance(request_id, str):
        raise BadRequest("request_id is neither in the query nor in the body")
    return parts, request_id


def _error_in(body: ResultBody) -> TunnelSyncError | None:
    if body.size > ERROR_BYTES:
        return None
    return protocol.problem_in(wire.loads(body.joined()))
