"""Sockets of transports, past asyncio."""

import asyncio
import socket

from tunnelsync import sockets


async def test_a_connection_that_was_closed_with_something_to_send_can_be_aborted_later() -> None:
    ours, theirs = socket.socketpair()
    lost = asyncio.Event()

    class Sender(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(Sender, ours)
    while not transport.get_write_buffer_size():
        transport.write(bytes(65536))
    transport.close()
    theirs.setblocking(False)
    async with asyncio.timeout(10):
        while await loop.sock_recv(theirs, 1 << 20):
            pass
        await lost.wait()
    sockets.abort(transport)
    sockets.abort(None)
    theirs.close()


async def test_a_connection_that_is_there_is_broken_off() -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    assert sockets.is_plain(transport)
    sockets.abort(transport)
    theirs.setblocking(False)
    async with asyncio.timeout(10):
        assert await loop.sock_recv(theirs, 1) == b""
    assert not sockets.is_plain(transport)
    theirs.close()
