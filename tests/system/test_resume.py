"""Fetches that are cut off, by real signals to real processes, and go on where they were."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from harness import MAC, Connector, Process, Router, System, make_file, sha256, wait_until
from proxy import in_a_thread
from tunnelsync.client.journal import Journal
from tunnelsync.client.part import JOURNAL_SUFFIX, SUFFIX
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.settings import MIB
from valve import Valve

SIZE = 512 * MIB + 7
SOON = {"journal_seconds": 0.05}
"""A journal that is written often, so that a test need not wait for it."""
HELD_AFTER = SIZE // 4
"""So much of a dataset passes the line to the router; the rest waits until a test has seen it."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def source(system: System) -> Path:
    return make_file(system.tmp_path / "datasets" / "big", SIZE)


@pytest.fixture
def line() -> Iterator[Valve]:
    """The line from a connector to its router, on which most of a dataset waits if it is held."""
    with in_a_thread(Valve(0)) as valve:
        yield valve


def connected(system: System, line: Valve, **env: Any) -> tuple[Router, Connector]:
    """Start a router, and a connector whose line to it is held."""
    router = system.router(**env)
    line.target_port = router.port
    line.hold(HELD_AFTER)
    return router, system.connector(TUNNELSYNC_ROUTER=line.url)


def journaled(target: Path, since_ns: int = 0) -> int:
    """Return how many blocks the journal of a target says are safe, if it is not too old."""
    path = target.with_name(target.name + JOURNAL_SUFFIX)
    kept = Journal(path, 64 * MIB).read()
    with suppress(FileNotFoundError):
        if kept and path.stat().st_ctime_ns >= since_ns:
            return len(kept.blocks)
    return 0


def begun(target: Path, process: Process, blocks: int = 4) -> None:
    """Wait until some blocks are safe, with the fetch still under way."""
    wait_until(lambda: journaled(target) >= blocks or not process.running, 30, "a journal")
    assert process.running, process.log


def fetching(system: System, target: Path, *args: str, **env: Any) -> Process:
    """Start a fetch that a test cuts off."""
    words = ("fetch", "--mode", "stream", MAC, "big", "-o", str(target), *args)
    return system.start(*words, **{**SOON, **env})


def cut_off(system: System, line: Valve, target: Path) -> int:
    """Start router and connector, kill a fetch midway; return how many of its blocks are safe."""
    connected(system, line)
    fetch = fetching(system, target)
    begun(target, fetch)
    fetch.kill()
    line.release()
    return journaled(target)


def fetched(system: System, target: Path, *args: str | Path) -> dict[str, Any]:
    """Run a fetch to its good end, and return its receipt."""
    receipt = target.with_name("receipt.json")
    words = ("fetch", "--mode", "stream", MAC, "big", "-o", str(target))
    done = system.cli(*words, "--receipt", receipt, *args)
    assert done.code == 0, done.err
    value = orjson.loads(receipt.read_bytes())
    receipt.unlink()
    assert isinstance(value, dict)
    return value


def assert_whole(target: Path, source: Path) -> None:
    """See that the target is the dataset, and that nothing else is left of the fetch."""
    assert sha256(target) == sha256(source)
    assert target.stat().st_mtime_ns == source.stat().st_mtime_ns
    assert [one.name for one in target.parent.iterdir()] == [target.name]


def test_b1_what_came_before_the_connector_died_is_not_fetched_again(
    system: System, line: Valve, out: Path, source: Path
) -> None:
    _, connector = connected(system, line, resume_seconds=0.5)
    fetch = fetching(system, out / "big")
    begun(out / "big", fetch)
    connector.kill()
    line.release()
    assert fetch.wait(30) == 7, fetch.log
    assert "verified bytes are kept" in fetch.log
    assert not (out / "big").exists()
    safe = journaled(out / "big")
    system.connector()
    receipt = fetched(system, out / "big")
    assert receipt["resumed_bytes"] == safe * BLOCK_BYTES
    assert receipt["received_bytes"] == SIZE - safe * BLOCK_BYTES
    assert_whole(out / "big", source)


def test_b3_a_dataset_that_changed_since_starts_over_and_says_so(
    system: System, line: Valve, out: Path, source: Path
) -> None:
    cut_off(system, line, out / "big")
    make_file(source, SIZE - BLOCK_BYTES, seed=1)
    receipt = fetched(system, out / "big")
    assert receipt["notes"][1] == "the dataset has changed since: starting over"
    assert (receipt["resumed_bytes"], receipt["received_bytes"]) == (0, SIZE - BLOCK_BYTES)
    assert_whole(out / "big", source)


def without_journal(part: Path, journal: Path) -> None:
    journal.unlink()


def of_another(part: Path, journal: Path) -> None:
    data = journal.read_bytes()
    assert b'"dataset":"big"' in data
    journal.write_bytes(data.replace(b'"dataset":"big"', b'"dataset":"pig"'))


