"""The connector's one socket to the router, and its return whenever it is lost.

Commands come in on it; acknowledgements and signs of life go out, through one writer. What the
commands ask for goes over HTTP, and does not end with the socket.
"""

import asyncio
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Never

import aiohttp
from aiohttp import (
    ClientSession,
    ClientWebSocketResponse,
    ClientWSTimeout,
    WSMessage,
    WSMsgType,
)
from yarl import URL

from tunnelsync import __version__, backoff, protocol, wire
from tunnelsync.address import router_url
from tunnelsync.connector.batch import Batch
from tunnelsync.connector.buffer import Buffer
from tunnelsync.connector.interface import default_mac
from tunnelsync.connector.offload import Offload
from tunnelsync.connector.outbox import Outbox
from tunnelsync.connector.source import Root
from tunnelsync.connector.upload import Upload
from tunnelsync.connector.worker import Modes, Worker
from tunnelsync.dial import (
    CONNECTION_ERRORS,
    authorization,
    forget_resets,
    http_session,
    proxy_for,
    reason,
)
from tunnelsync.errors import BadRequest, ConnectorBusy
from tunnelsync.identity import mac_address
from tunnelsync.protocol import Fault, Hello, Mode, Welcome
from tunnelsync.settings import ConnectorSettings, StoreSettings

log = logging.getLogger("tunnelsync.connector")

REQUEST_ID_CHARACTERS = 128  # a router's has 32; ten thousand of them are remembered
GOODBYE_SECONDS = 2.0  # what the router gets to answer our closing of the socket

NO_TOKEN = "check its token: `tunnelsync token create --role connector --mac MAC` makes one"
TAKEN = {
    protocol.CLOSE_REPLACED: "another connector took this MAC; give each its own with --mac",
    protocol.CLOSE_CLASH: "several connectors use this MAC; give each its own with --mac",
}


class _Lost(Exception):
    """The router cannot be reached, or the socket to it has ended: try again soon.

    ``good_bye`` is what a router that restarts said.
    """

    def __init__(self, message: str, good_bye: str = "") -> None:
        super().__init__(message)
        self.good_bye = good_bye


class _Refused(Exception):
    """The router said no: trying again soon changes nothing."""


class _Taken(_Refused):
    """Another process has our MAC: when it ends, its place is free."""


async def run(settings: ConnectorSettings, store: StoreSettings) -> Never:
    """Serve the datasets under the root to one router until cancelled.

    Raises `BadSetting`, `BadMac` or `PlaintextRefused` at once for settings that cannot work;
    a router that is away is waited for.
    """
    router = router_url(settings.router, allow_plaintext=settings.allow_plaintext)
    bearer = authorization(settings.token)
    mac = mac_address(settings.mac) if settings.mac else await default_mac(router)
    headers = {protocol.H_CONNECTOR: mac, **bearer}
    forget_resets()
    async with AsyncExitStack() as stack:
        executor = ThreadPoolExecutor(settings.threads, "tunnelsync-files")
        stack.callback(executor.shutdown, wait=False)  # what waits there are closes
        opener = ThreadPoolExecutor(settings.open_threads, "tunnelsync-open")
        stack.callback(opener.shutdown, wait=False)
        root = Root(
            settings.root,
            executor,
            opener,
            list_entries=settings.list_entries,
            folder_entries=settings.folder_entries,
        )
        stack.callback(root.close)
        http = await stack.enter_async_context(
            http_session(
                connections=settings.pool,
                connect_seconds=settings.connect_seconds,
                dead_after_seconds=settings.stall_seconds,
                read_bytes=settings.message_bytes,
            )
        )
        upload = Upload(http, router, headers, settings)
        offload = Offload(mac, root, store, executor, upload)
        await stack.enter_async_context(offload)
        outbox = Outbox(settings.outbox, settings.ack_delay_seconds)
        stack.push_async_callback(upload.batch.close)
        modes = Modes(root, upload, Buffer(settings, executor, upload), offload)
        worker = Worker(settings, modes, outbox)
        capabilities = tuple(mode for mode in Mode if mode is not Mode.OFFLOAD or store.endpoint)
        hello = Hello(mac, __version__, secrets.token_hex(16), capabilities=capabilities)
        line = _Line(settings, router, headers, hello, http, worker, outbox, upload.batch)
        await line.hold()


