"""scripts/soak.py plays faults, compares what comes, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from harness import clean_environ, wait_until

SCRIPT = Path(__file__).parents[1] / "scripts/soak.py"
SECONDS = 20


def started(folder: Path, *args: str, **environ: str) -> "subprocess.Popen[str]":
    """Start a soak that puts its files, and those of its processes, into a folder."""
    return subprocess.Popen(
        (sys.executable, SCRIPT, "--folder", folder, "--verbose", *args),
        env=clean_environ(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(folder: Path) -> list[str]:
    """What still runs with a soak's folder as its own: the soak tells it to each process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended, or is not ours to look into
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_soak_of_some_seconds_finds_nothing_wrong(tmp_path: Path) -> None:
    folder, result = tmp_path / "files", tmp_path / "deep/result.json"
    folder.mkdir()
    args = ("--minutes", str(SECONDS / 60), "--seed", "7", "--json", str(result))
    with started(folder, *args) as soak:
        out, _ = soak.communicate()
    assert soak.returncode == 0, out
    for words in ("seed 7", "fetches", "faults", "wrong bytes", "nothing was wrong"):
        assert words in out
    assert not os.listdir(folder)
    assert not processes_of(folder)

    figures = orjson.loads(result.read_bytes())
    assert figures["seed"] == 7
    assert set(figures["wrong"].values()) == {0}
    assert figures["problems"] == []
    assert figures["compared"] > 20
    assert sum(figures["faults"].values()) > 5
    ways = {way.split()[0] for way in figures["fetches"]}
    assert ways == {"stream", "buffer", "offload", "auto"}
    ended = sum(one["codes"].get("0", 0) for one in figures["fetches"].values())
    assert ended > 20
    lived_on = {one["role"] for one in figures["growth"]}
    assert lived_on >= {"router", "connector 0a"}


@pytest.mark.slow
def test_a_soak_that_is_interrupted_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    with started(tmp_path, "--minutes", "5") as soak:
        assert soak.stdout is not None
        for line in soak.stdout:
            if "fault: " in line:
                break
        assert processes_of(tmp_path)
        soak.send_signal(signal.SIGINT)
        rest = soak.stdout.read()
        assert soak.wait() == 130, rest
    assert "Traceback" not in rest
    assert not os.listdir(tmp_path)
    wait_until(lambda: not processes_of(tmp_path), 10, "every process to be gone")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_soak_tells_what_is_wrong(tmp_path: Path) -> None:
    """A client that proves nothing hands on the byte that was changed on the line."""
    folder, careless = tmp_path / "files", tmp_path / "careless"
    for path in (folder, careless):
        path.mkdir()
    (careless / "sitecustomize.py").write_text(
        "from tunnelsync import frames\nframes.Claimed.verified = lambda claim: claim.parts\n"
    )
    args = ("--minutes", "0.25", "--only", "byte flipped")
    with started(folder, *args, PYTHONPATH=str(careless)) as soak:
        out, _ = soak.communicate()
    assert soak.returncode == 1, out
    assert "WRONG at" in out
    assert "wrong bytes" in out
