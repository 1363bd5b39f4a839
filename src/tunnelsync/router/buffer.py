"""Mode buffer: the client waits until the whole dataset is here, and gets it as one JSON."""

from aiohttp import web

from tunnelsync import protocol
from tunnelsync.errors import ProtocolError
from tunnelsync.protocol import Mode
from tunnelsync.router.asking import asked_in, asking
from tunnelsync.router.context import ROUTER
from tunnelsync.router.relay import send_whole
from tunnelsync.router.transfer import ResultBody


async def request_sync(request: web.Request) -> web.StreamResponse:
    """``POST /datasets/request-sync``: the connector's JSON is passed on as it came."""
    router = request.app[ROUTER]
    asked = await asked_in(request, whole=True)

    def command(request_id: str) -> protocol.Command:
        return protocol.GetDataset(request_id, asked.dataset, asked.conditions)

    async with asking(request, asked.mac, asked.dataset, Mode.BUFFER, command) as transfer:
        body = await transfer.reply()
        if not isinstance(body, ResultBody):
            raise ProtocolError(f"connector {asked.mac} answered mode buffer with a stream")
        return await send_whole(transfer, request, body, router.settings)
