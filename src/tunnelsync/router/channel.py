"""The socket of one connector: messages in and out. The one file that knows it is a WebSocket.

One task writes, from a bounded queue; one loop reads. A peer that takes no message within the
deadline has its transport aborted.
"""

import asyncio
import logging
import struct
from contextlib import suppress
from itertools import count

from aiohttp import WSMsgType, web

from tunnelsync import protocol
from tunnelsync.errors import (
    BadRequest,
    Forbidden,
    RouterBusy,
    TooLarge,
    TunnelSyncError,
    Unsupported,
)
from tunnelsync.identity import Mac, mac_address
from tunnelsync.router.access import address_of, connector_of
from tunnelsync.router.context import ROUTER
from tunnelsync.router.session import Session
from tunnelsync.router.switchboard import Switchboard
from tunnelsync.settings import RouterSettings
from tunnelsync.sockets import abort

log = logging.getLogger("tunnelsync.router")

SPARE_MESSAGES = 64
"""Room in the queue for messages that are no commands: the welcome, faults, cancels."""
REASON_BYTES = 123
"""What the frame of a good-bye has room for beside its code."""
IN_A_ROW = 16
"""So many messages of one connector are taken before others get their turn."""
UNREAD_BYTES = 64 * 1024
"""A peer that leaves so much unread has no use for a pong, nor for a ping."""
TEXT, PONG, PING = 0x81, 0x8A, b"\x89\x00"
"""Frames of a server, which masks nothing (RFC 6455, 5.2). A transport takes each as a whole, so
pings need no turn among the messages: one costs no task, and waits for nobody."""
ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class SocketLink:
    """A `Link` over a WebSocket. It has a task only while it has something to send: a thousand
    idle ones cost a thousand tasks otherwise, each with its queue."""

    __slots__ = (
        "_asked",
        "_request",
        "_settings",
        "_socket",
        "_transport",
        "_waiting",
        "_writer",
        "address",
        "closing",
        "silent",
    )

    def __init__(
        self, socket: web.WebSocketResponse, request: web.Request, settings: RouterSettings
    ) -> None:
        self._socket = socket
        self._transport = request.transport
        self._settings = settings
        self._request = request
        self._waiting: list[bytes | tuple[int, str]] = []
        self._writer: asyncio.Task[None] | None = None
        self._asked = False
        self.address = address_of(request)
        self.closing = False
        self.silent = False

    def send(self, message: protocol.FromRouter) -> None:
        """Queue a message; raise `RouterBusy` when the queue is full, `TooLarge` for a long one."""
        text = protocol.encode(message).encode()
        if len(text) > self._settings.message_bytes:
            raise TooLarge(f"a command of {len(text)} bytes is over the limit of a message")
        if len(self._waiting) >= self._settings.command_queue + SPARE_MESSAGES:
            raise RouterBusy("the connector does not take its commands fast enough")
        self._put(text)

    def close(self, code: int, reason: str) -> None:
        """Say good-bye, after what is queued."""
        self._put((code, reason))
        self.closing = True

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._asked = True
        self._put_frame(PING)

    def pong(self, data: bytes) -> None:
        """Give one."""
        self._put_frame(bytes((PONG, len(data))) + data)

    def heard(self) -> None:
        """Note a sign of life: any message."""
        self._asked = False

    def check(self) -> None:
        """Give up a connector that gave none since it was asked."""
        if self._asked and self._transport is not None:
            self.silent = True
            abort(self._transport)

    def _put_frame(self, frame: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() <= UNREAD_BYTES:
            self._transport.write(frame)

    async def ended(self) -> None:
        """Wait for the good-bye to go out; without one, send no more."""
        if self._writer is None:
            return
        if not self.closing:
            self._writer.cancel()
        with suppress(asyncio.CancelledError):
            await self._writer

    def _put(self, message: bytes | tuple[int, str]) -> None:
        if self.closing:
            return
        self._waiting.append(message)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Send what is queued, until the good-bye; abort a peer that takes nothing.

        What is queued in one turn of the loop goes out as one write.
        """
        try:
            while self._waiting:
                async with asyncio.timeout(self._settings.ack_seconds):
                    if isinstance(good_bye := self._waiting[0], tuple):
                        code, reason = good_bye
                        fits = reason.encode()[:REASON_BYTES].decode(errors="ignore").encode()
                        await self._socket.close(code=code, message=fits)
                        return
                    if self._transport is None or self._transport.is_closing():
                        return
                    self._transport.write(self._next())
                    await self._request.writer.drain()
            self._writer = None
        except (TimeoutError, ConnectionError):
            abort(self._transport)

    def _next(self) -> bytes:
        """Take the first messages off the queue, as frames."""
        frames: list[bytes] = []
        size = 0
        while self._waiting and size < UNREAD_BYTES:
            text = self._waiting[0]
            if isinstance(text, tuple):
                break
            frames += _head(len(text)), text
            size += len(text)
            del self._waiting[0]
        return b"".join(frames)


def _head(size: int) -> bytes:
    """Return what a text of so many bytes has before it."""
    if size < 126:
        return bytes((TEXT, size))
    if size < 65536:
        return struct.pack(">BBH", TEXT, 126, size)
    return struct.pack(">BBQ", TEXT, 127, size)


async def connect(request: web.Request) -> web.StreamResponse:
    """``GET /connectors/ws``: keep a connector's socket until one side ends it."""
    router = request.app[ROUTER]
    settings = router.settings
    _, bound = connector_of(request)
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    if protocol.SUBPROTOCOL not in [one.strip() for one in offered.split(",")]:
        raise Unsupported(f"this router speaks {protocol.SUBPROTOCOL} on a WebSocket, alone")
    router.refuse_when_draining()
    if bound is not None:
        router.switchboard.check_room(bound)
    socket = web.WebSocketResponse(
        protocols=(protocol.SUBPROTOCOL,),
        autoping=False,
        max_msg_size=settings.message_bytes,
        compress=False,
        timeout=settings.ack_seconds,
    )
    await socket.prepare(request)
    link = SocketLink(socket, request, settings)
    session: Session | None = None
    try:
        hello = await _hello(socket, settings, bound)
        mac = mac_address(hello.mac)
        router.switchboard.check_room(mac)
        grant, _ = connector_of(request)  # again: it may have been revoked since the handshake
        token = grant.sha256 if grant is not None else None
        session = router.switchboard.announce(mac, hello, link, token)
        if session is not None:
            with router.heartbeat.watching(link):
                await _listen(socket, link, session, router.switchboard)
    except TunnelSyncError as error:
        router.errors[error.code] += 1
        log.warning("refused a connector from %s: %s", link.address, error.message)
        link.close(protocol.CLOSE_PROTOCOL, error.message)
    finally:
        if session is not None:
            router.switchboard.lost(session, link, silent=link.silent)
        await link.ended()
    return socket


async def _hello(
    socket: web.WebSocketResponse, settings: RouterSettings, bound: Mac | None
) -> protocol.Hello:
    try:
        message = await socket.receive(settings.ack_seconds)
    except TimeoutError:
        raise BadRequest("no hello came") from None
    if message.type is not WSMsgType.TEXT:
        raise BadRequest("the first message must be a hello")
    hello = protocol.decode_from_connector(message.data)
    if not isinstance(hello, protocol.Hello):
        raise BadRequest("the first message must be a hello")
    if hello.protocol != protocol.VERSION:
        raise Unsupported(f"this router speaks version {protocol.VERSION}, not {hello.protocol}")
    if bound is not None and mac_address(hello.mac) != bound:
        raise Forbidden(f"this connection was made as {bound}, not as {hello.mac[:64]!r}")
    return hello


async def _listen(
    socket: web.WebSocketResponse, link: SocketLink, session: Session, switchboard: Switchboard
) -> None:
    """Take messages until the socket ends; one that is not understood is answered, and passed."""
    for number in count(1):
        if number % IN_A_ROW == 0:
            await asyncio.sleep(0)  # what is here is received without a turn of the others
        if (message := await socket.receive()).type in ENDS:
            return
        link.heard()
        if message.type is WSMsgType.PONG:
            continue
        if message.type is WSMsgType.PING:
            link.pong(message.data)
            continue
        try:
            if message.type is not WSMsgType.TEXT:
                raise BadRequest("messages are text")
            said = protocol.decode_from_connector(message.data)
            if isinstance(said, protocol.Fault):
                switchboard.not_understood(session, said)
            elif isinstance(said, protocol.Hello):
                raise BadRequest("a second hello on one socket")
            else:
                switchboard.heard(session, said)
        except TunnelSyncError as error:
            with suppress(RouterBusy):
                link.send(protocol.Fault(error.code, error.message))
