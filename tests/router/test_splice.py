"""Bytes that go by inside the kernel: whoever moves many of them lets others have their turn."""

import asyncio
import socket

import pytest

from tunnelsync.router import splice
from tunnelsync.router.splice import Splice

PIECE = 4096
PIECES = 12


async def transport_of(one: socket.socket) -> asyncio.BaseTransport:
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=one)
    transport.pause_reading()
    return transport


async def test_others_get_their_turn_between_bytes_that_are_all_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splice, "TURN_BYTES", 4 * PIECE)
    (sender, source), (target, receiver) = socket.socketpair(), socket.socketpair()
    ends = [await transport_of(source), await transport_of(target)]
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    sender.sendall(bytes(PIECE * PIECES))
    waiting = asyncio.create_task(other())
    with sender, receiver, Splice(*ends) as way:
        began = turns
        for _ in range(PIECES):
            assert await way.take(PIECE) == PIECE
            while way.held:
                await way.put()
        assert turns - began == PIECES // 4 - 1
        assert len(receiver.recv(PIECE * PIECES)) == PIECE * PIECES
    waiting.cancel()
    for one in ends:
        assert isinstance(one, asyncio.Transport)
        one.abort()
