"""Mode offload as the tests set it up: a real store, seen from outside, and who uses it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from yarl import URL

import raw_http
from harness import MAC, Completed, System, cli, environ_of, make_file
from s3 import S3Server
from tunnelsync.settings import MIB, StoreSettings

BUCKET = "offload"
PREFIXES = (f"test-{token_hex(4)}-{n}" for n in count())
MACS = (f"cc-28-aa-04-{n >> 8:02x}-{n & 255:02x}" for n in count())
AUTO_BYTES = 2 * MIB
SECONDS = 30.0


def environ(server: S3Server, **over: Any) -> dict[str, str]:
    """Return the settings of the store as a user gives them; nothing counts as young.

    Datasets are single objects here, whatever their size; `test_segments.py` has the others.
    """
    quick = {"settle_seconds": 0.0, "attempts": 1, "segments_from_bytes": 2**40}
    found = server.settings(over.pop("bucket", BUCKET), **(quick | over))
    values = {spec.name: getattr(found, spec.name) for spec in fields(found)}
    return environ_of(StoreSettings, values)


@dataclass(frozen=True, slots=True)
class Shelf:
    """What one test has in the store, seen from outside by boto; each upload is a version."""

    client: Any
    prefix: str

    def keys(self) -> list[str]:
        """Return the keys of the objects."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=self.prefix)
        return [one["Key"] for one in found.get("Contents", [])]

    def put_count(self, end: str) -> int:
        """Return how often an object has been put whose key ends so."""
        found = self.client.list_object_versions(Bucket=BUCKET, Prefix=self.prefix)
        return sum(one["Key"].endswith(end) for one in found.get("Versions", []))

    def uploads(self) -> list[str]:
        """Return the keys of the multipart uploads that are open."""
        found = self.client.list_multipart_uploads(Bucket=BUCKET)  # MinIO takes no real prefix
        keys = [one["Key"] for one in found.get("Uploads", [])]
        return [key for key in keys if key.startswith(self.prefix + "/")]

    def get(self, key: str) -> bytes:
        """Return an object."""
        data = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert isinstance(data, bytes)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Replace an object, as somebody else would: its metadata stay."""
        with_what = self.client.head_object(Bucket=BUCKET, Key=key)["Metadata"]
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data, Metadata=with_what)


class Fetching:
    """One dataset of a connector, and where a client was told to write it."""

    __slots__ = ()
    system: System
    name: str

    @property
    def source(self) -> Path:
        """The dataset."""
        return self.system.tmp_path / "datasets" / self.name

    @property
    def target(self) -> Path:
        """Where it is fetched to."""
        return self.system.tmp_path / f"{self.name} out"


@pytest.fixture(scope="module")
def outside(store_server: S3Server) -> Any:
    """A client that looks at the store without our code, in a bucket that keeps versions."""
    client = store_server.client()
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):  # by another module
        client.create_bucket(Bucket=BUCKET)
    versions = {"Status": "Enabled"}
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration=versions)
    return client


@pytest.fixture
def shelf(outside: Any) -> Shelf:
    return Shelf(outside, next(PREFIXES))


@contextmanager
def running(tmp_path: Path, store: dict[str, str]) -> Iterator[System]:
    """Give every process of a test a store."""
    started = System(tmp_path, environ=store)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, store_server: S3Server, outside: Any
) -> Iterator[System]:
    """One router and one connector for all tests that leave them as they are."""
    store = environ(store_server, prefix=next(PREFIXES))
    with running(tmp_path_factory.mktemp("stored"), store) as system:
        system.router()
        system.connector(auto_offload_bytes=AUTO_BYTES)
        yield system


def dataset(system: System, name: str, size: int, seed: int = 0) -> Path:
    """Make a dataset of the connector."""
    return make_file(system.tmp_path / "datasets" / name, size, seed=seed)


def fetch(
    system: System, mode: str, target: Path, *args: str, mac: str = MAC, name: str = "d", **env: str
) -> Completed:
    """Fetch a dataset into a file."""
    flags = ("--mode", mode, "--json", *args)
    return system.cli("fetch", *flags, mac, name, "-o", target, env=env)


def told(done: Completed) -> str:
    """Return message and hint of an error, as a user reads them."""
    error = done.json()["error"]
    return f"{error['message']}\n{error['hint']}"


def offered(system: System, name: str) -> dict[str, Any]:
    """Ask for a dataset in mode offload, and download nothing."""
    asked = {"mac": MAC, "dataset": name}
    answer = raw_http.post(system.url, "/datasets/request-offload", asked)
    assert answer.status == 200, answer
    return answer.json()


def keys_in(answer: dict[str, Any]) -> tuple[str, str]:
    """Return the keys of the two objects that an answer tells of: data, and blocks."""
    data, blocks = (URL(answer[name]).path for name in ("download_url", "blocks_url"))
    return data.removeprefix(f"/{BUCKET}/"), blocks.removeprefix(f"/{BUCKET}/")


def free_port() -> int:
    """Return a port where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    assert isinstance(port, int)
    return port


def collected(server: S3Server, prefix: str, *args: str, **env: str) -> Completed:
    """Run ``tunnelsync store gc``."""
    return cli("store", "gc", *args, env={**environ(server, prefix=prefix), **env})


def taken(system: System) -> int:
    """Return how many transfers the connector has."""
    rows = raw_http.ask(system.url, "GET", "/connectors").json()["connectors"]
    return int(rows[0]["transfers"])


def altered(data: bytes) -> bytes:
    """Return the data with one bit of the middle one of its bytes flipped."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
