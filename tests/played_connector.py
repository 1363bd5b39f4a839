"""A connector that a test plays to a real router: it says what the test says, and nothing else.

Beside it what a client gets, to the last byte that came, however the answer ended.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import orjson
from aiohttp import ClientSession, ClientWebSocketResponse, ClientWSTimeout, WSMsgType

import raw_http
from harness import Router, System
from raw_http import Answer
from tunnelsync import protocol, wire
from tunnelsync.protocol import Complete, Hello, Init
from watched import metric

SECONDS = 20.0
GOODBYE_SECONDS = 1.0
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the router said to a post of the connector."""

    status: int
    value: Json

    @property
    def code(self) -> str:
        """The code of the error in it, or an empty text."""
        return str(self.value.get("error", {}).get("code", ""))


class PlayedConnector:
    """One connector: its socket of the moment, and its posts; used with ``async with``.

    ``instance`` is that of its process: see `another`.
    """

    def __init__(self, url: str, mac: str) -> None:
        self.mac = mac
        self.url = url
        self.instance = secrets.token_hex(16)
        self.socket: ClientWebSocketResponse
        self._http = ClientSession()
        self._headers = {protocol.H_CONNECTOR: mac}
        self._sockets: list[ClientWebSocketResponse] = []
        self._held: list[HeldPost] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for held in self._held:
            held.close()
        for socket in self._sockets:
            await socket.close()
        await self._http.close()

    # --- the socket -------------------------------------------------------------------------

    def hello(self) -> Hello:
        """Return the hello of this process."""
        return Hello(self.mac, "played", self.instance)

    async def open(self) -> None:
        """Open a socket, and say nothing yet."""
        self.socket = await self._http.ws_connect(
            f"{self.url}/connectors/ws",
            protocols=(protocol.SUBPROTOCOL,),
            headers=self._headers,
            max_msg_size=0,
            timeout=ClientWSTimeout(ws_close=GOODBYE_SECONDS),
        )
        self._sockets.append(self.socket)

    async def connect(self) -> Self:
        """Open a socket, say hello, and be welcome."""
        await self.open()
        await self.say(self.hello())
        assert (await self.hear())["type"] == "welcome"
        return self

    async def say(self, message: protocol.FromConnector | str | bytes) -> None:
        """Send one message: encoded, as the text that it is, or binary."""
        if isinstance(message, bytes):
            await self.socket.send_bytes(message)
        else:
            text = message if isinstance(message, str) else protocol.encode(message)
            await self.socket.send_str(text)

    async def hear(self) -> Json:
        """Wait for the next message."""
        async with asyncio.timeout(SECONDS):
            message = await self.socket.receive()
        assert message.type is WSMsgType.TEXT, message
        value = orjson.loads(message.data)
        assert isinstance(value, dict)
        return value

    async def command(self, kind: str, *, ack: bool = True) -> str:
        """Wait for a command, which must be of this kind; return its request id."""
        heard = await self.hear()
        assert heard.get("command") == kind, heard
        request_id = heard["request_id"]
        assert isinstance(request_id, str)
        if ack:
            await self.say(protocol.Ack(request_id))
        return request_id

    async def close_code(self) -> int:
        """Wait for the router to close the socket, and return its code.

        That of the message: aiohttp's own is 1006 when our good-bye comes too late.
        """
        async with asyncio.timeout(SECONDS):
            message = await self.socket.receive()
        assert message.type is WSMsgType.CLOSE, message
        assert isinstance(message.data, int)
        return message.data

    async def lose(self) -> None:
        """Lose the connection of the socket, without a word."""
        connection = self.socket.get_extra_info("socket")
        connection.shutdown(2)
        await self.socket.close()

    # --- the posts --------------------------------------------------------------------------

    async def post(
        self,
        path: str,
        body: object = b"",
        headers: Mapping[str, str] | None = None,
        **query: str | int,
    ) -> Reply:
        """Post a message, JSON, bytes, or pieces that an async iterator gives."""
        data = body
        if isinstance(body, bytes):
            data = BytesIO(body)
        elif not hasattr(body, "__aiter__"):
            data = wire.dumps(body)
        given = self._headers | dict(headers or {})
        url = f"{self.url}/datasets/{path}"
        async with (
            asyncio.timeout(SECONDS),
            self._http.post(url, data=data, params=query, headers=given) as got,
        ):
            return Reply(got.status, orjson.loads(await got.read()))

    async def result(self, request_id: str, value: object) -> Reply:
        """Give a whole result."""
        return await self.post("result", value, request_id=request_id)

    async def init(self, request_id: str, length: int, *, status: int = 200, **over: Any) -> Reply:
        """Begin a streamed answer with a body of so many bytes."""
        return await self.post("stream/init", init(request_id, length, status=status, **over))

    async def chunk(
        self,
        request_id: str,
        offset: int,
        data: object,
        *,
        init: Init | None = None,
        complete: Complete | None = None,
    ) -> Reply:
        """Send one chunk request, with the messages that ride in its headers."""
        headers = {"Content-Type": "application/octet-stream"}
        if init is not None:
            headers[protocol.H_INIT] = wire.dumps(init).decode()
        if complete is not None:
            headers[protocol.H_COMPLETE] = wire.dumps(complete).decode()
        return await self.post("stream/chunk", data, headers, request_id=request_id, offset=offset)

    async def complete(self, request_id: str, **members: Any) -> Reply:
        """Give the closing word."""
        return await self.post("stream/complete", Complete(request_id, **members))

    async def offset(self, request_id: str) -> Reply:
        """Ask where to go on."""
        url = f"{self.url}/datasets/stream/offset"
        async with (
            asyncio.timeout(SECONDS),
            self._http.get(url, params={"request_id": request_id}, headers=self._headers) as got,
        ):
            return Reply(got.status, orjson.loads(await got.read()))

    async def held_chunk(self, request_id: str, offset: int, length: int) -> "HeldPost":
        """Begin a chunk request of so many bytes, of which none is sent yet."""
        path = f"stream/chunk?request_id={request_id}&offset={offset}"
        return await self.held_post(path, length)

    async def held_post(self, path: str, length: int) -> "HeldPost":
        """Begin any post, of whose body none is sent yet."""
        at = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        headers = {**self._headers, "Content-Length": str(length)}
        writer.write(raw_http.head("POST", f"/datasets/{path}", headers))
        held = HeldPost(reader, writer)
        self._held.append(held)
        return held

    def another(self) -> "PlayedConnector":
        """Return another process with the same MAC."""
        return PlayedConnector(self.url, self.mac)


