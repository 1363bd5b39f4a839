"""The demo as a user runs it: what it prints, what it leaves, and however it is ended.

It is told to work in a folder of the test's, which its children have in their environment: so
none of them can hide.
"""

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from cli.ran import environment
from harness import sha256, wait_until
from tunnelsync.settings import MIB

DEMO = (sys.executable, "-m", "tunnelsync", "demo")
HOSTILE = {
    "TUNNELSYNC_ROUTER": "http://127.0.0.1:1",
    "TUNNELSYNC_STORE_ENDPOINT": "http://127.0.0.1:1",
    "TUNNELSYNC_CONNECTOR_PLACES": "0",
    "TUNNELSYNC_NO_SUCH": "1",
    "AWS_PROFILE": "none",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "http_proxy": "http://127.0.0.1:1",
}
"""What a user may have set for another purpose; the demo must not care."""
RUN_SECONDS = 200.0
END_SECONDS = 15.0
ROWS = Counter(stream=6, offload=2, auto=4, buffer=4)

Start = Callable[..., "subprocess.Popen[str]"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def environ(place: Path, **more: str) -> dict[str, str]:
    """The environment of a demo that works in ``place``."""
    return {**environment(**more), "TMPDIR": str(place)}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder in which a demo works."""
    (folder := tmp_path / "place with a space").mkdir()
    return folder


def processes(place: Path) -> dict[int, str]:
    """Every process that works in a folder, with its command line."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            works_here = f"TMPDIR={place}".encode() in (folder / "environ").read_bytes()
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if works_here and words:  # one that has ended and is not yet waited for has none
            found[int(folder.name)] = words
    return found


def store_sockets(place: Path) -> list[Path]:
    """The sockets that the store which works in a folder has in /tmp."""
    ports = {
        port + shift
        for words in processes(place).values()
        for port in map(int, re.findall(r"-[a-z0-9.]+port[a-z.]*=(\d+)", words))
        for shift in (0, 10_000)
    }
    sockets = Path("/tmp").glob("seaweedfs-*.sock")
    return [path for path in sockets if path.stem.rpartition("-")[2] in map(str, ports)]


def assert_nothing_left(place: Path, sockets: list[Path]) -> None:
    assert processes(place) == {}
    assert list(place.iterdir()) == []
    assert [path for path in sockets if path.exists()] == []


def fetching(place: Path) -> bool:
    """Whether a demo is in the middle of a large fetch."""
    try:
        return any(part.stat().st_size > 16 * MIB for part in place.glob("*/fetched.*.part"))
    except FileNotFoundError:  # it has just been renamed
        return False


def in_the_middle(place: Path) -> list[Path]:
    """Wait for the middle of a large fetch, and return the store's sockets."""
    wait_until(lambda: fetching(place), 60, "a large fetch")
    return store_sockets(place)


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Start a demo with these flags and variables; none outlives a test that fails."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*flags: str, **more: str) -> "subprocess.Popen[str]":
        demo = subprocess.Popen(
            (*DEMO, *flags),
            env=environ(place, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(demo)
        return demo

    yield start_one
    for demo in started:
        with demo:
            demo.kill()


def test_every_mode_is_tried_from_both_connectors_and_verified(start: Start, place: Path) -> None:
    demo = start(**HOSTILE)
    sockets = in_the_middle(place)
    out, err = demo.communicate(timeout=RUN_SECONDS)
    assert sockets
    assert (demo.returncode, err) == (0, "")
    head, *rows = out.splitlines()[1:]
    assert head.split()[:6] == ["mode", "MAC", "dataset", "size", "seconds", "MB/s"]
    assert Counter(re.match("[a-z]+", row)[0] for row in rows) == ROWS  # type: ignore[index]
    assert all(row.split()[-1] == "yes" for row in rows)
    assert max(map(len, out.splitlines())) <= 80
    assert_nothing_left(place, sockets)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing_and_exits_130(
    start: Start, place: Path, number: signal.Signals
) -> None:
    demo = start()
    sockets = in_the_middle(place)
    assert len(processes(place)) == 5  # itself, the store, the router, two connectors
    demo.send_signal(number)
    demo.send_signal(signal.SIGINT)  # an impatient user does not hurry its cleaning
    out, err = demo.communicate(timeout=END_SECONDS)
    assert (demo.returncode, out, err) == (130, "", "error: interrupted\n")
    assert_nothing_left(place, sockets)


@pytest.mark.parametrize("child", ["weed mini", "tunnelsync router"])
def test_a_signal_while_it_starts_leaves_nothing(start: Start, place: Path, child: str) -> None:
    demo = start()
    wait_until(lambda: any(child in one for one in processes(place).values()), 30, child)
    sockets = store_sockets(place)
    demo.send_signal(signal.SIGINT)
    assert demo.communicate(timeout=END_SECONDS) == ("", "error: interrupted\n")
    assert demo.returncode == 130
    assert_nothing_left(place, sockets)


def test_a_child_that_dies_is_told_and_leaves_nothing(start: Start, place: Path) -> None:
    demo = start("--json")
    sockets = in_the_middle(place)
    router = next(pid for pid, words in processes(place).items() if "tunnelsync router" in words)
    os.kill(router, signal.SIGKILL)
    out, err = demo.communicate(timeout=RUN_SECONDS)
    assert demo.returncode in (5, 7)
    told = orjson.loads(out)
    assert told["status"] == "error"
    assert [row["verified"] for row in told["rows"]].count(False) >= 10
    assert "the router of the demo was ended by signal 9" in err
    assert "Traceback" not in err
    assert_nothing_left(place, sockets)


def test_a_terminal_that_closes_leaves_nothing(place: Path) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.execve(DEMO[0], DEMO, environ(place))
    shown = ""
    while "stream" not in shown:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, shown
        shown += os.read(terminal, 65536).decode(errors="replace")
    sockets = store_sockets(place)
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] != 0
    assert_nothing_left(place, sockets)
    assert "starting the store" in shown


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_no_process_outlives_a_demo_that_is_killed(start: Start, place: Path) -> None:
    demo = start()
    sockets = in_the_middle(place)
    demo.kill()
    demo.communicate()
    wait_until(lambda: not processes(place), END_SECONDS, "the end of its children")
    for path in sockets:
        path.unlink()
    shutil.rmtree(place)  # its files do outlive it: a gigabyte


def test_keep_prints_commands_that_work_until_a_signal_ends_it(
    start: Start, place: Path, tmp_path: Path
) -> None:
    demo = start("--keep")
    assert demo.stdout is not None
    lines: list[str] = []
    while not (lines and lines[-1].startswith("Ctrl-C ends it")):
        lines.append(demo.stdout.readline())
        assert lines[-1], lines
        lines[-1] = lines[-1].rstrip("\n")
    commands = [line for line in lines if line.startswith("  ")][-8:]
    for one in ("export TUNNELSYNC_ROUTER=", " ls ", "--mode stream", "curl -O ", "curl -r "):
        assert one in " ".join(commands)
    (here := tmp_path / "elsewhere").mkdir()
    script = "\n".join(["set -e", *commands])
    tried = subprocess.run(
        ["sh", "-c", script], cwd=here, env=environment(), capture_output=True, timeout=60
    )
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.count(b"connected") == 2
    for name in ("orders.csv", "256-mib.bin"):
        source = next(place.glob(f"*/*-0a/{name}"))
        other = next(place.glob(f"*/*-0b/{name}"))
        assert sha256(here / name) in (sha256(source), sha256(other))
    shutil.rmtree(here)
    sockets = store_sockets(place)
    demo.send_signal(signal.SIGINT)
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=END_SECONDS)
    assert (demo.returncode, err) == (0, "")
    assert_nothing_left(place, sockets)


def test_json_is_one_object_also_with_keep_which_ends_with_a_child(
    start: Start, place: Path
) -> None:
    demo = start("--keep", "--json")
    assert demo.stdout is not None
    assert demo.stderr is not None
    told = orjson.loads(demo.stdout.readline())
    assert told["status"] == "success"
    assert Counter(row["mode"] for row in told["rows"]) == ROWS
    for row in told["rows"]:
        assert row["verified"] is True
        assert row["seconds"] >= row["first_byte_seconds"] > 0
        assert row["megabytes_per_second"] > 0
        if row["mode"] != "buffer":  # a relayed or offloaded 256 MiB costs the router nothing
            assert row["router_peak_bytes"] < 128 * MIB
    used = {(row["mode"], row["mode_used"]) for row in told["rows"]}
    assert {("auto", "stream"), ("auto", "offload")} < used
    while "Ctrl-C" not in demo.stderr.readline():
        assert demo.poll() is None
    store = next(pid for pid, words in processes(place).items() if "weed mini" in words)
    sockets = store_sockets(place)
    os.kill(store, signal.SIGKILL)
    out, err = demo.communicate(timeout=END_SECONDS)
    assert (demo.returncode, out) == (5, "")
    assert "the store of the demo was ended by signal 9" in err
    assert_nothing_left(place, sockets)


def test_without_an_s3_server_the_other_modes_are_tried(place: Path, tmp_path: Path) -> None:
    (packages := tmp_path / "packages").mkdir()
    installed = next(Path(one) for one in sys.path if one.endswith("site-packages"))
    for one in installed.iterdir():
        if not one.name.startswith("seaweedfs"):
            (packages / one.name).symlink_to(one)
    here = environ(place, PATH="/nowhere")
    here["PYTHONPATH"] += f":{packages}"
    demo = (str(Path(sys.executable).resolve()), "-S", *DEMO[1:], "--json")
    done = subprocess.run(demo, env=here, capture_output=True, timeout=RUN_SECONDS)
    assert done.returncode == 0
    assert b"pip install 'tunnelsync[demo]'" in done.stderr
    rows = orjson.loads(done.stdout)["rows"]
    assert Counter(row["mode"] for row in rows) == ROWS - Counter(offload=2)
    assert {row["mode_used"] for row in rows} == {"stream", "buffer"}
    assert_nothing_left(place, [])


def test_a_place_without_room_is_told_before_anything_is_done(place: Path) -> None:
    small = f"mount -t tmpfs -o size=1m none {shlex.quote(str(place))} && "
    unshared = ("unshare", "--mount", "--map-root-user", "sh", "-c")
    if not shutil.which("unshare") or subprocess.run((*unshared, small + "true")).returncode:
        pytest.skip("a small file system cannot be made here")
    done = subprocess.run(
        (*unshared, small + shlex.join(DEMO)), env=environ(place), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (7, "")
    assert "the demo needs 1.5 GiB" in done.stderr
    assert "hint: Set TMPDIR" in done.stderr
