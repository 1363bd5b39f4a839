"""scripts/bench_peers.py measures beside whatever peers there are, and leaves nothing behind.

Nothing is installed here, and no rate is judged.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from harness import clean_environ, wait_until

SCRIPT = Path(__file__).parents[1] / "scripts/bench_peers.py"
OURS = {"tunnelsync, open client", "tunnelsync fetch"}
PEERS = {
    *("nginx, no relay", "nginx as a proxy", "socat", "piping-server", "bore", "rathole"),
    *("frp", "frp, no TLS, no mux", "chisel", "ssh -R", "croc"),
}
RUN_SECONDS = 240


def command(folder: Path, output: Path) -> tuple[str | Path, ...]:
    return (sys.executable, SCRIPT, "--quick", "--folder", folder, "--output", output)


def bench(folder: Path, output: Path, environ: dict[str, str]) -> tuple[str, dict[str, Any]]:
    done = subprocess.run(
        command(folder, output),
        env=clean_environ({"COLUMNS": "160", **environ}),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, orjson.loads((output / "peers.json").read_bytes())


@pytest.mark.slow
@pytest.mark.timeout(RUN_SECONDS + 10)
def test_a_quick_bench_measures_every_peer_or_says_why_not(tmp_path: Path) -> None:
    folder, output = tmp_path / "files", tmp_path / "deep/output"
    folder.mkdir()
    printed, document = bench(folder, output, {})

    assert not os.listdir(folder)
    left_out = document["left_out"]
    for name, reason in left_out.items():
        assert f"{name} left out: {reason.splitlines()[0]}" in printed
        print(f"left out here: {name}: {reason}")
    rows = {row["name"]: row for row in document["rows"]}
    assert rows.keys() | left_out.keys() == OURS | PEERS
    assert not rows.keys() & left_out.keys()
    for name, row in rows.items():
        for how in ("plain", "synced"):
            times = row[how]
            assert len(times["raw"]) == times["runs"] == document["options"]["rounds"]
            assert times["megabytes_per_second"] > 0
            ratios = times["our_rate_divided_by_its"]
            assert ratios.keys() == (set() if name in OURS else OURS)
            for ours, ratio in ratios.items():
                rate = rows[ours][how]["megabytes_per_second"]
                assert ratio == pytest.approx(rate / times["megabytes_per_second"])
        if name != "nginx, no relay":
            assert row["relay_cpu_seconds_per_gib"] > 0
            assert row["relay_peak_bytes"] > 0
    for bar in document["bars"]:
        word = "held" if bar["met"] else "NOT held"
        assert f"{word}: {bar['name']} {bar['limit']:g}: {bar['value']:.2f}" in printed
    assert document["bars"]
    for kind in ("png", "svg"):
        drawn = (output / f"peers.{kind}").exists()
        assert drawn == (importlib.util.find_spec("matplotlib") is not None)
        assert drawn or "no picture" in printed


def test_without_any_peer_it_names_them_all_and_measures_ours(tmp_path: Path) -> None:
    nothing = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    printed, document = bench(tmp_path, tmp_path / "output", nothing)
    rows = {row["name"] for row in document["rows"]}
    # nginx may be in an sbin, which is looked into whatever PATH says; what needs more is left out.
    assert rows >= OURS
    assert document["left_out"].keys() >= PEERS - {"nginx, no relay", "nginx as a proxy"}
    assert "socat left out: no socat: not installed" in printed


def test_an_interrupted_bench_leaves_neither_processes_nor_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    with (tmp_path / "printed").open("wb") as log:
        running = subprocess.Popen(
            command(folder, tmp_path), env=clean_environ(), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: b"round 1" in (tmp_path / "printed").read_bytes(), 60, "the first run")
        started = below(running.pid)
        assert len(started) >= 3
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 128 + signal.SIGINT
    finally:
        running.kill()
        running.wait()
    wait_until(lambda: not any(map(alive, started)), 10, f"the end of {started}")
    assert not os.listdir(folder)
    assert not (tmp_path / "peers.json").exists()


def below(pid: int) -> list[int]:
    """The processes below one, at any depth."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [one for child in map(int, children) for one in (child, *below(child))]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
