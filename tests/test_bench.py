"""scripts/bench.py measures, compares and leaves nothing behind. No absolute time is judged."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from harness import clean_environ

SCRIPT = Path(__file__).parents[1] / "scripts/bench.py"
ROLES = {"router", "connector", "client"}


@pytest.mark.slow
def test_a_quick_bench_of_stream_gives_ratios_and_positive_figures(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    result = tmp_path / "deep/result.json"
    command = (sys.executable, SCRIPT, "--quick", "--mode", "stream", "--max-size", "10MB")
    done = subprocess.run(
        (*command, "--json", result, "--folder", folder),
        env=clean_environ({"COLUMNS": "150"}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mode stream" in done.stdout
    assert not os.listdir(folder)

    document = orjson.loads(result.read_bytes())
    assert document["machine"]["cores"] >= 1
    assert document["machine"]["libraries"]["aiohttp"]
    left_out = " ".join(document["notes"])
    assert [row["size_bytes"] for row in document["rows"]] == [10**4, 10**5, 10**6, 10**7]
    for row in document["rows"]:
        for peer in ("nginx+curl", "socat"):
            assert peer in row["ratios"] or f"{peer} left out" in left_out
        assert all(ratio > 0 for ratio in row["ratios"].values())
        assert row["peak_bytes"].keys() == ROLES
        assert all(peak > 0 for peak in row["peak_bytes"].values())
        ours = row["contenders"]["tunnelsync"]
        assert ours["megabytes_per_second"] > 0
        assert ours["first_byte_seconds"] > 0
        assert ours["cpu_seconds_per_gib"].keys() == ROLES
        assert all(used > 0 for used in ours["cpu_seconds_per_gib"].values())
        assert len(ours["raw"]) == row["runs"]
    assert document["latencies"][0]["median_seconds"] > 0
    assert document["bars"]


def test_a_bench_without_peers_says_which_and_goes_on(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = (sys.executable, SCRIPT, "--quick", "--mode", "stream", "--max-size", "10KB")
    done = subprocess.run(
        (*command, "--json", result, "--folder", tmp_path),
        env=clean_environ({"PATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" in done.stdout
    (row,) = orjson.loads(result.read_bytes())["rows"]
    assert "socat" not in row["ratios"]