class _Line:
    """The line to the router: one socket after the other, one hello for all of them."""

    def __init__(
        self,
        settings: ConnectorSettings,
        router: URL,
        headers: dict[str, str],
        hello: Hello,
        http: ClientSession,
        worker: Worker,
        outbox: Outbox,
        batch: Batch,
    ) -> None:
        self._settings = settings
        self._router = router
        self._headers = headers
        self._hello = hello
        self._http = http
        self._worker = worker
        self._outbox = outbox
        self._batch = batch
        self._tries = 0
        self._yields = self._heeded = False
        self._told: type[Exception] | None = None

    async def hold(self) -> Never:
        """Connect, and again whenever the socket ends; the jobs end only with this."""
        settings = self._settings
        try:
            while True:
                try:
                    await self._one_socket()
                except _Lost as exc:
                    self._tell(exc, f"the router {self._router} is away ({exc}); trying on")
                    pause = backoff.returning(self._tries, exc.good_bye, settings)
                except _Refused as exc:
                    soon = isinstance(exc, _Taken) and self._heeded
                    self._yields |= soon  # until it is welcome again
                    late, cap = settings.backoff_refused_seconds, settings.backoff_cap_seconds
                    pause = backoff.refused(cap if soon else late)
                    what = f"the router {self._router} refuses this connector: {exc}"
                    self._tell(exc, f"{what}; the next try is in {pause:.0f} s")
                self._tries += 1
                await asyncio.sleep(pause)
        finally:
            await self._worker.close()

    def _tell(self, error: Exception, line: str) -> None:
        """Log the first of a row of losses or refusals, not every try."""
        if self._told is not type(error):
            self._told = type(error)
            log.log(logging.ERROR if isinstance(error, _Refused) else logging.WARNING, line)

    async def _one_socket(self) -> Never:
        """Live through one socket; ends with `_Lost` or `_Refused`."""
        ws = await self._connect()
        try:
            await self._greet(ws)
            self._tries, self._told, self._yields = 0, None, False
            log.info("connected to %s as %s", self._router, self._hello.mac)
            raise _ended(ws, await self._talk(ws))
        except CONNECTION_ERRORS as exc:
            raise _Lost(reason(exc)) from None
        except asyncio.CancelledError:
            await self._worker.close()  # before the socket: its end is the last word
            raise
        finally:
            await ws.close()

    async def _connect(self) -> ClientWebSocketResponse:
        url = self._router.join(URL("connectors/ws"))
        settings = self._settings
        try:
            async with asyncio.timeout(settings.answer_seconds):
                ws: ClientWebSocketResponse = await self._http.ws_connect(
                    url,
                    protocols=(protocol.SUBPROTOCOL,),
                    headers=self._headers,
                    heartbeat=settings.heartbeat_seconds,
                    timeout=ClientWSTimeout(ws_close=GOODBYE_SECONDS),
                    max_msg_size=settings.message_bytes,
                    compress=0,
                    **proxy_for(url),
                )
                if ws._response.history:  # aiohttp follows; commands are taken from nowhere else
                    await ws.close()
                    raise _Lost("it redirects to another place")
                return ws
        except aiohttp.WSServerHandshakeError as exc:
            if exc.status in (401, 403):
                raise _Refused(_told(exc)) from None
            raise _Lost(f"it answered {exc.status}") from None
        except CONNECTION_ERRORS as exc:
            raise _Lost(reason(exc)) from None

    async def _greet(self, ws: ClientWebSocketResponse) -> None:
        """Say hello, and wait to be welcome."""
        self._outbox.clear()
        async with asyncio.timeout(self._settings.answer_seconds):
            await ws.send_str(protocol.encode(replace(self._hello, yields=self._yields)))
            message = await ws.receive()
        if message.type is not WSMsgType.TEXT:
            raise _ended(ws, message)
        try:
            answer = protocol.decode_from_router(message.data)
        except BadRequest as exc:
            raise _Lost(f"its welcome is not understood: {exc.message}") from None
        if isinstance(answer, Fault):
            raise _Lost(f"it does not welcome us: {protocol.printable(answer.message[:200])}")
        if not isinstance(answer, Welcome):
            raise _Lost("it sent a command before its welcome")
        self._batch.limit_bytes, self._heeded = answer.batch_bytes, answer.yields

    async def _talk(self, ws: ClientWebSocketResponse) -> WSMessage:
        """Read and write until the socket ends, and return its last message."""
        both = asyncio.create_task(self._read(ws)), asyncio.create_task(self._write(ws))
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _write(self, ws: ClientWebSocketResponse) -> Never:
        """Send what is in the outbox: nobody else writes to a socket while this does."""
        while True:
            await ws.send_str(protocol.encode(await self._outbox.get()))

    async def _read(self, ws: ClientWebSocketResponse) -> WSMessage:
        while True:
            message = await ws.receive()
            if message.type is WSMsgType.TEXT:
                await self._heard(message.data)
            elif message.type is WSMsgType.BINARY:
                await self._outbox.put(Fault(BadRequest.code, "a message must be text"))
            else:
                return message

    async def _heard(self, text: str) -> None:
        """Acknowledge a command and begin it; answer what is not understood with a fault."""
        try:
            message = protocol.decode_from_router(text)
            if not isinstance(message, Welcome | Fault):
                _check_id(message.request_id)
        except BadRequest as exc:
            await self._outbox.put(Fault(exc.code, exc.message, _id_in(text)))
            return
        if isinstance(message, Fault):
            log.warning("the router says: %s", protocol.printable(message.message[:200]))
        elif not isinstance(message, Welcome):
            await self._outbox.owe(message.request_id)
            try:
                self._worker.take(message)
            except ConnectorBusy as exc:
                await self._outbox.put(Fault(exc.code, exc.message, message.request_id))


