"""``tunnelsync bench`` as a process, against a real router and connectors: what its user sees.

Each bench here ends by its number of runs or bytes, and not by its time, unless it is about that.
"""

import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import MAC, Completed, System, cli, environ_of, make_file, wait_until
from s3 import S3Server
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.settings import MIB, StoreSettings

EMPTY_MAC = "cc-28-aa-00-11-33"
SIZES = {"a.csv": 1000, "deep/b.bin": MIB, "c.bin": 5 * BLOCK_BYTES + 7}
SHORT = ("--time", "600", "--repeats", "1", "--max-bytes", "400MiB")
RUN_MEMBERS = {
    *("mode", "dataset", "dataset_bytes", "bytes", "streams", "runs", "median_seconds"),
    *("bytes_per_second", "first_seconds", "samples_seconds"),
}
LATENCY_MEMBERS = {
    *("what", "mode", "samples", "median_seconds", "p95_seconds", "p99_seconds"),
    "samples_seconds",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A router, a connector with datasets, and one with an empty folder."""
    system = System(tmp_path_factory.mktemp("bench"))
    try:
        system.router()
        for name, size in SIZES.items():
            make_file(system.tmp_path / "datasets" / name, size)
        (system.tmp_path / "datasets" / "nothing").touch()
        system.connector()
        system.connector(mac=EMPTY_MAC, root=system.tmp_path / "empty")
        yield system
    finally:
        system.stop()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A current folder, which must be as empty after the test as before."""
    folder = tmp_path / "here"
    (folder / "tmp").mkdir(parents=True)
    yield folder
    assert [path.name for path in folder.rglob("*")] == ["tmp"]


def bench(system: System, here: Path, *args: str, **env: str) -> Completed:
    return system.cli("bench", *args, cwd=here, env={"TMPDIR": str(here / "tmp"), **env})


@pytest.mark.parametrize(("columns", "encoding"), [(80, "utf-8"), (50, "ascii")])
def test_a_bench_prints_its_tables_bars_and_advice(
    shared: System, here: Path, columns: int, encoding: str
) -> None:
    done = bench(shared, here, MAC, *SHORT, COLUMNS=str(columns), PYTHONIOENCODING=encoding)
    assert (done.code, done.err) == (0, "")
    shown = done.out.splitlines()
    assert max(map(len, shown)) <= columns
    assert done.out.isascii() == (encoding == "ascii")
    assert ("█" if encoding == "utf-8" else "#") in done.out
    whole = " ".join(done.out.split())
    assert "with a.csv (1 KB), deep/b.bin (1 MiB), c.bin (21 MB)" in whole
    latency = [line for line in shown if re.match("router alone|stat, with|first byte", line)]
    assert [line.split()[-1] for line in latency] == ["100"] * 3
    by_size = shown[shown.index("mode stream, one stream") + 2 :]
    labels = [line.split()[0] for line in by_size[: by_size.index("")]]
    assert labels == ["1", "1", "4", "21"]
    assert "mode stream, 16 MiB by several streams" in shown
    assert "what follows" in shown
    assert re.search(r"Mode stream: .*--parallel", whole)


def test_json_has_figures_with_their_units(shared: System, here: Path) -> None:
    done = bench(
        shared, here, MAC, "c.bin", "a.csv", "--json", "--mode", "buffer", *SHORT[:-1], "8MB"
    )
    assert (done.code, done.err) == (0, "")
    told = done.json()
    assert told.keys() == {
        *("status", "mac", "seconds", "received_bytes", "latency", "by_size", "by_streams"),
        *("advice", "notes"),
    }
    assert (told["status"], told["mac"], told["by_streams"]) == ("success", MAC, [])
    assert [(row["what"], row["mode"], row["samples"]) for row in told["latency"]] == [
        ("router", None, 100),
        ("stat", None, 100),
        ("first_byte", "buffer", 100),
    ]
    for row in told["latency"]:
        assert row.keys() == LATENCY_MEMBERS
        assert 0 < row["median_seconds"] <= row["p95_seconds"] <= row["p99_seconds"]
    assert [(row["dataset"], row["bytes"]) for row in told["by_size"]] == [("a.csv", 1000)]
    assert told["notes"] == [
        "Mode buffer left out c.bin (21 MB): a run may bring 2 MB; --max-bytes 336 MB allows more."
    ]
    assert_right(told)


def assert_right(told: dict[str, Any]) -> None:
    """Each row of runs has its members, and its rate is that of its median."""
    for row in [*told["by_size"], *told["by_streams"]]:
        assert row.keys() == RUN_MEMBERS
        assert row["bytes_per_second"] == pytest.approx(row["bytes"] / row["median_seconds"])
        assert len(row["samples_seconds"]) == row["runs"] >= 1
        assert row["bytes"] <= row["dataset_bytes"] == SIZES[row["dataset"]]
    assert told["received_bytes"] >= sum(
        row["bytes"] * row["runs"] for row in [*told["by_size"], *told["by_streams"]]
    )


def test_offload_is_measured_beside_stream_where_there_is_a_store(
    tmp_path: Path, here: Path, store_server: S3Server
) -> None:
    store = environ_of(StoreSettings, _store(store_server))
    system = System(tmp_path, store)
    try:
        system.router()
        make_file(tmp_path / "datasets/c.bin", SIZES["c.bin"])
        system.connector()
        modes = ("--mode", "stream", "--mode", "offload")
        told = bench(
            system, here, MAC, "--json", *modes, "--time", "600", "--max-bytes", "400MB",
            "--repeats", "1",
        ).json()  # fmt: skip
    finally:
        system.stop()
    assert (told["status"], told["notes"]) == ("success", [])
    for mode in ("stream", "offload"):
        rows = [row for row in told["by_size"] if row["mode"] == mode]
        assert [row["bytes"] for row in rows] == [4 * MIB, SIZES["c.bin"]]
        rows = [row for row in told["by_streams"] if row["mode"] == mode]
        assert [row["streams"] for row in rows] == [1, 2, 4]
    assert any("in mode offload at" in text for text in told["advice"])
    assert_right(told)


def _store(server: S3Server) -> dict[str, object]:
    settings = server.settings("bench")
    names = ("endpoint", "bucket", "access_key", "secret_key", "create_bucket")
    return {name: getattr(settings, name) for name in names}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Missing argument 'MAC'"),
        (["nonsense"], "'nonsense' is not a MAC address"),
        ([MAC, "../x"], "cannot be the name of a dataset"),
        ([MAC, "--mode", "auto"], "'auto' is not one of"),
        ([MAC, "--time", "0"], "not in the range"),
        ([MAC, "--max-bytes", "7"], "less than 1 MiB says nothing"),
        ([MAC, "--max-bytes", "many"], "is no number of bytes, such as 500MB"),
        ([MAC, "--repeats", "0"], "not in the range"),
        ([MAC, "--router", "ftp://x"], "ftp"),
    ],
)
def test_wrong_arguments_are_a_usage_error(here: Path, args: list[str], words: str) -> None:
    done = cli("bench", *args, cwd=here)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert "hint: " in done.err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["00-00-00-00-00-01"], 3, "no connector 00-00-00-00-00-01"),
        ([MAC, "nope"], 3, 'there is no "nope"'),
        ([MAC, "nothing"], 3, "is empty"),
        ([EMPTY_MAC], 3, "Put a file under the connector's root"),
        ([MAC, "--router", "http://127.0.0.1:1"], 5, "connection refused"),
        ([MAC, "a.csv", "--mode", "offload", "--repeats", "1"], 4, "no store"),
    ],
)
def test_what_cannot_be_measured_is_told_with_its_exit_code(
    shared: System, here: Path, args: list[str], code: int, words: str
) -> None:
    done = bench(shared, here, *args)
    assert done.code == code
    assert words in done.err
    assert "hint: " in done.err
    assert done.out.startswith("0.0 MB received") if code == 4 else done.out == ""


