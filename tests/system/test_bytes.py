"""Faults of the bytes: a client never takes a part, or a mixture, for the whole."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from changes import edit, grow, swap
from harness import MAC, System, make_file, sha256, sparse_file, wait_until
from held import HeldGet
from tunnelsync.client.part import JOURNAL_SUFFIX, SUFFIX
from tunnelsync.client.target import beside
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.settings import GIB, MIB

BIG = 8 * GIB
SIZES = (0, 1, 1024, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES)


@pytest.fixture(params=[True, False], ids=["spliced", "copied"])
def zero_copy(request: pytest.FixtureRequest) -> bool:
    """Both ways of the relay: they must not differ in what anybody sees."""
    value = request.param
    assert isinstance(value, bool)
    return value


def begun(target: Path, size: int = 8 * MIB) -> Callable[[], bool]:
    """Tell whether a fetch has brought so much already."""
    part = beside(target, SUFFIX)
    return lambda: part.exists() and part.stat().st_size >= size


def left(folder: Path) -> list[str]:
    """Return the names that a fetch left behind."""
    return sorted(one.name for one in folder.iterdir())


KEPT = ["big" + JOURNAL_SUFFIX, "big" + SUFFIX]
"""What is kept of a fetch that was cut off, for the next one."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("mode", ["buffer", "stream", "auto"])
def test_b9_sizes_around_a_block_arrive_whole(system: System, out: Path, mode: str) -> None:
    system.router()
    system.connector()
    for size in SIZES:
        source = make_file(system.tmp_path / "datasets" / f"of {size}", size, seed=size)
        target = out / f"{mode} {size}"
        done = system.cli("fetch", "--mode", mode, MAC, source.name, "-o", target)
        assert done.code == 0, done.err
        assert sha256(target) == sha256(source)
        assert target.stat().st_mtime_ns == source.stat().st_mtime_ns


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_b9_a_sparse_dataset_over_4_gib_streams_whole(system: System, out: Path) -> None:
    size = 4 * GIB + BLOCK_BYTES + 7
    pieces = {0: b"begin", 2**32 - 3: b"across", size - 3: b"end"}
    source = sparse_file(system.tmp_path / "datasets" / "sparse", size, pieces)
    system.router()
    system.connector()
    digest = system.cli("digest", source, seconds=120).out.split()[0]
    done = system.cli(
        "fetch", "--mode", "stream", "--json", MAC, "sparse", "-o", out / "sparse", seconds=240
    )
    assert done.code == 0, done.err
    assert done.json()["root"] == digest
    with (out / "sparse").open("rb") as file:
        for offset, data in pieces.items():
            file.seek(offset)
            assert file.read(len(data)) == data
    assert (out / "sparse").stat().st_size == size
    (out / "sparse").unlink()


def test_b1_connector_killed_midway_is_never_a_clean_end(
    system: System, out: Path, zero_copy: bool
) -> None:
    system.router(zero_copy=zero_copy, resume_seconds=1)
    connector = system.connector()
    sparse_file(system.tmp_path / "datasets" / "big", BIG)
    fetch = system.start("fetch", "--mode", "stream", MAC, "big", "-o", str(out / "big"))
    wait_until(begun(out / "big"), 30, "8 MiB to arrive")
    connector.kill()
    assert fetch.wait(30) == 7, fetch.log
    assert "did not return" in fetch.log
    assert left(out) == KEPT


def test_b1_router_killed_midway_is_never_a_clean_end(system: System, out: Path) -> None:
    router = system.router()
    system.connector()
    sparse_file(system.tmp_path / "datasets" / "big", BIG)
    fetch = system.start("fetch", "--mode", "stream", MAC, "big", "-o", str(out / "big"))
    wait_until(begun(out / "big"), 30, "8 MiB to arrive")
    router.kill()
    assert fetch.wait(30) == 7, fetch.log
    assert left(out) == KEPT


def shrink(path: Path) -> None:
    os.truncate(path, 16 * MIB)


@pytest.mark.parametrize("change", [shrink, grow, edit, swap])
def test_b2_a_dataset_that_changes_while_it_is_read(
    system: System, out: Path, zero_copy: bool, change: Callable[[Path], None]
) -> None:
    system.router(zero_copy=zero_copy)
    system.connector()
    source = sparse_file(system.tmp_path / "datasets" / "big", 512 * MIB)
    fetch = system.start("fetch", "--mode", "stream", MAC, "big", "-o", str(out / "big"))
    wait_until(begun(out / "big"), 30, "8 MiB to arrive")
    change(source)
    assert fetch.wait(90) == 7, fetch.log
    assert "while it was read" in fetch.log
    assert left(out) == []


def test_b2_a_raw_stream_of_a_changed_dataset_is_cut(system: System, zero_copy: bool) -> None:
    router = system.router(zero_copy=zero_copy)
    system.connector()
    source = sparse_file(system.tmp_path / "datasets" / "big", 256 * MIB)
    with HeldGet(router.url, f"/datasets/{MAC}/big") as get:
        get.read(1 * MIB)
        grow(source)
        _, whole = get.rest()
        assert not whole
        receipt = system.cli("receipt", get.request_id, "--wait", "10", "--json").json()["receipt"]
    assert receipt["outcome"] == "broken"
    assert receipt["error"]["code"] == "dataset_changed"
