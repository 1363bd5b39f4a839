"""Faults of the pressure: a slow or gone client, cancelled transfers, caps and budgets."""

import time
from pathlib import Path
from typing import Any

import pytest

from fault_proxy import fault_proxy
from harness import MAC, System, make_file, peak_rss_bytes, sha256, sparse_file, wait_until
from held import HeldGet
from tunnelsync.settings import GIB, MIB
from watched import bytes_read


@pytest.fixture(params=[True, False], ids=["spliced", "copied"])
def zero_copy(request: pytest.FixtureRequest) -> bool:
    """Both ways of the relay: they must not differ in what anybody sees."""
    value = request.param
    assert isinstance(value, bool)
    return value


def test_b12_the_data_connection_breaks_and_the_client_sees_nothing(
    system: System, tmp_path: Path, zero_copy: bool
) -> None:
    router = system.router(zero_copy=zero_copy)
    source = make_file(tmp_path / "datasets" / "data", 96 * MIB)
    with fault_proxy(router.port, cut_after=10 * MIB, cuts=4) as proxy:
        system.connector("--router", proxy.url)
        done = system.cli(
            "fetch", "--mode", "stream", MAC, "data", "-o", tmp_path / "out", "--json"
        )
        assert done.code == 0, done.err
        assert proxy.cut == 4
    assert sha256(tmp_path / "out") == sha256(source)


def test_b12_a_raw_stream_goes_on_too(system: System, tmp_path: Path, zero_copy: bool) -> None:
    router = system.router(zero_copy=zero_copy)
    source = make_file(tmp_path / "datasets" / "data", 40 * MIB)
    with fault_proxy(router.port, cut_after=7 * MIB, cuts=3) as proxy:
        system.connector("--router", proxy.url)
        with HeldGet(router.url, f"/datasets/{MAC}/data") as get:
            body, whole = get.rest()
        assert proxy.cut == 3
    assert whole
    assert bytes(body) == source.read_bytes()


def test_b12_a_line_that_always_breaks_ends_with_an_error(
    system: System, tmp_path: Path, zero_copy: bool
) -> None:
    router = system.router(zero_copy=zero_copy, resume_seconds=5)
    sparse_file(tmp_path / "datasets" / "data", GIB)
    with fault_proxy(router.port, cut_after=3000, cuts=10**6) as proxy:
        system.connector("--router", proxy.url, backoff_first_seconds=0.01, resume_attempts=3)
        done = system.cli("fetch", "--mode", "stream", MAC, "data", "-o", tmp_path / "out")
    assert done.code == 7, done.err
    assert "broke" in done.err
    assert not (tmp_path / "out").exists()


def test_p1_a_client_that_stops_reading_is_let_go_and_memory_stays_flat(
    system: System, tmp_path: Path, zero_copy: bool
) -> None:
    router = system.router(zero_copy=zero_copy, idle_seconds=2)
    connector = system.connector()
    sparse_file(tmp_path / "datasets" / "data", 8 * GIB)
    with HeldGet(router.url, f"/datasets/{MAC}/data") as get:
        get.read(8 * MIB)
        before = peak_rss_bytes(router.pid), peak_rss_bytes(connector.pid)
        receipt = system.cli("receipt", get.request_id, "--wait", "30", "--json").json()["receipt"]
        assert receipt["outcome"] == "timed_out"
        assert "the client to take a byte" in receipt["error"]["message"]
        assert receipt["bytes"] < 64 * MIB
        _, whole = get.rest()
        assert not whole
    after = peak_rss_bytes(router.pid), peak_rss_bytes(connector.pid)
    assert all(b - a < 16 * MIB for a, b in zip(before, after, strict=True)), (before, after)
    wait_until(lambda: places_taken(system) == 0, 10, "the connector to be free")
    make_file(tmp_path / "datasets" / "small", 1000)
    assert system.cli("fetch", MAC, "small", "-o", tmp_path / "out").code == 0


def places_taken(system: System) -> int:
    count = system.cli("connectors", "--json").json()["connectors"][0]["transfers"]
    assert isinstance(count, int)
    return count


