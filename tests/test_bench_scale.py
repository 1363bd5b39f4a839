"""scripts/bench_scale.py measures its parts, holds them to bars, and leaves nothing behind.

No figure is judged here.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from harness import clean_environ

SCRIPT = Path(__file__).parents[1] / "scripts/bench_scale.py"
RUN_SECONDS = 110


def bench(tmp_path: Path, *parts: str) -> tuple[str, dict[str, Any]]:
    folder, result = tmp_path / "files", tmp_path / "deep/scale.json"
    folder.mkdir(exist_ok=True)
    chosen = [word for part in parts for word in ("--only", part)]
    done = subprocess.run(
        (sys.executable, SCRIPT, "--quick", *chosen, "--json", result, "--folder", folder),
        env=clean_environ({"COLUMNS": "160"}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not os.listdir(folder)
    return done.stdout, orjson.loads(result.read_bytes())


def figures(document: dict[str, Any], part: str) -> list[dict[str, Any]]:
    assert document["parts"][part]["quick"]
    assert document["parts"][part]["machine"]["cores"] >= 1
    found: list[dict[str, Any]] = document["parts"][part]["figures"]
    for figure in found:
        least, value, limit = figure["least"], figure["value"], figure["limit"]
        held = None if limit is None else value >= limit if least else value <= limit
        assert figure["met"] is held
    return found


def test_small_requests_are_counted_and_a_second_part_keeps_the_first(tmp_path: Path) -> None:
    printed, document = bench(tmp_path, "requests")
    first = figures(document, "requests")
    assert all(figure["value"] > 0 for figure in first)
    assert all(figure["name"] in printed for figure in first)
    _, document = bench(tmp_path, "streams")
    assert figures(document, "requests") == first
    assert {figure["unit"] for figure in figures(document, "streams")} == {"MB/s", "s/GiB", ""}


@pytest.mark.slow
def test_a_crowd_comes_is_asked_and_comes_back(tmp_path: Path) -> None:
    _, document = bench(tmp_path, "idle")
    names = {figure["name"]: figure["value"] for figure in figures(document, "idle")}
    assert names["stat of a dataset of any of them, median"] > 0
    assert 0 < names["all back after the router is up again"] < RUN_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("part", ["memory", "first-byte", "line", "small", "offload"])
def test_the_other_parts_measure_something(tmp_path: Path, part: str) -> None:
    _, document = bench(tmp_path, part)
    assert all(figure["value"] > 0 for figure in figures(document, part))
