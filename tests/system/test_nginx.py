"""Through a real nginx: as it comes, with its limits, and with the settings that we document."""

import asyncio
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import pytest

import raw_http
from harness import (
    MAC,
    Connector,
    Router,
    System,
    environ_of,
    make_file,
    sha256,
    sparse_file,
    wait_until,
)
from held import HeldGet
from nginx import DEFAULT, MISSING, PROGRAM, Nginx, documented, nginx
from tunnelsync.client import TunnelSync
from tunnelsync.settings import GIB, KIB, MIB, StoreSettings

if TYPE_CHECKING:
    from s3 import S3Server

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)

SIZES = (KIB, 3 * MIB, 40 * MIB + 7)
CONFIGS = {"as it comes": DEFAULT, "as documented": documented()}
CURL = ("curl", "-q", "-sS", "--fail", "--noproxy", "*", "-m", "60")
FASTER = "client_max_body_size 0; proxy_request_buffering off;"


@dataclass(frozen=True, slots=True)
class Behind:
    """A router, the nginx in front of it, and a connector that comes by that."""

    router: Router
    nginx: Nginx
    connector: Connector


@pytest.fixture(params=CONFIGS)
def http(request: pytest.FixtureRequest) -> str:
    return CONFIGS[request.param]


@contextmanager
def behind(
    system: System,
    http: str,
    extra: str = "",
    *,
    router: Mapping[str, Any] | None = None,
    **connector: Any,
) -> Iterator[Behind]:
    """Start a router, and a connector that reaches it by nginx alone; so do the commands."""
    started = system.router(**(router or {}))
    with nginx(system.tmp_path / "nginx", started.port, http, extra) as proxy:
        system.url = proxy.url
        yield Behind(started, proxy, system.connector(**connector))


def fetched(system: System, mode: str, name: str) -> None:
    """Fetch a dataset and compare it with its original."""
    target = system.tmp_path / f"{mode} {name}"
    done = system.cli("fetch", "--force", "--mode", mode, MAC, name, "-o", target)
    assert done.code == 0, done.err
    assert sha256(target) == sha256(system.tmp_path / "datasets" / name)


@pytest.mark.parametrize("mode", ["buffer", "stream", "auto"])
def test_b9_every_size_passes(system: System, mode: str, http: str) -> None:
    for size in SIZES:
        make_file(system.tmp_path / "datasets" / str(size), size, seed=size)
    with behind(system, http) as it:
        for size in SIZES:
            fetched(system, mode, str(size))
        assert it.connector.log.count(FASTER) == (http is DEFAULT), it.connector.log
        assert "broken off" not in it.connector.log


def test_b9_every_size_passes_by_the_store(
    system: System, http: str, store_server: "S3Server"
) -> None:
    system.environ |= environ_of(StoreSettings, vars_of(store_server.settings("nginx")))
    for size in SIZES:
        make_file(system.tmp_path / "datasets" / str(size), size, seed=size)
    with behind(system, http):
        for size in SIZES:
            fetched(system, "offload", str(size))


def vars_of(store: StoreSettings) -> dict[str, object]:
    names = ("endpoint", "bucket", "access_key", "secret_key", "create_bucket")
    return {name: getattr(store, name) for name in names}


def test_b9_curl_gets_the_plain_bytes(system: System, http: str) -> None:
    target = system.tmp_path / "curled"
    with behind(system, http) as it:
        for size in SIZES:
            source = make_file(system.tmp_path / "datasets" / str(size), size, seed=size)
            subprocess.run(
                [*CURL, "-o", str(target), f"{it.nginx.url}/datasets/{MAC}/{size}"],
                check=True,
                timeout=90,
            )
            assert sha256(target) == sha256(source)


def test_a_listing_over_the_limit_of_a_body_passes(system: System, http: str) -> None:
    folder = system.tmp_path / "datasets"
    folder.mkdir()
    names = [f"{number:03d}" + "\x01" * 250 for number in range(1000)]
    for name in names:
        (folder / name).touch()
    with behind(system, http) as it:
        answer = raw_http.ask(it.nginx.url, "GET", f"/datasets/{MAC}/")
        assert len(answer.body) > MIB
        assert [entry["name"] for entry in answer.json()["entries"]] == names
        assert it.connector.log.count(FASTER) == (http is DEFAULT), it.connector.log


def test_what_the_proxy_does_is_found_once_and_told_once(system: System) -> None:
    """Twelve at once, in both modes that send bodies; then the same again."""
    datasets = system.tmp_path / "datasets"
    names = [make_file(datasets / f"d{n}", 3 * MIB + n, seed=n).name for n in range(6)]

    async def all_at_once(url: str) -> None:
        async with TunnelSync(url) as ts:
            streams = [read(ts, name) for name in names]
            buffers = [ts.read(MAC, name) for name in names]
            for name, data in zip(names * 2, await asyncio.gather(*streams, *buffers), strict=True):
                assert data == (datasets / name).read_bytes()

    async def read(ts: TunnelSync, name: str) -> bytes:
        return b"".join([block async for block in ts.blocks(MAC, name)])

    with behind(system, DEFAULT, "proxy_read_timeout 5s;") as it:
        asyncio.run(all_at_once(it.nginx.url))
        refused = it.nginx.log.count("client intended to send too large body")
        assert refused
        asyncio.run(all_at_once(it.nginx.url))
        assert it.nginx.log.count("client intended to send too large body") == refused
        assert it.connector.log.count(FASTER) == 1, it.connector.log


