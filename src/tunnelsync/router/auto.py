"""Mode auto: the connector chooses stream or offload, and the answer follows its choice."""

from aiohttp import web

from tunnelsync import protocol
from tunnelsync.errors import BadRequest
from tunnelsync.protocol import Mode
from tunnelsync.router import offload, stream
from tunnelsync.router.asking import answered, asked_in
from tunnelsync.router.context import ROUTER
from tunnelsync.router.said import Reply
from tunnelsync.router.transfer import Transfer


async def request_auto(request: web.Request) -> web.StreamResponse:
    """``POST /datasets/request-auto``: one round trip, whatever the connector chooses."""
    router = request.app[ROUTER]
    asked = await asked_in(request)
    able = {Mode.STREAM, Mode.OFFLOAD} if router.store_origin else {Mode.STREAM}
    accept = tuple(mode for mode in asked.accept if mode in able)
    if not accept:
        raise BadRequest(
            "none of the modes in accept can be had here; there are stream and offload"
        )

    def command(request_id: str) -> protocol.Command:
        return protocol.GetDatasetAuto(
            request_id,
            asked.dataset,
            accept=accept,
            coding=asked.coding,
            offset=asked.offset,
            length=asked.length,
            conditions=asked.conditions,
            segments_from=asked.segments_from,
        )

    async def deliver(request: web.Request, transfer: Transfer, reply: Reply) -> web.StreamResponse:
        if isinstance(reply, protocol.Init):
            transfer.mode_used = Mode.STREAM
            return await stream.answer(request, transfer, reply, asked.coding)
        transfer.mode_used = Mode.OFFLOAD
        return await offload.answer(request, transfer, reply)

    return await answered(request, asked, Mode.AUTO, command, deliver)
