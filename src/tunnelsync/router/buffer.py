"""Mode buffer: the client waits until the whole dataset is here, and gets it as one JSON."""

from aiohttp import web

from tunnelsync import protocol
from tunnelsync.protocol import Mode
from tunnelsync.router.asking import answered, asked_in
from tunnelsync.router.context import ROUTER
from tunnelsync.router.relay import send_whole
from tunnelsync.router.said import Reply, ResultBody
from tunnelsync.router.transfer import Transfer


async def request_sync(request: web.Request) -> web.StreamResponse:
    """``POST /datasets/request-sync``: the connector's JSON is passed on as it came."""
    router = request.app[ROUTER]
    asked = await asked_in(request, whole=True)

    def command(request_id: str) -> protocol.Command:
        return protocol.GetDataset(request_id, asked.dataset, asked.conditions)

    async def deliver(request: web.Request, transfer: Transfer, body: Reply) -> web.StreamResponse:
        assert isinstance(body, ResultBody)
        return await send_whole(transfer, request, body, router.settings)

    return await answered(request, asked, Mode.BUFFER, command, deliver)
