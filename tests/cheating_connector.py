"""A connector by hand, that may cheat: any hello, and any post in anybody's name."""

import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from tunnelsync import protocol, wire
from tunnelsync.protocol import Ack, Command, Complete, Hello, Init, Welcome

SECONDS = 15.0
ETAG = "v1"
ENDS = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


@dataclass(frozen=True, slots=True)
class Said:
    """The router's answer to one post: its status, and its JSON."""

    status: int
    value: Mapping[str, Any]

    @property
    def code(self) -> str:
        """The code of the error in it; empty for a success."""
        return str(self.value["error"]["code"]) if "error" in self.value else ""


class CheatingConnector:
    """One socket, and posts in its name."""

    def __init__(self, http: aiohttp.ClientSession, url: str, mac: str) -> None:
        self._http = http
        self._url = url
        self._mac = mac
        self.ws: aiohttp.ClientWebSocketResponse

    async def open(self) -> None:
        """Open the socket, without a hello."""
        self.ws = await self._http.ws_connect(
            f"{self._url}/connectors/ws", protocols=(protocol.SUBPROTOCOL,)
        )

    async def hello(self, **changes: Any) -> None:
        """Say hello; the members may differ from what is usual."""
        usual = {"mac": self._mac, "version": "cheat", "instance": secrets.token_hex(16)}
        await self.ws.send_str(protocol.encode(Hello(**(usual | changes))))

    async def message(self) -> aiohttp.WSMessage:
        """Wait for what comes next on the socket."""
        return await self.ws.receive(SECONDS)

    async def welcomed(self) -> None:
        """Wait to be welcome."""
        message = await self.message()
        assert message.type is aiohttp.WSMsgType.TEXT, (message, self.ws.close_code)
        assert isinstance(protocol.decode_from_router(message.data), Welcome)

    async def command(self) -> Command:
        """Wait for a command, and acknowledge it."""
        command = protocol.decode_from_router((await self.message()).data)
        assert not isinstance(command, Welcome | protocol.Fault), command
        await self.ws.send_str(protocol.encode(Ack(command.request_id)))
        return command

    async def closed(self) -> int | None:
        """Wait for the end of the socket, and return the code it came with."""
        while (await self.message()).type not in ENDS:
            pass
        return self.ws.close_code

    async def post(self, path: str, body: object, **query: str) -> Said:
        """Post JSON, or bytes as they are, to an address under ``/datasets/``."""
        data = io.BytesIO(body if isinstance(body, bytes) else wire.dumps(body))
        async with (
            asyncio.timeout(SECONDS),
            self._http.post(f"{self._url}/datasets/{path}", data=data, params=query) as answer,
        ):
            return Said(answer.status, orjson.loads(await answer.read()))

    async def result(self, request_id: str, body: object) -> Said:
        """Give a whole result, or an error in its place."""
        return await self.post("result", body, request_id=request_id)

    async def init(self, request_id: str, size: int, /, **changes: Any) -> Said:
        """Announce a whole dataset as a stream."""
        usual: dict[str, Any] = {"status": 200, "size": size, "etag": ETAG, "length": size}
        return await self.post("stream/init", Init(request_id, **(usual | changes)))

    async def chunk(self, request_id: str, offset: int, data: bytes) -> Said:
        """Send bytes of the body."""
        return await self.post("stream/chunk", data, request_id=request_id, offset=str(offset))

    async def complete(self, request_id: str, **members: Any) -> Said:
        """Give the closing word."""
        return await self.post("stream/complete", Complete(request_id, **members))

    async def offset(self, request_id: str) -> Said:
        """Ask where to go on."""
        url = f"{self._url}/datasets/stream/offset"
        async with self._http.get(url, params={"request_id": request_id}) as answer:
            return Said(answer.status, orjson.loads(await answer.read()))


@asynccontextmanager
async def cheating(
    url: str, mac: str, *, token: str | None = None, named: str | None = None
) -> AsyncIterator[CheatingConnector]:
    """Yield a connector without a socket yet; ``named`` is the MAC in its headers."""
    headers = {protocol.H_CONNECTOR: named or mac}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    async with aiohttp.ClientSession(headers=headers) as http:
        yield CheatingConnector(http, url, mac)


@asynccontextmanager
async def welcome(
    url: str, mac: str, *, token: str | None = None
) -> AsyncIterator[CheatingConnector]:
    """Yield a connector that has been welcomed."""
    async with cheating(url, mac, token=token) as cheat:
        await cheat.open()
        await cheat.hello()
        await cheat.welcomed()
        yield cheat
        await cheat.ws.close()
