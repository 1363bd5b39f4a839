"""The client's HTTP to one router: requests out, answers or typed errors back.

Whatever goes wrong on the way becomes one of our errors here, in plain words, so that the modes
above deal with datasets alone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

from aiohttp import (
    ClientConnectorCertificateError,
    ClientResponse,
    ClientSession,
)
from yarl import URL

from tunnelsync import protocol, wire
from tunnelsync.address import router_url
from tunnelsync.client.body import Body
from tunnelsync.client.incoming import request_id_of
from tunnelsync.dial import (
    CONNECTION_ERRORS,
    PASSING,
    authorization,
    http_session,
    proxy_for,
    reason,
)
from tunnelsync.errors import (
    BadRequest,
    NotARouter,
    ProtocolError,
    RouterUnreachable,
    TimedOut,
    TransferUnknown,
    TunnelSyncError,
    Usage,
)
from tunnelsync.settings import ClientSettings

Answer = TypeVar("Answer")

ASK_SECONDS = 25.0
"""No request of ours is silent for longer: proxies such as nginx cut it at 60 s."""
TELL_SECONDS = 5.0
"""The same, where somebody is told how it goes."""
WAIT_AGAIN_SECONDS = 0.25
"""The least time between two requests for one receipt."""
CANCEL_SECONDS = 2.0
"""What the router gets to hear that nobody waits any more."""
NO_HEADERS: Mapping[str, str] = {}


class Link:
    """An HTTP client for one router; open it with ``async with``.

    An answer that takes long is not waited for in silence, which a proxy would cut.

    Raises `BadSetting` or `PlaintextRefused` for an address or token that it cannot use.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.router = router_url(settings.router, allow_plaintext=settings.allow_plaintext)
        self._headers = authorization(settings.token)
        self._proxy = proxy_for(self.router)
        self._stack = AsyncExitStack()
        self._session: ClientSession | None = None
        self.waiting: Callable[[protocol.Receipt], None] | None = None
        """Hears each receipt while an answer takes long: in line, or how many bytes so far."""

    async def __aenter__(self) -> Self:
        self._session = await self._stack.enter_async_context(session_for(self.settings))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def request(
        self, method: str, path: str, message: object = None
    ) -> AsyncIterator[ClientResponse]:
        """Send a request and yield the answer, if it is a success, with its body unread.

        ``path`` is encoded and begins behind the router's ``/``; ``message`` becomes the JSON
        body. Raises the router's own error, `RouterUnreachable`, or `TimedOut`.
        """
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                response = await self._answered(method, path, message)
        except TimeoutError:
            waited = f"{self.settings.answer_seconds:g} s"
            raise TimedOut(f"the router did not answer within {waited}") from None
        async with response:
            try:
                yield response
            except TunnelSyncError as error:
                error.request_id = error.request_id or request_id_of(response)
                raise

    async def _answered(self, method: str, path: str, message: object) -> ClientResponse:
        """Return the answer, at once or when a transfer that was answered 202 has one."""
        if not isinstance(message, protocol.DatasetRequest):
            return await self._sent(method, path, message)
        # RFC 7240: an answer that takes longer than that is asked for by its receipt.
        prefer = {"Prefer": f"respond-async, wait={self._patience_seconds:g}"}
        response = await self._sent(method, path, message, prefer)
        if response.status != 202:
            return response
        async with response:
            told = await self.body(response).whole(self.settings.message_bytes)
        receipt = decode(protocol.Receipt, told)
        path = f"transfers/{quote(receipt.request_id, safe='')}"
        try:
            await self._ready(path, receipt)
            return await self._sent("GET", f"{path}/result")
        except TransferUnknown:
            raise RouterUnreachable("the router no longer knows the transfer: restarted?") from None
        except asyncio.CancelledError:
            await self._cancelled(path)
            raise

    async def _ready(self, path: str, receipt: protocol.Receipt) -> None:
        """Ask for a receipt until the answer is ready, or the transfer has ended without one."""
        loop = asyncio.get_running_loop()
        while receipt.result is None and receipt.outcome is None:
            if self.waiting is not None:
                self.waiting(receipt)
            again = loop.time() + WAIT_AGAIN_SECONDS
            query = f"?wait={self._patience_seconds:g}"
            receipt = await self.ask(protocol.Receipt, "GET", path + query)
            if receipt.result is None:
                await asyncio.sleep(again - loop.time())

    @property
    def _patience_seconds(self) -> float:
        return ASK_SECONDS if self.waiting is None else TELL_SECONDS

    async def _cancelled(self, path: str) -> None:
        """End a transfer that we no longer wait for, if the router hears it soon."""
        with suppress(TunnelSyncError, TimeoutError):
            async with asyncio.timeout(CANCEL_SECONDS), self.request("DELETE", path):
                pass

    async def _sent(
        self,
        method: str,
        path: str,
        message: object = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> ClientResponse:
        """Send one request and return its answer, if it is a success, to be closed."""
        url = URL(f"{self.router}{path}", encoded=True)
        body = None if message is None else wire.dumps(message)
        try:
            response = await self._opened().request(
                method,
                url,
                data=body,
                headers={**self._headers, **_json_header(body), **headers},
                allow_redirects=False,
                **self._proxy,
            )
        except CONNECTION_ERRORS as exc:
            self._opened()  # or it broke because we were closed
            raise self._unreachable(exc) from None
        if response.status >= 300:
            async with response:
                raise await self._problem(response)
        return response

    def _opened(self) -> ClientSession:
        if self._session is None or self._session.closed:
            raise Usage("the client is not open", hint="Use it within its `async with` block.")
        return self._session

    async def ask(self, kind: type[Answer], method: str, path: str) -> Answer:
        """Send a request and return its small JSON answer."""
        async with self.request(method, path) as response:
            return decode(kind, await self.body(response).whole(self.settings.message_bytes))

    def body(self, response: ClientResponse) -> Body:
        """Return the body of an answer of the router."""
        return Body(response, peer="the router", idle_seconds=self.settings.idle_seconds)

    def _unreachable(self, error: BaseException) -> TunnelSyncError:
        message = f"cannot reach the router at {self.router}: {reason(error)}"
        if isinstance(error, ClientConnectorCertificateError):
            # A certificate that is refused now will be in two minutes, too.
            hint = "An authority of your own is trusted by SSL_CERT_FILE, the name of its file."
            return NotARouter(message, hint=hint)
        return RouterUnreachable(message)

    async def _problem(self, response: ClientResponse) -> TunnelSyncError:
        """Return the error that an answer tells of, whoever wrote it."""
        data = response.headers.get(protocol.H_ERROR, "").encode()
        if not data and response.status >= 400:
            data = await self.body(response).whole(self.settings.message_bytes)
        try:
            value = wire.loads(data)
        except BadRequest:
            value = {}
        if isinstance(value.get("error"), dict):
            error = TunnelSyncError.from_wire(value["error"])
        elif "code" in value:
            error = TunnelSyncError.from_wire(value)
        else:
            phrase = protocol.printable(response.reason or "")[1:-1][:80]
            answered = f"{self.router} answered {response.status} {phrase}".strip()
            passing = response.status in PASSING
            kind = RouterUnreachable if passing else NotARouter
            error = kind(
                f"{answered}, and not as a TunnelSync router does", hint=NotARouter.next_step
            )
        error.retry_after_seconds = _retry_after(response)
        error.request_id = request_id_of(response)
        return error


RETRY_AFTER_SECONDS = 60
"""The longest pause that we let ourselves be told."""


def _retry_after(response: ClientResponse) -> int | None:
    """Return the seconds of ``Retry-After`` (RFC 9110, 10.2.3), which may also be a date: None."""
    text = response.headers.get("Retry-After", "").strip()
    if not text.isascii() or not text.isdigit():
        return None
    return min(int(text[:6]), RETRY_AFTER_SECONDS)


def decode(kind: type[Answer], data: bytes) -> Answer:
    """Build a message from the JSON of an answer; raise its error, or `ProtocolError`."""
    try:
        value = wire.loads(data)
        # A receipt's own member `error` is that of the transfer it tells of.
        problem = None if kind is protocol.Receipt else protocol.problem_in(value)
        if problem is not None:
            raise problem
        return wire.decode(kind, value)
    except BadRequest as exc:
        raise ProtocolError(f"the router's answer is not understood: {exc.message}") from None


def _json_header(body: bytes | None) -> dict[str, str]:
    return {} if body is None else {"Content-Type": "application/json"}


def session_for(settings: ClientSettings) -> AbstractAsyncContextManager[ClientSession]:
    """Return a session as a client's settings want it."""
    return http_session(
        connections=settings.connections,
        connect_seconds=settings.connect_seconds,
        dead_after_seconds=settings.idle_seconds,
        read_bytes=settings.read_bytes,
    )
