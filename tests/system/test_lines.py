"""The lines between the roles break: what heals goes on by itself, what does not is told."""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from fault_proxy import fault_proxy
from harness import MAC, System, environ_of, make_file, sha256
from proxy import Proxy, Way, in_a_thread
from s3 import S3Server
from tunnelsync.settings import MIB, StoreSettings


def test_b11_a_line_that_is_cut_between_router_and_client_costs_a_retry_and_no_more(
    system: System, tmp_path: Path
) -> None:
    """The router tells of the transfer that its client has left, and that is not its end."""
    router = system.router()
    system.connector()
    source = make_file(tmp_path / "datasets" / "data", 48 * MIB)
    with fault_proxy(router.port, cut_after=10 * MIB, cuts=2, way=Way.DOWN) as proxy:
        done = system.cli(
            *("fetch", "--mode", "stream", "--retry-for", "20", "--receipt", tmp_path / "receipt"),
            *(MAC, "data", "-o", tmp_path / "out"),
            env={"TUNNELSYNC_ROUTER": proxy.url},
        )
        assert done.code == 0, done.err
        assert proxy.cut == 2
    assert sha256(tmp_path / "out") == sha256(source)
    receipt = orjson.loads((tmp_path / "receipt").read_bytes())
    assert [one["outcome"] for one in receipt["transfers"]] == ["broken", "broken", "delivered"]
    assert receipt["retries"] == 2


@pytest.fixture
def store_line(store_server: S3Server) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """A line before the store, and the settings of roles that reach the store by it."""
    port = urlsplit(store_server.endpoint).port
    assert port is not None
    with in_a_thread(Proxy(port)) as proxy:
        settings = store_server.settings("lines", endpoint=proxy.url)
        names = ("endpoint", "bucket", "access_key", "secret_key")
        values = {name: getattr(settings, name) for name in names}
        yield proxy, environ_of(StoreSettings, values | {"create_bucket": 1})


def test_s3_a_store_that_resets_each_connection_is_an_error_and_no_traceback(
    store_line: tuple[Proxy, dict[str, str]], tmp_path: Path
) -> None:
    """What the connector's log must not hold is judged when the system stops."""
    proxy, environ = store_line
    for name in ("first", "second"):
        make_file(tmp_path / "datasets" / name, 5 * MIB)
    system = System(tmp_path, environ)
    try:
        system.router()
        connector = system.connector()
        fetch = ("fetch", "--mode", "offload", MAC)
        assert system.cli(*fetch, "first").code == 0  # the bucket is known from now on
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            proxy.target_port = nobody.getsockname()[1]
            proxy.break_from_outside()
            done = system.cli(*fetch, "second")
        assert done.code == 5, done.err
        assert "cannot be reached" in done.err
        assert "cannot be reached" in connector.log
    finally:
        system.stop()
