"""Thousands of light connectors in one process, speaking the real protocol to a real router.

Each says hello, answers pings, sends its own after the same silence as a real connector,
acknowledges and answers ``stat_dataset``, and comes back after the same pauses. It serves no
dataset: what is measured is the router. Run as ``python fleet.py PORT FIRST COUNT``; each change
of how many are connected is a line on stdout.
"""

import asyncio
import base64
import math
import os
import random
import secrets
import sys
import time
from contextlib import suppress

import orjson
from aiohttp import ClientError, ClientSession, TCPConnector

from tunnelsync import __version__, backoff, protocol, wire
from tunnelsync.settings import ConnectorSettings

SETTINGS = ConnectorSettings()
TOLD_SECONDS = 0.1
"""How often the number of those connected is told."""
START_PER_SECOND = 1500
"""So fast they come for the first time. After a restart of the router they come as they like."""
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
STAT = wire.dumps(protocol.StatAnswer(200, 1000, "1000-1-1", 0, 0, 1000))
"""What each says of any dataset."""


def mac(number: int) -> str:
    """Return the MAC of one of the fleet."""
    return "06-00-" + "-".join(f"{byte:02x}" for byte in number.to_bytes(4, "big"))


def frame(opcode: int, data: bytes) -> bytes:
    """Return a masked frame; its mask of zeros changes nothing."""
    head = bytes((0x80 | opcode,))
    size = len(data)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return head + length + bytes(4) + data


class Fleet:
    """The connectors of one process, and their posts."""

    def __init__(self, port: int, posts: "Posts") -> None:
        self.port = port
        self.loop = asyncio.get_running_loop()
        self.posts = posts
        self.connected = 0

    def dial(self, one: "Light") -> None:
        """Try to connect one of them."""
        task = self.loop.create_task(self._dialled(one))
        one.task = task

    async def _dialled(self, one: "Light") -> None:
        try:
            async with asyncio.timeout(SETTINGS.answer_seconds):
                await self.loop.create_connection(lambda: one, "127.0.0.1", self.port)
        except (OSError, TimeoutError):
            one.again()


class Light(asyncio.Protocol):
    """One connector: its socket of the moment."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet = fleet
        self.mac = mac(number)
        self.hello = frame(
            TEXT,
            protocol.encode(
                protocol.Hello(
                    self.mac, __version__, secrets.token_hex(16), capabilities=("buffer", "stream")
                )
            ).encode(),
        )
        self.task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None
        self.tries = 0
        self.good_bye = ""
        self.welcome = False
        self.upgraded = False
        self.buffer = b""
        # Whole seconds of a clock that each machine began at another moment: aiohttp rounds up.
        self.phase = random.random()
        self.ping_at = math.inf
        self.timer: asyncio.TimerHandle | None = None

    def again(self) -> None:
        """Try again after the pause that a real connector makes."""
        pause = backoff.returning(self.tries, self.good_bye, SETTINGS)
        self.tries, self.good_bye = self.tries + 1, ""
        self.fleet.loop.call_later(pause, self.fleet.dial, self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.upgraded, self.buffer = False, b""
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /connectors/ws HTTP/1.1\r\nHost: 127.0.0.1:{self.fleet.port}\r\n"
            f"TunnelSync-Connector: {self.mac}\r\nUser-Agent: tunnelsync/{__version__}\r\n"
            "Accept-Encoding: identity\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: {protocol.SUBPROTOCOL}\r\nAccept: */*\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.welcome:
            self.welcome = False
            self.fleet.connected -= 1
        self.again()

    def data_received(self, data: bytes) -> None:
        self._alive()
        self.buffer += data
        if not self.upgraded:
            head, mark, rest = self.buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            assert self.transport is not None
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                self.transport.close()
                return
            self.upgraded, self.buffer = True, rest
            self.transport.write(self.hello)
        while (taken := self._frame()) is not None:
            self._heard(*taken)

    def _frame(self) -> tuple[int, bytes] | None:
        data = self.buffer
        if len(data) < 2:
            return None
        size, at = data[1] & 0x7F, 2
        if size == 126:
            if len(data) < 4:
                return None
            size, at = int.from_bytes(data[2:4], "big"), 4
        if len(data) < at + size:
            return None
        self.buffer = data[at + size :]
        return data[0] & 0x0F, data[at : at + size]

    def _heard(self, opcode: int, data: bytes) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if opcode == PING:
            transport.write(frame(PONG, data))
        elif opcode == CLOSE:
            self.good_bye = data[2:].decode()
            transport.write(frame(CLOSE, data))
            transport.close()
        elif opcode == TEXT:
            message = orjson.loads(data)
            if message.get("type") == "welcome":
                self.welcome, self.tries = True, 0
                self.fleet.connected += 1
            elif message.get("command") == protocol.StatDataset.command:
                ack = protocol.encode(protocol.Ack(message["request_id"]))
                transport.write(frame(TEXT, ack.encode()))
                self.fleet.posts.stat(self, message["request_id"])

    def _alive(self) -> None:
        """Something came: ping after another silence, at a whole second of our clock."""
        now = self.fleet.loop.time() + self.phase
        self.ping_at = math.ceil(now + SETTINGS.heartbeat_seconds) - self.phase
        if self.timer is None:
            self.timer = self.fleet.loop.call_at(self.ping_at, self._silent)

    def _silent(self) -> None:
        self.timer = None
        if self.transport is None or not self.welcome:
            return
        if self.fleet.loop.time() >= self.ping_at:
            self.transport.write(frame(PING, b""))
            self.ping_at = self.fleet.loop.time() + SETTINGS.heartbeat_seconds
        self.timer = self.fleet.loop.call_at(self.ping_at, self._silent)


class Posts:
    """The results of all of them, each over a connection of its own, as after a long silence."""

    def __init__(self, http: ClientSession, port: int) -> None:
        self._http = http
        self._url = f"http://127.0.0.1:{port}/datasets/result"
        self._running: set[asyncio.Task[None]] = set()

    def stat(self, one: Light, request_id: str) -> None:
        """Answer one stat."""
        task = asyncio.create_task(self._post(one.mac, request_id))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _post(self, mac: str, request_id: str) -> None:
        headers = {protocol.H_CONNECTOR: mac, "Content-Type": "application/json"}
        query = {"request_id": request_id}
        with suppress(ClientError, OSError):
            async with self._http.post(self._url, data=STAT, headers=headers, params=query) as got:
                await got.read()


async def main(port: int, first: int, count: int) -> None:
    """Connect them, and tell of each change."""
    async with ClientSession(connector=TCPConnector(force_close=True)) as http:
        fleet = Fleet(port, Posts(http, port))
        for number in range(count):
            light = Light(fleet, first + number)
            fleet.loop.call_later(number / START_PER_SECOND, fleet.dial, light)
        told = -1
        while True:
            if fleet.connected != told:
                told = fleet.connected
                sys.stdout.write(f"connected {told} at {time.monotonic():.3f}\n")
                sys.stdout.flush()
            await asyncio.sleep(TOLD_SECONDS)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:4])))
