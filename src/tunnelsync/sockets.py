"""The socket of a transport, for who reads or writes it past asyncio.

It is dup'ed, for asyncio lets nobody else watch the descriptor of a transport.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, TypeGuard, TypeVar

from tunnelsync.address import is_loopback

Transport = TypeVar("Transport", bound=asyncio.BaseTransport)

INTERNET = (socket.AF_INET, socket.AF_INET6)
PACED = b"bbr"
"""How the names of those begin that pace: there are versions of it."""
UNPACED = b"reno"
"""A congestion control that every Linux has, for everybody unless the administrator forbids it."""

RECEIVED_BYTES = 512 * 1024
"""More than asyncio asks the system for at a time, for however few bytes: 256 KiB."""


@cache
def keep_memory(count: int = RECEIVED_BYTES) -> None:
    """Have glibc keep memory of up to so many bytes for the next use, and not give it back.

    Else it asks the system for what has 128 KiB and more, each time: three calls and a page fault
    for each receive. It keeps twice as much as the largest that was freed so far (mallopt(3),
    M_MMAP_THRESHOLD), of which not a page need ever have been touched.
    """
    bytes(count)


def is_plain(transport: Transport | None) -> TypeGuard[Transport]:
    """Tell whether it is open, and its bytes are those on the socket: no TLS."""
    return (
        transport is not None
        and not transport.is_closing()
        and transport.get_extra_info("sslcontext") is None
        and transport.get_extra_info("socket") is not None
    )


def dup_of(transport: asyncio.BaseTransport) -> socket.socket:
    """Return a socket of our own on the same connection, for many bytes; close it."""
    own = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    with suppress(OSError):  # it is not connected any more
        if own.family in INTERNET and stays_here(own.getsockname()[0], own.getpeername()[0]):
            unpace(own)
    return own


def stays_here(here: str, there: str) -> bool:
    """Tell whether bytes between two addresses, as good as certainly, never leave this machine."""
    return here == there or is_loopback(there)


def unpace(one: socket.socket) -> None:
    """Take pacing off a connection that stays on this machine, where there is no line to spare.

    BBR sets a timer for every 64 KiB, which took a quarter of the CPU of a whole stream. Better
    before the connection is there, or on the socket that listens: later, a few timers are left.
    """
    with suppress(AttributeError, OSError):  # no Linux; not allowed
        control = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        if control.startswith(PACED):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)


def abort(transport: asyncio.WriteTransport | None) -> None:
    """Break a connection off, if it is still there.

    The transport's own `abort` fails on one that was closed with something left to send, and has
    sent it since; and one of TLS that was closed twice knows nothing of its connection any more,
    which asyncio then ends by itself.
    """
    with suppress(AttributeError):
        if transport is not None:
            found = transport.get_extra_info("socket")
            if found is None or found.fileno() >= 0:
                transport.abort()


async def readable(one: socket.socket) -> None:
    """Wait until there is something to read."""
    loop = asyncio.get_running_loop()
    await _ready(one, loop.add_reader, loop.remove_reader)


async def writable(one: socket.socket) -> None:
    """Wait until there is room to write."""
    loop = asyncio.get_running_loop()
    await _ready(one, loop.add_writer, loop.remove_writer)


async def _ready(one: socket.socket, add: Callable[..., Any], remove: Callable[..., Any]) -> None:
    # By its number: of an object that it does not know asyncio makes a text each time.
    ready, descriptor = asyncio.Event(), one.fileno()
    add(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        remove(descriptor)
