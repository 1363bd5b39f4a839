"""The S3 server of the bench: MinIO if there is one, else SeaweedFS, which pip installs."""

import secrets
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchlib.processes import BenchFailed, Process, free_ports

BUCKET = "bench"
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
CACHE = Path.home() / ".cache/tunnelsync/bin"


@dataclass(frozen=True)
class S3Server:
    """A server that runs, with one bucket for everybody."""

    kind: str
    endpoint: str
    access_key: str
    secret_key: str
    pid: int
    bucket: str
    client: Any

    def environ(self) -> dict[str, str]:
        """Return the settings of a router and a connector that use it.

        ``settle_seconds`` is 0, so that a version just made is found again by the download.
        """
        return {
            "TUNNELSYNC_STORE_ENDPOINT": self.endpoint,
            "TUNNELSYNC_STORE_BUCKET": self.bucket,
            "TUNNELSYNC_STORE_ACCESS_KEY": self.access_key,
            "TUNNELSYNC_STORE_SECRET_KEY": self.secret_key,
            "TUNNELSYNC_STORE_SETTLE_SECONDS": "0",
        }

    def presigned(self, key: str) -> str:
        """Return an address that downloads an object."""
        params = {"Bucket": self.bucket, "Key": key}
        return str(self.client.generate_presigned_url("get_object", Params=params))

    def clear(self) -> None:
        """Delete every object, so that the disk does not fill."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        for key in keys:
            self.client.delete_object(Bucket=self.bucket, Key=key)


def find(wanted: str, minio: Path | None) -> tuple[str, str] | None:
    """Return kind and path of the server to use (``wanted``: auto, minio or weed), or None."""
    kinds = ("minio", "weed") if wanted == "auto" else (wanted,)
    for kind in kinds:
        given = [minio] if kind == "minio" and minio else []
        for path in (*given, Path(sys.executable).parent / kind, CACHE / kind):
            if path.is_file():
                return kind, str(path)
        if on_path := shutil.which(kind):
            return kind, on_path
    return None


@contextmanager
def serving(kind: str, program: str, folder: Path) -> Iterator[S3Server]:
    """Run a server on free ports of 127.0.0.1, with its own keys, data folder and bucket."""
    for attempt in range(STARTS):
        here = folder / f"store-{attempt}"
        (here / "data").mkdir(parents=True)
        keys = f"key{secrets.token_hex(8)}", secrets.token_hex(20)
        (port,) = free_ports(1)
        command, environ = (_minio if kind == "minio" else _weed)(program, here, port, *keys)
        with Process(kind, command, here, {"HOME": str(here), **environ}) as process:
            health = "/minio/health/ready" if kind == "minio" else "/healthz"
            try:
                process.wait_until(lambda: _answers(port, health), "become ready")  # noqa: B023
            except BenchFailed:
                if attempt + 1 < STARTS:
                    continue
                raise
            endpoint = f"http://127.0.0.1:{port}"
            client = _client(endpoint, *keys)
            _make_bucket(client)
            yield S3Server(kind, endpoint, *keys, process.pid, BUCKET, client)
            return


def _minio(
    program: str, folder: Path, port: int, access_key: str, secret_key: str
) -> tuple[list[str], dict[str, str]]:
    command = [program, "server", "--quiet", "--address", f"127.0.0.1:{port}"]
    keys = {"MINIO_ROOT_USER": access_key, "MINIO_ROOT_PASSWORD": secret_key}
    return [*command, str(folder / "data")], {**keys, "MINIO_BROWSER": "off"}


def _weed(
    program: str, folder: Path, port: int, access_key: str, secret_key: str
) -> tuple[list[str], dict[str, str]]:
    command = [program, "mini", f"-dir={folder / 'data'}", f"-s3.port={port}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false"]
    ports = free_ports(len(WEED_PORTS))
    command += [f"-{name}={one}" for name, one in zip(WEED_PORTS, ports, strict=True)]
    admin = next(one for one in free_ports(16) if one > ADMIN_GRPC_SHIFT + 1024) - ADMIN_GRPC_SHIFT
    command += [f"-admin.port={admin}", f"-admin.port.grpc={admin + ADMIN_GRPC_SHIFT}"]
    return command, {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}


def _answers(port: int, path: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _client(endpoint: str, access_key: str, secret_key: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4",
            proxies={},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _make_bucket(client: Any) -> None:
    """Make the bucket; a server that says it is ready may need another moment."""
    from botocore.exceptions import ClientError

    for _ in range(40):
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except ClientError as error:
            problem = error
            time.sleep(0.25)
    raise BenchFailed(f"the store makes no bucket: {problem}")
