"""The connector's HTTP connections: how they are made, and what names the connector on them."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar

from tunnelsync import __version__
from tunnelsync.errors import BadSetting
from tunnelsync.settings import ConnectorSettings


def bearer(settings: ConnectorSettings) -> dict[str, str]:
    """Return the header that carries the token, if there is one; raise `BadSetting`."""
    token = settings.token.reveal()
    try:
        token.encode()
    except UnicodeEncodeError:
        token = "\0"
    if not token.isprintable() or " " in token:
        raise BadSetting("the token holds characters that a header cannot carry")
    return {"Authorization": f"Bearer {token}"} if token else {}


@asynccontextmanager
async def http_session(settings: ConnectorSettings) -> AsyncIterator[ClientSession]:
    """Yield a session for sockets and uploads, whose connections notice a dead peer."""

    def dial(info: Any) -> socket.socket:
        family, kind, proto, _, _ = info
        sock = socket.socket(family, kind, proto)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # What a closed connection still has to send is dropped by then, too.
            dead = int(settings.stall_seconds * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, dead)
        return sock

    async with ClientSession(
        connector=aiohttp.TCPConnector(limit=settings.pool, socket_factory=dial),
        timeout=ClientTimeout(total=None, sock_connect=settings.connect_seconds),
        cookie_jar=DummyCookieJar(),
        headers={"User-Agent": f"tunnelsync/{__version__}"},
    ) as session:
        yield session
