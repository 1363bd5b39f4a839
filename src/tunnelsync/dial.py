"""How client and connector make their HTTP connections: session, proxy, token, and what failed.

aiohttp's own ``trust_env`` reads ``~/.netrc`` too: an entry for the host then clashes with our
``Authorization``, or sends a password to a store. So the environment's proxy is found here.
"""

import asyncio
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, encode_basic_auth
from yarl import URL

from tunnelsync import __version__
from tunnelsync.address import is_loopback
from tunnelsync.errors import BadSetting
from tunnelsync.settings import Secret
from tunnelsync.sockets import keep_memory, unpace

PASSING = frozenset({408, 429, 502, 503, 504, *range(520, 525)})
"""Statuses of a proxy (from 520 on, of Cloudflare) whose router is away for a moment."""
CONNECTION_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)
"""What a request can fail with, besides an answer."""


@asynccontextmanager
async def http_session(
    *, connections: int, connect_seconds: float, dead_after_seconds: float, read_bytes: int
) -> AsyncIterator[ClientSession]:
    """Yield a session that keeps bytes as they are, sends no cookies, and notices a dead peer.

    It holds at most so many ``connections``; a peer that acknowledges nothing for
    ``dead_after_seconds`` is given up by the kernel, whether we read or write.
    """

    def dial(info: Any) -> socket.socket:
        family, kind, proto, _, address = info
        sock = socket.socket(family, kind, proto)
        if is_loopback(address[0]):
            unpace(sock)
        _keep_alive(sock, dead_after_seconds)
        return sock

    keep_memory()
    async with ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, socket_factory=dial),
        timeout=ClientTimeout(total=None, sock_connect=connect_seconds),
        auto_decompress=False,
        read_bufsize=read_bytes,
        cookie_jar=DummyCookieJar(),
        headers={"User-Agent": f"tunnelsync/{__version__}", "Accept-Encoding": "identity"},
    ) as session:
        yield session


def forget_resets() -> None:
    """Keep the running loop from logging resets that somebody was told of already.

    aiohttp leaves the task that writes a request to nobody when its connection is reset; whoever
    waits for the answer gets that error, too, and deals with it.
    """

    def handled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), aiohttp.ClientConnectionResetError):
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(handled)


def proxy_for(url: URL) -> dict[str, Any]:
    """Return the arguments that send a request by the environment's proxy, never for loopback.

    Raises `BadSetting` for an address in HTTPS_PROXY or HTTP_PROXY that is none.
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


def authorization(secret: Secret) -> dict[str, str]:
    """Return the header that carries a token, if there is one; raise `BadSetting`."""
    token = secret.reveal()
    try:
        token.encode()
    except UnicodeEncodeError:
        token = "\0"
    if not token.isprintable() or " " in token:
        what = "the token holds a line break, or another character that a header cannot carry"
        raise BadSetting(what, hint="Strip what was read from a file; --token-file does so.")
    return {"Authorization": f"Bearer {token}"} if token else {}


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


def _keep_alive(sock: socket.socket, dead_after_seconds: float) -> None:
    """Let the kernel notice a peer that vanished while we wait for an answer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    third = max(1, int(dead_after_seconds / 3))
    for name, value in (("TCP_KEEPIDLE", third), ("TCP_KEEPINTVL", max(1, third // 3))):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # What is sent and not acknowledged counts too, also on a connection that we closed.
        dead = int(dead_after_seconds * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, dead)