def cut_short(part: Path, journal: Path) -> None:
    os.truncate(part, BLOCK_BYTES + 1)


def altered_copy(part: Path, journal: Path) -> None:
    copy = part.with_name("copy")
    shutil.copy(part, copy)
    with copy.open("r+b") as file:
        file.write(b"not what was there")
    copy.replace(part)


def altered(part: Path, journal: Path) -> None:
    with part.open("r+b") as file:
        file.write(b"not what was there")


@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        (without_journal, lambda safe: 0),
        (of_another, lambda safe: 0),
        (cut_short, lambda safe: 1),
        (altered_copy, lambda safe: safe - 1),
        (altered, lambda safe: safe - 1),
    ],
)
def test_b4_a_part_is_trusted_no_further_than_its_digests_prove(
    system: System,
    line: Valve,
    out: Path,
    source: Path,
    spoil: Callable[[Path, Path], None],
    kept: Callable[[int], int],
) -> None:
    safe = cut_off(system, line, out / "big")
    spoil(out / f"big{SUFFIX}", out / f"big{JOURNAL_SUFFIX}")
    receipt = fetched(system, out / "big")
    assert receipt["resumed_bytes"] == kept(safe) * BLOCK_BYTES
    assert_whole(out / "big", source)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_a_fetch_leaves_that_was_told_to_stop_is_trusted_unseen(
    system: System, line: Valve, out: Path, source: Path, number: signal.Signals
) -> None:
    connected(system, line)
    fetch = fetching(system, out / "big")
    begun(out / "big", fetch)
    fetch.send(number)
    if number == signal.SIGHUP:
        fetch.send(number)  # by the shell, and then by the system
    assert fetch.wait(30) == 130, fetch.log
    line.release()
    receipt = fetched(system, out / "big")
    resumed = f"{receipt['resumed_bytes']:,}"
    assert receipt["notes"][0] == f"going on from {resumed} bytes verified before"
    assert_whole(out / "big", source)


@pytest.mark.parametrize("args", [(), ("--no-resume",)])
def test_b4_a_mistyped_mac_costs_nothing_that_was_verified(
    system: System, line: Valve, out: Path, source: Path, args: tuple[str, ...]
) -> None:
    safe = cut_off(system, line, out / "big")
    journal = (out / f"big{JOURNAL_SUFFIX}").read_bytes()
    done = system.cli("fetch", "cc-28-aa-00-11-99", "big", "-o", out / "big", *args, seconds=20)
    assert done.code == 3, done.err
    assert (out / f"big{JOURNAL_SUFFIX}").read_bytes() == journal
    assert fetched(system, out / "big")["resumed_bytes"] == safe * BLOCK_BYTES
    assert_whole(out / "big", source)