@dataclass(slots=True)
class HeldPost:
    """A post whose body comes as the test sends it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send some of the body."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> Reply | None:
        """Wait for the answer, or None if the router breaks the connection off instead."""
        try:
            async with asyncio.timeout(SECONDS):
                head = await self.reader.readuntil(b"\r\n\r\n")
                length = int(raw_http.parsed(head).headers["content-length"])
                answer = raw_http.parsed(head + await self.reader.readexactly(length))
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        finally:
            self.close()
        return Reply(answer.status, answer.json())

    def close(self) -> None:
        """Break the connection off."""
        self.writer.transport.abort()


def init(request_id: str, length: int, *, status: int = 200, **over: Any) -> Init:
    """Return the init of a dataset of so many bytes, sent raw and whole."""
    return replace(Init(request_id, status, length, "v1", length, modified_ns=10**18), **over)


@contextmanager
def router_alone(
    folder: Path, environ: Mapping[str, str] | None = None, **limits: Any
) -> Iterator[Router]:
    """Start a router for tests that bring their own connectors."""
    started = System(folder, environ)
    try:
        yield started.router(**limits)
    finally:
        started.stop()


def another_mac() -> str:
    """Return a MAC that no other test of this process has."""
    number = next(_numbers)
    return f"cc-28-aa-04-{number >> 8:02x}-{number & 255:02x}"


_numbers = count()


@asynccontextmanager
async def played(url: str, mac: str) -> AsyncIterator[PlayedConnector]:
    """Yield a connector that is connected."""
    async with PlayedConnector(url, mac) as connector:
        yield await connector.connect()


# --- the client's side --------------------------------------------------------------------------


def asking(url: str, method: str, target: str, message: object = None) -> "asyncio.Task[Answer]":
    """Ask as a client does, in the background."""
    return asyncio.create_task(_asked(url, method, target, message))


async def held_bytes(url: str) -> float:
    """Ask a router how many bytes of answers it holds."""
    return await asyncio.to_thread(metric, url, "tunnelsync_buffers_bytes")


def wanting(url: str, mac: str, how: str = "stream", **members: Any) -> "asyncio.Task[Answer]":
    """Ask for dataset ``d`` by ``POST /datasets/request-...``, in the background."""
    asked = {"mac": mac, "dataset": "d", **members}
    return asking(url, "POST", f"/datasets/request-{how}", asked)


async def _asked(url: str, method: str, target: str, message: object) -> Answer:
    body = b"" if message is None else orjson.dumps(message)
    headers = {"Content-Length": str(len(body))} if body else {}
    at = urlsplit(url)
    host, port = at.hostname or "", at.port or 80
    transport, came = await asyncio.get_running_loop().create_connection(_Coming, host, port)
    try:
        transport.write(raw_http.head(method, target, headers) + body)
        await came.end
    finally:
        transport.abort()
    return raw_http.parsed(bytes(came.data))


class _Coming(asyncio.Protocol):
    """All that comes, also what came before a reset, which a stream's reader would drop."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.end = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.end.done():
            self.end.set_result(None)


def is_whole(answer: Answer) -> bool:
    """Tell whether all came that was announced."""
    return len(answer.body) == int(answer.headers["content-length"])
