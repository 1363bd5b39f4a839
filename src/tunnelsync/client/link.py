"""The client's HTTP to one router: requests out, answers or typed errors back.

Whatever goes wrong on the way becomes one of our errors here, in plain words, so that the modes
above deal with datasets alone.
"""

import asyncio
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp import (
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    encode_basic_auth,
)
from yarl import URL

from tunnelsync import __version__, protocol, wire
from tunnelsync.address import is_loopback, router_url
from tunnelsync.client.body import Body
from tunnelsync.errors import (
    BadRequest,
    BadSetting,
    ProtocolError,
    RouterUnreachable,
    TimedOut,
    TunnelSyncError,
)
from tunnelsync.settings import ClientSettings

Answer = TypeVar("Answer")
CONNECTION_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)


class Link:
    """An HTTP client for one router; open it with ``async with``.

    Raises `BadSetting` or `PlaintextRefused` for an address or token that it cannot use.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.router = router_url(settings.router, allow_plaintext=settings.allow_plaintext)
        self._headers = {"Authorization": f"Bearer {token}"} if (token := _token(settings)) else {}
        self._stack = AsyncExitStack()
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = await self._stack.enter_async_context(http_session(self.settings))
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
        assert self._session is not None, "the link is not open"
        url = URL(f"{self.router}{path}", encoded=True)
        body = None if message is None else wire.dumps(message)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self.settings.answer_seconds):
                    response = await stack.enter_async_context(
                        self._session.request(
                            method,
                            url,
                            data=body,
                            headers=self._headers | _json_header(body),
                            allow_redirects=False,
                            **proxy_for(url),
                        )
                    )
            except TimeoutError as exc:
                if isinstance(exc, aiohttp.ClientError):
                    raise self._unreachable(exc) from None
                waited = f"{self.settings.answer_seconds:g} s"
                raise TimedOut(f"the router did not answer within {waited}") from None
            except CONNECTION_ERRORS as exc:
                raise self._unreachable(exc) from None
            if response.status >= 300:
                raise await self._problem(response)
            yield response

    async def ask(self, kind: type[Answer], method: str, path: str) -> Answer:
        """Send a request and return its small JSON answer."""
        async with self.request(method, path) as response:
            return decode(kind, await self.body(response).whole(self.settings.message_bytes))

    def body(self, response: ClientResponse) -> Body:
        """Return the body of an answer of the router."""
        return Body(response, peer="the router", idle_seconds=self.settings.idle_seconds)

    def _unreachable(self, error: BaseException) -> RouterUnreachable:
        return RouterUnreachable(f"cannot reach the router at {self.router}: {reason(error)}")

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
            return TunnelSyncError.from_wire(value["error"])
        if "code" in value:
            return TunnelSyncError.from_wire(value)
        status = f"{response.status} {protocol.printable(response.reason or '')[1:-1][:80]}".strip()
        return RouterUnreachable(
            f"{self.router} answered {status}, and not as a TunnelSync router does",
            hint="A proxy in front of the router, or another server: check the address.",
        )


@asynccontextmanager
async def http_session(settings: ClientSettings) -> AsyncIterator[ClientSession]:
    """Yield a session that keeps bytes as they are, sends no cookies, and notices a dead peer."""

    def dial(info: Any) -> socket.socket:
        family, kind, proto, _, _ = info
        sock = socket.socket(family, kind, proto)
        _keep_alive(sock, settings.idle_seconds)
        return sock

    connector = aiohttp.TCPConnector(limit=settings.connections, socket_factory=dial)
    timeout = ClientTimeout(total=None, sock_connect=settings.connect_seconds)
    async with ClientSession(
        connector=connector,
        timeout=timeout,
        auto_decompress=False,
        read_bufsize=settings.read_bytes,
        cookie_jar=DummyCookieJar(),
        headers={"User-Agent": f"tunnelsync/{__version__}", "Accept-Encoding": "identity"},
    ) as session:
        yield session


def proxy_for(url: URL) -> dict[str, Any]:
    """Return the arguments that send a request by the environment's proxy, never for loopback.

    aiohttp's own ``trust_env`` reads ``~/.netrc`` too: an entry for the host then clashes with
    our ``Authorization``, or sends a password to a store.
    """
    host = url.host or ""
    proxy = urllib.request.getproxies().get(url.scheme)
    if not proxy or is_loopback(host) or urllib.request.proxy_bypass(f"{host}:{url.port}"):
        return {}
    try:
        address = URL(proxy if "://" in proxy else f"http://{proxy}")
        if address.scheme not in ("http", "https") or not address.host or not address.port:
            raise ValueError
    except ValueError:
        name = f"{url.scheme.upper()}_PROXY"
        raise BadSetting(
            f"the address in {name} is not that of an HTTP proxy",
            hint=f"Write {name} as http://HOST:PORT, or name the host in NO_PROXY.",
        ) from None
    if address.user is None:
        return {"proxy": address}
    # aiohttp turns it into Proxy-Authorization, for a tunnel and for plain http alike.
    auth = encode_basic_auth(address.user, address.password or "")
    return {"proxy": address.with_user(None), "proxy_headers": {"Authorization": auth}}


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


def reason(error: BaseException) -> str:
    """Say in plain words why a connection failed."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            verify = error.certificate_error
            told = getattr(verify, "verify_message", "") or "it is not trusted"
            return f"its TLS certificate is refused ({told})"
        case aiohttp.ClientConnectorSSLError():
            return "it does not speak TLS as expected; is it https:// or http://?"
        case aiohttp.ClientConnectorDNSError():
            return "its name is not known to DNS"
        case aiohttp.ClientHttpProxyError():
            return f"the HTTP proxy answered {error.status}"
        case aiohttp.ClientProxyConnectionError():
            return f"the HTTP proxy cannot be reached ({_os_reason(error.os_error)})"
        case aiohttp.ClientConnectorError():
            return _os_reason(error.os_error)
        case TimeoutError():
            return "no connection within the deadline"
        case aiohttp.ServerDisconnectedError() | ConnectionError():
            return "it closed the connection before it answered"
        case OSError():
            return _os_reason(error)
        case _:
            return "what it sends is not HTTP"


def _os_reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as expected; is it https:// or http://?"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return (error.strerror or "the connection failed").split("[")[0].strip().lower()


def _json_header(body: bytes | None) -> dict[str, str]:
    return {} if body is None else {"Content-Type": "application/json"}


def _token(settings: ClientSettings) -> str:
    token = settings.token.reveal()
    try:
        token.encode()
    except UnicodeEncodeError:
        token = "\0"
    if not token.isprintable() or " " in token:
        raise BadSetting("the token holds characters that a header cannot carry")
    return token


def _keep_alive(sock: socket.socket, dead_after_seconds: float) -> None:
    """Let the kernel notice a peer that vanished while we wait for an answer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    third = max(1, int(dead_after_seconds / 3))
    for name, value in (("TCP_KEEPIDLE", third), ("TCP_KEEPINTVL", max(1, third // 3))):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