def test_a_connector_that_hangs_ends_it_at_its_time(system: System, here: Path) -> None:
    system.router()
    connector = system.connector()
    connector.send(signal.SIGSTOP)
    try:
        done = bench(system, here, MAC, "--time", "1", "--json")
    finally:
        connector.send(signal.SIGCONT)
    assert (done.code, done.json()["error"]["code"]) == (6, "timed_out")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_ctrl_c_in_the_middle_tells_what_there_is(
    shared: System, here: Path, flags: tuple[str, ...]
) -> None:
    def delivered() -> int:
        with urllib.request.urlopen(f"{shared.url}/metrics") as answer:
            text = answer.read().decode()
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in text.splitlines()
            if line.startswith("tunnelsync_transfers_total") and 'mode="stream"' in line
        )

    before, out = delivered(), here / "tmp" / "out"
    with out.open("wb") as file:
        args = ("bench", MAC, "--repeats", "1000", "--time", "600", "--max-bytes", "999GB", *flags)
        process = shared.start(*args, out=file.fileno())
        wait_until(lambda: delivered() > before + 3, 30, "a few transfers")
        process.send(signal.SIGINT)
        assert process.wait() == 130
    done = Completed(130, out.read_text(), process.log)
    out.unlink()
    if flags:
        told = done.json()
        assert (told["status"], told["error"]["code"]) == ("error", "cancelled")
        assert told["by_size"][0]["dataset"] == "a.csv"
        assert done.err == ""
    else:
        assert "mode stream, one stream" in done.out.splitlines()
        assert done.err == "error: interrupted"
