"""The line between a client and what it fetches from breaks: the fetch goes on by itself."""

from pathlib import Path

import orjson

from fault_proxy import fault_proxy
from harness import MAC, System, make_file, sha256
from proxy import Way
from tunnelsync.settings import MIB


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
