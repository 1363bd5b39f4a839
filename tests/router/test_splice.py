"""Bytes that go by inside the kernel: whoever moves many of them lets others have their turn."""

import asyncio
import socket
import subprocess
import sys

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
    way = Splice.between(*ends)
    assert way is not None
    with sender, receiver, way:
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


UNPRIVILEGED = """
import asyncio, os, socket, sys
from tunnelsync.router.splice import Splice

class Held(asyncio.BaseTransport):
    def __init__(self, held):
        super().__init__({"socket": held})
    def is_closing(self):
        return False

ends = [Held(one) for one in socket.socketpair()]
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
held = []
while (way := Splice.between(*ends)) is not None and len(held) < 200:
    held.append(way)
before = len(os.listdir("/proc/self/fd"))
assert Splice.between(*ends) is None or len(held) == 200
for one in held[:3]:
    one.__exit__(None, None, None)
again = Splice.between(*ends)
print(len(held), len(os.listdir("/proc/self/fd")) - before, again is not None)
"""


def test_without_privilege_the_system_gives_few_pipes_and_the_rest_is_copied() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, timeout=60, check=True
    )
    held, more, again = done.stdout.split()
    assert 0 < int(held) < 200  # Linux: /proc/sys/fs/pipe-user-pages-soft
    assert int(more) == 4 - 3 * 4  # three let go of, one taken, and none left of those refused
    assert again == "True"
