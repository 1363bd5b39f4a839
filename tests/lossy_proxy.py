"""A proxy before a real router that reads what passes, and loses the messages that a test names.

It understands as much of HTTP/1.1 and of WebSockets as our connector speaks: one request after
the other on a connection, bodies with a Content-Length, messages of one frame.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import orjson

from proxy import Proxy, in_a_thread

Part = Literal["request", "body", "answer", "hole", "late hole", "too large"]
PIECE_BYTES = 65536


@dataclass(slots=True)
class Loss:
    """What is lost of a message, so many times in a row.

    ``request``: the connection breaks before anything of it is passed on. ``body``: it breaks
    after so many bytes of it. ``answer``: the router's answer is read, and the connection breaks.
    ``hole``: after so many bytes of the body nothing passes any more, and nothing is closed;
    ``late hole``: the same, in place of the answer. ``too large``: a proxy's 413. A message on
    the socket has no answer: it is swallowed, and the socket breaks.
    """

    message: str
    part: Part = "request"
    times: int = 1
    after_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """The head of one request of a connector."""

    message: str
    request_id: str
    length: int
    raw: bytes
    upgrade: bool


def parsed(raw: bytes) -> Request:
    """Take a head apart, and name the message."""
    target = urlsplit(raw.split(b" ", 2)[1].decode())
    query = parse_qs(target.query)
    name = target.path.rpartition("/")[2]
    if name == "chunk":
        name = "first chunk" if query["offset"] == ["0"] else "next chunk"
    upgrade = re.search(rb"\r\nupgrade: websocket\r\n", raw, re.IGNORECASE) is not None
    return Request(name, query.get("request_id", [""])[0], content_length(raw), raw, upgrade)


def content_length(head: bytes) -> int:
    """Return the length of the body behind a head."""
    found = re.search(rb"\r\ncontent-length: (\d+)\r\n", head, re.IGNORECASE)
    return int(found[1]) if found else 0


@dataclass(slots=True)
class Line:
    """One connection of the connector, and ours to the router that carries it on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    there_reader: asyncio.StreamReader
    there_writer: asyncio.StreamWriter

    def abort(self) -> None:
        """Break both off."""
        self.writer.transport.abort()
        self.there_writer.transport.abort()


class LossyProxy(Proxy):
    """``seen`` holds the requests of the connector in order, ``heard`` the messages on its socket,
    the lost ones among them; ``let_go`` counts the holes that the router has left."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.losses: list[Loss] = []
        self.seen: list[Request] = []
        self.heard: list[str] = []
        self.let_go = 0
        self._lines: list[Line] = []
        self._sockets: list[Line] = []

    @property
    def messages(self) -> list[str]:
        """The names of the requests so far."""
        return [one.message for one in self.seen]

    def begin(self, *losses: Loss) -> None:
        """Forget what was seen, and lose these from now on."""
        self.seen, self.heard, self.losses = [], [], list(losses)

    def left(self) -> list[Loss]:
        """Return the losses that did not come to happen."""
        return [loss for loss in self.losses if loss.times]

    def cut_sockets(self) -> None:
        """Break off every socket that commands come on; to be called in the loop."""
        for line in self._sockets:
            line.abort()

    def break_all(self) -> int:
        """Break off what is open."""
        for line in self._lines:
            line.abort()
        return 2 * len(self._lines)

    def _lose(self, message: str) -> Loss | None:
        for loss in self.losses:
            if loss.message == message and loss.times:
                loss.times -= 1
                return loss
        return None

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one request after the other on, but for those to be lost."""
        there = await asyncio.open_connection("127.0.0.1", self.target_port)
        line = Line(reader, writer, *there)
        self._lines.append(line)
        try:
            while await self._exchange(line):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side has left, or the test is over
        finally:
            line.abort()
            self._lines.remove(line)

    async def _exchange(self, line: Line) -> bool:
        """Pass one request and its answer on; False if that is the end of the connection."""
        request = parsed(await line.reader.readuntil(b"\r\n\r\n"))
        if not request.upgrade:
            self.seen.append(request)
        loss = self._lose(request.message)
        part = loss.part if loss else None
        if part == "request":
            return False
        if part == "too large":
            line.writer.write(b"HTTP/1.1 413 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await line.writer.drain()
            await line.reader.read()  # to the end: a reset would overtake the answer
            return False
        line.there_writer.write(request.raw)
        if request.upgrade:
            await self._socket(line)
            return False
        body = asyncio.create_task(_body(line, request.length, loss))
        answer = asyncio.create_task(_answer(line.there_reader))
        try:
            await asyncio.wait({body, answer}, return_when=asyncio.FIRST_COMPLETED)
            if body.done() and not body.result():
                if part == "hole":
                    await self._hole(line, answer)
                return False
            came = await answer
            if part == "late hole":
                await self._hole(line)
            if part in ("answer", "late hole"):
                return False
            line.writer.write(came)
            await line.writer.drain()
            return body.done()
        finally:
            for task in (body, answer):
                task.cancel()
            await asyncio.gather(body, answer, return_exceptions=True)

    async def _hole(self, line: Line, answer: "asyncio.Task[bytes] | None" = None) -> None:
        """Pass nothing any more and close nothing; only look whether the router leaves."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            if answer is not None:
                await answer
            await line.there_reader.read()
        self.let_go += 1
        await asyncio.Event().wait()

    async def _socket(self, line: Line) -> None:
        """Pass the messages of a socket on, until one is lost."""
        head = await line.there_reader.readuntil(b"\r\n\r\n")
        line.writer.write(head)
        self._sockets.append(line)
        ways = (
            asyncio.create_task(self._messages(line.reader, line.there_writer)),
            asyncio.create_task(self._messages(line.there_reader, line.writer)),
        )
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._sockets.remove(line)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _messages(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            raw, text = await _frame(reader)
            if text:
                message = orjson.loads(text)
                name = message.get("type") or message["command"]
                self.heard.append(name)
                if self._lose(name):
                    return
            writer.write(raw)
            await writer.drain()


async def _body(line: Line, length: int, loss: Loss | None) -> bool:
    """Pass a body on; False if the loss is that of its rest."""
    left = length
    if loss is not None and loss.part in ("body", "hole"):
        left = loss.after_bytes
        assert left < length
    while left:
        data = await line.reader.read(min(left, PIECE_BYTES))
        if not data:
            raise ConnectionResetError("the connector left")
        left -= len(data)
        line.there_writer.write(data)
        await line.there_writer.drain()
    return loss is None or loss.part not in ("body", "hole")


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """Read a whole answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(content_length(head))


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one frame: its bytes, and its text if it is one (RFC 6455, 5.2)."""
    raw = await reader.readexactly(2)
    masked, size = raw[1] & 0x80, raw[1] & 0x7F
    if size > 125:
        more = await reader.readexactly(2 if size == 126 else 8)
        raw, size = raw + more, int.from_bytes(more, "big")
    mask = await reader.readexactly(4) if masked else bytes(4)
    payload = await reader.readexactly(size)
    raw += (mask if masked else b"") + payload
    text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return raw, text if raw[0] & 0x0F == 1 else b""


@contextmanager
def lossy_proxy(target_port: int) -> Iterator[tuple[LossyProxy, asyncio.AbstractEventLoop]]:
    """Run a proxy in a thread of its own; yields it and the loop that it runs in."""
    with in_a_thread(LossyProxy(target_port)) as proxy:
        assert proxy.loop is not None
        yield proxy, proxy.loop
