"""The address that a router listens at: its sockets, and how many connections wait."""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from tunnelsync.address import is_loopback
from tunnelsync.errors import BadSetting
from tunnelsync.settings import RouterSettings
from tunnelsync.sockets import keep_memory, unpace

log = logging.getLogger("tunnelsync.router")

WAITING_CONNECTIONS = 4096
"""So many wait in the kernel until they are taken: many connectors come back at one moment."""
ACCEPTED_AT_ONCE = 4
"""So many are taken before others get their turn. asyncio takes the number of those that wait for
both: a thousand new connections would stop all that runs for half a second."""


@asynccontextmanager
async def listening(
    runner: web.AppRunner, settings: RouterSettings, tls: ssl.SSLContext | None
) -> AsyncIterator[None]:
    """Listen while the block runs."""
    keep_memory()
    assert runner.server is not None
    try:
        server = await asyncio.get_running_loop().create_server(
            runner.server, settings.host, settings.port, ssl=tls, backlog=ACCEPTED_AT_ONCE
        )
    except (OSError, OverflowError) as exc:
        where = f"{settings.host}:{settings.port}"
        why = str(exc)
        if isinstance(exc, OSError) and exc.errno:  # below 0 for a name that is not known
            why = os.strerror(exc.errno) if exc.errno > 0 else exc.strerror or why
        raise BadSetting(
            f"cannot listen on {where}: {why}", hint="Choose another --host or --port."
        ) from None
    try:
        for one in server.sockets:
            with socket.socket(fileno=os.dup(one.fileno())) as same:
                same.listen(WAITING_CONNECTIONS)
                # Whoever takes nothing for so long is cut off by the system, in any answer.
                patience_ms = int(2000 * settings.idle_seconds)
                with suppress(OSError, AttributeError):
                    same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
                address = same.getsockname()
                if is_loopback(address[0]):
                    unpace(same)  # and with it each connection that is accepted
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            log.info("listening on http%s://%s:%d", "s" if tls else "", host, address[1])
        yield
    finally:
        server.close()