def _told(refused: aiohttp.WSServerHandshakeError) -> str:
    """Return what the router says of a refusal, in a header, or its status."""
    with suppress(BadRequest, TypeError, KeyError):
        text = refused.headers[protocol.H_ERROR]  # type: ignore[index]
        if problem := protocol.problem_in({"error": wire.loads(text)}):
            return f"{protocol.printable(problem.message[:200])[1:-1]}; {NO_TOKEN}"
    return f"it answered {refused.status}, and not as a TunnelSync router does; check its address"


def _check_id(request_id: str) -> None:
    ok = request_id.isascii() and request_id.isprintable()
    if not (ok and 0 < len(request_id) <= REQUEST_ID_CHARACTERS):
        raise BadRequest(f"a request_id is 1 to {REQUEST_ID_CHARACTERS} plain characters")


def _id_in(text: str) -> str | None:
    """Return the request id of a message that was not understood, if it has one."""
    with suppress(BadRequest):
        found = wire.loads(text).get("request_id")
        if isinstance(found, str):
            _check_id(found)
            return found
    return None


def _ended(ws: ClientWebSocketResponse, last: WSMessage) -> Exception:
    """Return what the end of a socket means."""
    # That of the message: aiohttp's own is 1006 when the close and the end come at once.
    code = last.data if last.type is WSMsgType.CLOSE else ws.close_code
    if code == protocol.CLOSE_REVOKED:
        return _Refused(f"its token was revoked; {NO_TOKEN}")
    if code in TAKEN:
        return _Taken(TAKEN[code])
    reason = last.extra if last.type is WSMsgType.CLOSE and isinstance(last.extra, str) else ""
    if code == protocol.CLOSE_RESTART:
        return _Lost("it restarts", reason)
    told = f": {protocol.printable(reason[:200])}" if reason else ""
    return _Lost(f"the socket ended with code {code}{told}")