def test_b7_a_client_killed_at_any_moment_leaves_the_old_file_or_the_new(
    system: System, out: Path, source: Path
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    system.router()
    system.connector()
    target = out / "big"
    old = make_file(target, 1000, seed=9).read_bytes()
    for _ in range(8):
        blocks = journaled(target)
        fetch = fetching(system, target, "--force")
        goal = chance.randrange(SIZE // BLOCK_BYTES)
        wait_until(lambda: journaled(target) >= goal or not fetch.running, 30, "blocks")  # noqa: B023
        fetch.kill()
        if target.stat().st_size != len(old):
            break
        assert target.read_bytes() == old
        assert journaled(target) >= blocks, "what was safe is lost"
    fetched(system, target, "--force")
    assert_whole(target, source)


def test_b10_two_clients_write_one_target_and_the_second_is_told_which(
    system: System, line: Valve, out: Path, source: Path
) -> None:
    connected(system, line)
    first = fetching(system, out / "big")
    begun(out / "big", first)
    second = system.cli("fetch", MAC, "big", "-o", out / "big")
    assert second.code == 4
    assert f"another process ({first.pid}) is writing" in second.err
    line.release()
    assert first.wait(60) == 0, first.log
    assert_whole(out / "big", source)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_b11_a_router_that_restarts_is_waited_for(
    system: System, line: Valve, out: Path, source: Path, how: str
) -> None:
    router, _ = connected(system, line, drain_seconds=0)
    fetch = fetching(system, out / "big", retry_for_seconds=60)
    begun(out / "big", fetch)
    router.send(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    router.wait()
    line.release()
    system.router(port=router.port)
    assert fetch.wait(60) == 0, fetch.log
    assert "trying again in" in fetch.log
    assert_whole(out / "big", source)


def test_b11_a_connector_that_is_away_for_a_moment_is_waited_for(
    system: System, line: Valve, out: Path, source: Path
) -> None:
    _, connector = connected(system, line, resume_seconds=0.5, return_grace_seconds=0.5)
    fetch = fetching(system, out / "big", retry_for_seconds=60)
    begun(out / "big", fetch)
    connector.kill()
    line.release()
    fetch.wait_for_line("trying again in")
    system.connector()
    assert fetch.wait(60) == 0, fetch.log
    assert_whole(out / "big", source)


def test_stdout_goes_on_after_a_break_and_gets_each_byte_once(
    system: System, out: Path, source: Path
) -> None:
    router = system.router(drain_seconds=0)
    system.connector()
    reader, writer = os.pipe()
    with (out / "big").open("wb") as file, os.fdopen(reader, "rb", buffering=0) as pipe:
        command = ["fetch", "--mode", "stream", MAC, "big", "-o", "-"]
        fetch = system.start(*command, out=writer, retry_for_seconds=60)
        os.close(writer)
        got = 0
        while data := pipe.read(MIB):
            if got < 16 * MIB <= got + len(data):
                router.kill()
                system.router(port=router.port)
            got += len(data)
            file.write(data)
    assert fetch.wait(10) == 0, fetch.log
    assert "trying again in" in fetch.log
    assert sha256(out / "big") == sha256(source)


@pytest.mark.parametrize("args", [("--no-resume",), ("--restart",)])
def test_what_was_kept_is_dropped_when_that_is_asked_for(
    system: System, line: Valve, out: Path, source: Path, args: tuple[str, ...]
) -> None:
    _, connector = connected(system, line, resume_seconds=0.5)
    fetch = fetching(system, out / "big")
    begun(out / "big", fetch)
    fetch.kill()
    line.hold(HELD_AFTER)
    began_ns = (out / f"big{JOURNAL_SUFFIX}").stat().st_ctime_ns + 1
    again = fetching(system, out / "big", *args)
    if args == ("--no-resume",):
        part, journal = (out / f"big{suffix}" for suffix in (SUFFIX, JOURNAL_SUFFIX))
        wait_until(lambda: not journal.exists() and part.stat().st_size, 30, "bytes anew")
    else:
        wait_until(lambda: journaled(out / "big", began_ns), 30, "a journal of its own")
    connector.kill()
    line.release()
    assert again.wait(30) == 7, again.log
    assert "going on from" not in again.log
    left = {one.name for one in out.iterdir()}
    assert left == (set() if args == ("--no-resume",) else {f"big{SUFFIX}", f"big{JOURNAL_SUFFIX}"})


def test_errors_that_do_not_heal_end_at_once(system: System, out: Path) -> None:
    system.router()
    system.connector()
    patient = ("--retry-for", "3600")
    for words, code in [
        (("no-such",), 3),
        (("big", "--mode", "offload"), 4),
    ]:
        make_file(system.tmp_path / "datasets" / "big", 10)
        done = system.cli("fetch", *patient, MAC, *words, "-o", out / "x", seconds=20)
        assert done.code == code, done.err
        assert "trying again" not in done.err
    done = system.cli("fetch", *patient, "cc-28-aa-00-11-99", "big", "-o", out / "x", seconds=20)
    assert done.code == 3, done.err


def test_a_receipt_tells_of_a_fetch_that_failed_and_verify_checks_one_that_did_not(
    system: System, out: Path
) -> None:
    system.router()
    system.connector()
    make_file(system.tmp_path / "datasets" / "big", 3 * BLOCK_BYTES + 1)
    target, receipt = out / "big", out / "receipt.json"
    failed = system.cli("fetch", MAC, "nope", "--receipt", receipt)
    said = orjson.loads(receipt.read_bytes())
    assert (failed.code, said["outcome"], said["error"]["code"]) == (
        *(3, "refused"),
        "dataset_not_found",
    )
    assert system.cli("verify", target, receipt).code == 2
    done = system.cli("fetch", MAC, "big", "-o", target, "--receipt", receipt)
    assert done.code == 0, done.err
    said = orjson.loads(receipt.read_bytes())
    assert (said["outcome"], said["size"]) == ("delivered", 3 * BLOCK_BYTES + 1)
    (transfer,) = said["transfers"]
    known = system.cli("receipt", transfer["request_id"], "--wait", "5", "--json").json()["receipt"]
    assert known["outcome"] == transfer["outcome"] == "delivered"
    right = system.cli("verify", target, receipt)
    assert right.code == 0, right.err
    assert said["root"] in right.out
    with target.open("r+b") as file:
        file.seek(BLOCK_BYTES)
        file.write(b"x")
    wrong = system.cli("verify", target, receipt)
    assert wrong.code == 7
    assert "root" in wrong.err
    os.truncate(target, 5)
    assert "has 5 bytes" in system.cli("verify", target, receipt).err
    assert system.cli("verify", target, target).code == 2
    for clash in (("-o", target, "--receipt", target), ("--receipt", "big"), ("--receipt", out)):
        done = system.cli("fetch", MAC, "big", "--force", *clash)
        assert done.code == 2, done.err
        assert target.stat().st_size == 5
    assert system.cli("verify", target, out / "none").code == 3