def test_a_proxy_that_holds_uploads_back_is_noticed(system: System) -> None:
    """Without a limit of its own, nginx still takes an upload whole before the router sees it."""
    make_file(system.tmp_path / "datasets" / "big", 400 * MIB)
    extra = "client_max_body_size 0;"
    with behind(system, DEFAULT, extra, probe_seconds=0, probe_bytes=MIB) as it:
        fetched(system, "stream", "big")
        line = it.connector.wait_for_line("holds uploads back")
        assert FASTER in line.string
        fetched(system, "stream", "big")
        assert it.connector.log.count(FASTER) == 1, it.connector.log


def test_a_proxy_that_passes_uploads_on_is_not_taken_for_one(system: System) -> None:
    make_file(system.tmp_path / "datasets" / "big", 200 * MIB)
    with behind(system, documented(), probe_seconds=0, probe_bytes=MIB) as it:
        fetched(system, "stream", "big")
        assert "proxy" not in it.connector.log, it.connector.log


@pytest.mark.parametrize("mode", ["buffer", "stream", "auto"])
def test_a_request_in_line_for_longer_than_the_proxy_is_patient(system: System, mode: str) -> None:
    """It is answered 202 and asked for again; who does not prefer that is cut off meanwhile."""
    datasets = system.tmp_path / "datasets"
    sparse_file(datasets / "big", GIB)
    make_file(datasets / "d", 3 * MIB)
    waits = {"async_wait_seconds": 1, "receipt_wait_seconds": 1}
    with behind(system, DEFAULT, "proxy_read_timeout 3s;", router=waits, places=1) as it:
        with HeldGet(it.router.url, f"/datasets/{MAC}/big") as holds:
            target = system.tmp_path / "out"
            fetch = system.start("fetch", "--mode", mode, MAC, "d", "-o", str(target), "--json")
            asked = {"mac": MAC, "dataset": "d"}
            cut = raw_http.post(it.nginx.url, "/datasets/request-stream", asked)
            assert cut.status == 504
            again = raw_http.post(it.nginx.url, "/datasets/request-stream", asked)
            assert again.status == 504
            assert fetch.running, fetch.log
            holds.close()
        assert fetch.wait(60) == 0, fetch.log
        assert sha256(target) == sha256(datasets / "d")
        request_id = orjson.loads(fetch.log.splitlines()[-1])["request_id"]
        receipt = system.cli("receipt", request_id, "--json").json()["receipt"]
        assert receipt["seconds"] > 3
        assert receipt["outcome"] == "delivered"


@pytest.mark.parametrize("extra", ["", "client_max_body_size 0; proxy_request_buffering off;"])
def test_b12_a_client_that_holds_still_longer_than_the_proxy_is_patient(
    system: System, extra: str
) -> None:
    """The proxy drops the upload; the connector asks where to go on, and does."""
    source = make_file(system.tmp_path / "datasets" / "big", 64 * MIB)
    patience = "proxy_send_timeout 1s; proxy_read_timeout 1s; client_body_timeout 1s;"
    with behind(system, DEFAULT, f"{patience} {extra}", heartbeat_seconds=0.3) as it:
        with HeldGet(it.router.url, f"/datasets/{MAC}/big") as get:
            get.read(3 * MIB)
            it.nginx.wait_for_line("timed out")
            body, whole = get.rest()
    assert whole
    assert bytes(body) == source.read_bytes()


def test_a_client_that_leaves_while_it_asks_again_ends_its_transfer(system: System) -> None:
    datasets = system.tmp_path / "datasets"
    sparse_file(datasets / "big", GIB)
    make_file(datasets / "d", KIB)
    waits = {"async_wait_seconds": 0.5, "receipt_wait_seconds": 1}
    with behind(system, DEFAULT, router=waits, places=1) as it:
        with HeldGet(it.router.url, f"/datasets/{MAC}/big"):
            fetch = system.start("fetch", MAC, "d", "-o", str(system.tmp_path / "out"))
            wait_until(lambda: running(it.router.url) == 2, 20, "both to run")
            fetch.stop()
            it.router.wait_for_line(r'of "d" from .*: cancelled')


def running(url: str) -> int:
    """Return how many transfers are under way."""
    text = raw_http.ask(url, "GET", "/metrics").body.decode()
    lines = [line for line in text.splitlines() if line.startswith("tunnelsync_transfers_running ")]
    return int(float(lines[0].split()[1]))
