"""Faults of the connections: nobody waits for ever, and nobody waits for nothing."""

import asyncio
import hashlib
import re
import resource
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from harness import (
    COMMAND,
    MAC,
    Completed,
    System,
    clean_environ,
    make_file,
    sha256,
    sparse_file,
    wait_until,
)
from held import HeldGet
from played_connector import played
from tunnelsync.client import TunnelSync
from tunnelsync.protocol import CLOSE_RESTART, Mode
from tunnelsync.settings import GIB, MIB

OTHER = "cc-28-aa-00-11-33"


def ls(system: System) -> Completed:
    return system.cli("ls", MAC)


def test_l1_a_frozen_connector_is_offline_and_its_requests_say_so(system: System) -> None:
    router = system.router(heartbeat_seconds=1, ack_seconds=60)
    connector = system.connector()
    connector.send(signal.SIGSTOP)
    try:
        done = ls(system)
        assert done.code == 5, done.err
        assert "offline" in done.err
        router.wait_for_line("is offline")
        again = ls(system)
        assert again.code == 5
        assert "offline" in again.err
    finally:
        connector.send(signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_l3_a_signal_drains_and_the_running_transfer_ends(
    system: System, tmp_path: Path, number: signal.Signals
) -> None:
    router = system.router(drain_seconds=30)
    connector = system.connector()
    source = make_file(tmp_path / "datasets" / "data", 64 * MIB)
    with HeldGet(router.url, f"/datasets/{MAC}/data") as get:
        get.read(1 * MIB)
        router.send(number)
        router.wait_for_line("stopping")
        if number == signal.SIGHUP:
            router.send(number)  # by the shell, and then by the system
        refused = system.cli("fetch", MAC, "data", "-o", tmp_path / "other")
        assert refused.code == 5
        assert "shutting down" in refused.err
        assert not (tmp_path / "other").exists()
        body, whole = get.rest()
    assert whole
    assert bytes(body) == source.read_bytes()
    assert router.wait() == 0
    connector.wait_for_line("it restarts")


@pytest.mark.parametrize("role", ["router", "connector"])
def test_the_end_of_a_terminal_that_is_to_be_ignored_is(system: System, role: str) -> None:
    """As under ``nohup``."""
    router = system.router()
    words: tuple[str, ...] = ("router", "--port", "0")
    if role == "connector":
        words = ("connector", "--mac", MAC, "--root", str(system.tmp_path), "--router", router.url)
    command = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh", *COMMAND, *words)
    with subprocess.Popen(command, env=clean_environ(), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        first = next(
            line for line in process.stderr if b"listening" in line or b"connected" in line
        )
        assert first
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0  # and not -1, 130, or that of two signals


def test_l3_a_second_signal_ends_it_at_once(system: System, tmp_path: Path) -> None:
    router = system.router(drain_seconds=600)
    system.connector()
    sparse_file(tmp_path / "datasets" / "data", GIB)
    with HeldGet(router.url, f"/datasets/{MAC}/data") as get:
        get.read(1 * MIB)
        router.send(signal.SIGTERM)
        router.wait_for_line("stopping")
        router.send(signal.SIGTERM)
        assert router.wait() == 130
        _, whole = get.rest()
        assert not whole


@pytest.mark.parametrize("role", ["router", "connector"])
def test_l3_more_signals_until_the_end_leave_no_traceback(system: System, role: str) -> None:
    router = system.router()
    process = router if role == "router" else system.connector()
    while process.running:
        process.send(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(0.0005)  # far below what its end takes
    assert "Traceback" not in process.log


def test_l3_a_transfer_that_outlasts_the_grace_is_broken_off(
    system: System, tmp_path: Path
) -> None:
    router = system.router(drain_seconds=0.5)
    system.connector()
    sparse_file(tmp_path / "datasets" / "data", GIB)
    with HeldGet(router.url, f"/datasets/{MAC}/data") as get:
        get.read(1 * MIB)
        assert router.stop() == 0
        _, whole = get.rest()
        assert not whole


def test_l6_the_second_connector_of_a_mac_takes_over(system: System, tmp_path: Path) -> None:
    router = system.router()
    first = system.connector()
    sparse_file(tmp_path / "datasets" / "data", GIB)
    with HeldGet(router.url, f"/datasets/{MAC}/data") as get:
        get.read(1 * MIB)
        second = system.connector(root=tmp_path)
        first.wait_for_line("another connector took this MAC")
        _, whole = get.rest()
        assert not whole
        receipt = system.cli("receipt", get.request_id, "--wait", "5", "--json").json()["receipt"]
    assert receipt["outcome"] == "offline"
    assert receipt["error"]["code"] == "connector_replaced"
    assert "datasets/" in ls(system).out
    assert first.running
    assert second.running


def test_l6_the_first_comes_back_when_the_second_has_gone_and_never_before(system: System) -> None:
    router = system.router("--log-level", "debug", return_grace_seconds=0.2)
    first = system.connector(backoff_cap_seconds=0.2)
    second = system.connector()
    first.wait_for_line("another connector took this MAC")
    seen = 0
    for _ in range(3):
        router.wait_for_line("DEBUG .* refused a connector from .*, which yields", after=seen)
        seen = router.line_count()
    assert router.log.count("is here") == 2
    told = first.line_count()
    second.stop()
    first.wait_for_line("connected to", after=told)
    assert ls(system).code == 0


def test_l6_clones_that_keep_swapping_are_refused(system: System, tmp_path: Path) -> None:
    router = system.router(clash_swaps=2)
    first = system.connector()
    second = system.connector()
    third = system.connector()
    fourth = system.connector(connected=False)
    fourth.wait_for_line("several connectors use this MAC")
    router.wait_for_line("refused a connector from 127.0.0.1: one from 127.0.0.1 stays connected")
    first.wait_for_line("another connector took")
    second.wait_for_line("another connector took")
    assert ls(system).code == 0
    assert third.running


def test_l7_sixty_streams_fifty_places(system: System, tmp_path: Path) -> None:
    """50 run, 10 wait in line, `ls` answers meanwhile, and all of them end verified."""
    router = system.router()
    system.connector()
    source = make_file(tmp_path / "datasets" / "data", 24 * MIB)
    path = f"/datasets/{MAC}/data"
    held: list[HeldGet] = []
    with ThreadPoolExecutor(60) as pool, ExitStack() as stack:
        starting = [
            pool.submit(lambda: held.append(stack.enter_context(HeldGet(router.url, path))))
            for _ in range(60)
        ]
        wait_until(lambda: len(held) >= 50, 60, "50 streams to begin")
        assert "data" in ls(system).out
        assert system.cli("stat", MAC, "data").code == 0
        rows = system.cli("connectors", "--json").json()["connectors"]
        assert rows[0]["transfers"] == 60
        assert len(held) == 50
        done: list[HeldGet] = []
        while len(done) < 60:
            wait_until(lambda: len(held) > len(done), 60, "a place to be free")
            done.append(held[len(done)])
            body, whole = done[-1].rest()
            assert whole
            assert hashlib.sha256(body).hexdigest() == sha256(source)
            done[-1].body.clear()
        for future in starting:
            future.result(10)


async def test_l7_sixty_fetches_at_once_are_all_verified(system: System, tmp_path: Path) -> None:
    router = await asyncio.to_thread(system.router)
    await asyncio.to_thread(system.connector)
    source = make_file(tmp_path / "datasets" / "data", 9 * MIB)
    async with TunnelSync(router.url) as ts:
        fetched = await asyncio.gather(
            *(ts.fetch(MAC, "data", tmp_path / f"out {n}", mode=Mode.STREAM) for n in range(60))
        )
    assert len({one.root for one in fetched}) == 1
    assert {sha256(tmp_path / f"out {n}") for n in range(60)} == {sha256(source)}


def test_l7_a_cancelled_one_leaves_the_line(system: System, tmp_path: Path) -> None:
    router = system.router()
    connector = system.connector(places=1)
    sparse_file(tmp_path / "datasets" / "data", GIB)
    make_file(tmp_path / "datasets" / "small", 1000)
    with HeldGet(router.url, f"/datasets/{MAC}/data") as first:
        first.read(1 * MIB)
        second = system.start("fetch", MAC, "data", "-o", str(tmp_path / "second"))
        wait_until(lambda: transfers(system) == 2, 20, "the second to be asked for")
        third = system.start("fetch", MAC, "small", "-o", str(tmp_path / "third"))
        wait_until(lambda: transfers(system) == 3, 20, "the third to be asked for")
        second.send(signal.SIGINT)
        assert second.wait() == 130
        wait_until(lambda: transfers(system) == 2, 20, "the second to be gone")
        assert not (tmp_path / "third").exists()
    assert third.wait() == 0, third.log
    assert (tmp_path / "third").stat().st_size == 1000
    assert not (tmp_path / "second").exists()
    assert connector.running


def transfers(system: System) -> int:
    """Return how many transfers of the connector are under way."""
    rows = system.cli("connectors", "--json").json()["connectors"]
    count = rows[0]["transfers"]
    assert isinstance(count, int)
    return count


def test_l7_who_waits_too_long_is_told(system: System, tmp_path: Path) -> None:
    router = system.router()
    system.connector(places=1, queue_wait_seconds=0.5)
    sparse_file(tmp_path / "datasets" / "data", GIB)
    with HeldGet(router.url, f"/datasets/{MAC}/data") as first:
        first.read(1 * MIB)
        done = system.cli("fetch", MAC, "data", "-o", tmp_path / "second")
    assert done.code == 6, done.err
    assert "places" in done.err
    assert not (tmp_path / "second").exists()


def test_l7_a_full_line_is_told_at_once(system: System, tmp_path: Path) -> None:
    router = system.router()
    system.connector(places=1, waiting=0)
    sparse_file(tmp_path / "datasets" / "data", GIB)
    with HeldGet(router.url, f"/datasets/{MAC}/data") as first:
        first.read(1 * MIB)
        done = system.cli("fetch", MAC, "data", "-o", tmp_path / "second")
    assert done.code == 5, done.err
    assert "wait for a place" in done.err


def test_l8_the_router_comes_back_and_so_does_the_connector(system: System, tmp_path: Path) -> None:
    router = system.router()
    connector = system.connector()
    make_file(tmp_path / "datasets" / "data", 1000)
    port = router.port
    router.kill()
    connector.wait_for_line("is away")
    seen = connector.line_count()
    system.router(port=port)
    connector.wait_for_line("connected to", 60, after=seen)
    assert system.cli("fetch", MAC, "data", "-o", tmp_path / "out").code == 0


@pytest.mark.parametrize("what", ["unknown", "offline"])
def test_a_connector_that_is_not_there(system: System, tmp_path: Path, what: str) -> None:
    router = system.router(return_grace_seconds=0)
    connector = system.connector()
    if what == "offline":
        connector.stop()
        router.wait_for_line("offline")
    done = system.cli("fetch", MAC if what == "offline" else OTHER, "data", "-o", tmp_path / "out")
    assert done.code == (5 if what == "offline" else 3)
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_router_opens_as_many_connections_as_it_may(system: System) -> None:
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, most // 2), most))
    try:
        router = system.router()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    limits = Path(f"/proc/{router.pid}/limits").read_text()
    assert re.search(rf"^Max open files\s+{most}\s+{most}\s", limits, re.MULTILINE)


async def test_a_router_that_stops_says_when_to_come_back(system: System) -> None:
    router = system.router()
    async with played(router.url, MAC) as connector:
        router.send(signal.SIGTERM)
        message = await connector.socket.receive()
        assert message.data == CLOSE_RESTART
        assert str(message.extra).endswith("; come back within 1 s")
    assert router.wait() == 0  # a second signal in its last moments is not of this test