def test_p2_a_client_that_leaves_frees_the_place(
    system: System, tmp_path: Path, zero_copy: bool
) -> None:
    """The next in line begins: within a second of the close, and far below any deadline."""
    router = system.router(zero_copy=zero_copy)
    connector = system.connector(places=1)
    sparse_file(tmp_path / "datasets" / "data", 8 * GIB)
    make_file(tmp_path / "datasets" / "small", 1000)
    first = HeldGet(router.url, f"/datasets/{MAC}/data")
    first.read(1 * MIB)
    read = bytes_read(connector.pid)
    assert read > 0
    fetch = system.start("fetch", MAC, "small", "-o", str(tmp_path / "out"))
    wait_until(lambda: places_taken(system) == 2, 20, "the second to stand in line")
    left = time.monotonic()
    first.close()
    assert fetch.wait(20) == 0, fetch.log
    assert time.monotonic() - left < 10  # the deadlines that would end it else are 60 s
    receipt = system.cli("receipt", first.request_id, "--json").json()["receipt"]
    assert receipt["outcome"] == "cancelled"
    assert bytes_read(connector.pid) - read < 256 * MIB


def test_p3_cancelling_one_leaves_the_others(
    system: System, tmp_path: Path, zero_copy: bool
) -> None:
    router = system.router(zero_copy=zero_copy)
    system.connector()
    source = make_file(tmp_path / "datasets" / "data", 32 * MIB)
    gets = [HeldGet(router.url, f"/datasets/{MAC}/data") for _ in range(5)]
    try:
        for get in gets:
            get.read(1 * MIB)
        import urllib.request

        url = f"{router.url}/transfers/{gets[2].request_id}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).close()
        for at, get in enumerate(gets):
            body, whole = get.rest()
            assert whole == (at != 2)
            if whole:
                assert bytes(body) == source.read_bytes()
        receipt = system.cli("receipt", gets[2].request_id, "--json").json()["receipt"]
        assert receipt["outcome"] == "cancelled"
    finally:
        for get in gets:
            get.close()


def test_p5_over_the_cap_is_refused_before_a_byte_is_sent(system: System, tmp_path: Path) -> None:
    system.router()
    connector = system.connector()
    sparse_file(tmp_path / "datasets" / "data", 64 * MIB + 1)
    before = bytes_read(connector.pid)
    done = system.cli("fetch", "--mode", "buffer", MAC, "data", "-o", tmp_path / "out")
    assert done.code == 4, done.err
    assert "stream" in done.err
    assert "offload" in done.err
    assert not (tmp_path / "out").exists()
    assert bytes_read(connector.pid) - before < 1 * MIB


@pytest.mark.parametrize("who", ["router", "connector"])
def test_p5_the_sum_of_all_buffers_has_a_budget(system: System, tmp_path: Path, who: str) -> None:
    budget: dict[str, Any] = {"buffers_bytes": 2 * MIB}
    system.router(**(budget if who == "router" else {}))
    system.connector(**(budget if who == "connector" else {}))
    make_file(tmp_path / "datasets" / "data", 4 * MIB)
    make_file(tmp_path / "datasets" / "small", 1000)
    done = system.cli("fetch", "--mode", "buffer", MAC, "data", "-o", tmp_path / "out")
    assert done.code == 5, done.err
    assert "buffer" in done.err
    assert system.cli("fetch", "--mode", "buffer", MAC, "small", "-o", tmp_path / "o").code == 0


def test_p5_a_receipt_does_not_keep_the_answer(system: System, tmp_path: Path) -> None:
    router = system.router()
    system.connector()
    make_file(tmp_path / "datasets" / "data", 8 * MIB)

    def fetch() -> None:
        target = tmp_path / "out"
        done = system.cli("fetch", "--mode", "buffer", MAC, "data", "-o", target, "--force")
        assert done.code == 0, done.err

    for _ in range(3):
        fetch()
    before = peak_rss_bytes(router.pid)
    for _ in range(8):
        fetch()
    assert peak_rss_bytes(router.pid) - before < 32 * MIB  # kept, they would be 85 MiB
