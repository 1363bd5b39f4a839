"""A folder with all below it: what comes, what stays, what goes wrong with one and with all."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from harness import MAC, System, make_file, sparse_file, wait_until
from tunnelsync.settings import GIB, KIB

FILES = ("a", "b.csv", "sub/c", "sub/deep/er/d", "sub/ä \n[x].csv", "-dash")


@pytest.fixture
def folder(system: System) -> Path:
    """A folder that a connector offers as ``f``, beside something else."""
    root = system.tmp_path / "datasets"
    for number, name in enumerate(FILES):
        path = root / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_file(path, 1000 * number)
    (root / "f" / "empty").mkdir()
    make_file(root / "other", 10)
    system.router()
    system.connector()
    return root / "f"


def same(one: Path, other: Path) -> bool:
    """Tell whether two folders hold the same: names, bytes, times of files."""

    def held(top: Path) -> dict[str, tuple[bytes, int] | None]:
        return {
            str(path.relative_to(top)): (path.read_bytes(), path.stat().st_mtime_ns)
            if path.is_file()
            else None
            for path in top.rglob("*")
        }

    return held(one) == held(other)


def test_all_comes_with_its_times_and_stays_the_next_time(system: System, folder: Path) -> None:
    done = system.cli("fetch-folder", MAC, "f/")
    assert done.code == 0, done.err
    assert done.err.startswith("f: 6 fetched, 15,000 bytes in ")
    assert done.out == ""
    assert same(system.tmp_path / "f", folder)
    inodes = {path: path.stat().st_ino for path in (system.tmp_path / "f").rglob("*")}
    make_file(folder / "sub" / "new", 7)
    again = system.cli("fetch-folder", MAC, "f", "--json").json()
    assert again["status"] == "success"
    assert (again["fetched"], again["bytes"], again["there"]) == (1, 7, 6)
    assert {path: path.stat().st_ino for path in inodes} == inodes
    assert same(system.tmp_path / "f", folder)


def test_the_root_needs_a_name_and_goes_into_a_folder_that_is_there(
    system: System, folder: Path
) -> None:
    assert system.cli("fetch-folder", MAC).code == 2
    (system.tmp_path / "out").mkdir()
    assert system.cli("fetch-folder", MAC, "-o", "out", "--at-once", "2", "-q").err == ""
    assert same(system.tmp_path / "out", folder.parent)


def test_what_goes_wrong_with_one_leaves_the_others(system: System, folder: Path) -> None:
    out = system.tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "b.csv").write_bytes(b"mine")
    (out / "sub" / "deep").write_bytes(b"a file where a folder goes")
    (folder / "gone").symlink_to("/etc/hostname")
    done = system.cli("fetch-folder", MAC, "f", "-o", out, "--json")
    value = orjson.loads(done.out)
    assert (done.code, value["exit_code"], value["error"]["code"]) == (4, 4, "target_exists")
    assert (value["fetched"], value["failed"]) == (4, 2)
    assert {one["dataset"] for one in value["failures"]} == {"f/b.csv", "f/sub/deep/"}
    assert (out / "b.csv").read_bytes() == b"mine"
    told = system.cli("fetch-folder", MAC, "f", "-o", out)
    assert (told.code, told.out) == (4, "")
    assert "f/b.csv: " in told.err
    assert "4 there already" in told.err
    assert "error: f: 0 fetched" in told.err
    (out / "sub" / "deep").unlink()
    assert system.cli("fetch-folder", MAC, "f", "-o", out, "--force").code == 0
    (folder / "gone").unlink()
    assert same(out, folder)


def test_a_link_in_the_target_is_not_followed(system: System, folder: Path) -> None:
    out, elsewhere = system.tmp_path / "out", system.tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "sub").symlink_to(elsewhere)
    done = system.cli("fetch-folder", MAC, "f", "-o", out, "--force")
    assert done.code == 4, done.err
    assert os.listdir(elsewhere) == []
    assert (out / "a").exists()


@pytest.mark.parametrize(
    ("what", "code"), [("nope", 3), ("other", 3), ("../x", 2), ("f/a", 3), ("f//sub", 2)]
)
def test_what_is_no_folder_is_told_and_leaves_nothing(
    system: System, folder: Path, what: str, code: int
) -> None:
    done = system.cli("fetch-folder", MAC, what, "-o", "out")
    assert (done.code, done.out) == (code, ""), done.err
    assert not (system.tmp_path / "out").exists()


def test_what_concerns_all_ends_it(system: System, folder: Path) -> None:
    done = system.cli("fetch-folder", MAC, "f", "-o", "no/such/place")
    assert (done.code, "cannot make the folder" in done.err) == (7, True), done.err
    system.processes[1].stop()
    gone = system.cli("fetch-folder", MAC, "f", "--retry-for", "0.2")
    assert gone.code == 5, gone.err
    assert not (system.tmp_path / "f").exists()


@pytest.fixture
def interrupted(system: System, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A fetch of a folder that takes long: its last dataset is large."""
    sparse_file(folder / "z", 8 * GIB)
    env = {"PATH": os.environ["PATH"], "TUNNELSYNC_ROUTER": system.url}
    command = (sys.executable, "-m", "tunnelsync", "fetch-folder", MAC, "f", "--at-once", "1")
    with subprocess.Popen(command, cwd=system.tmp_path, env=env, stderr=subprocess.PIPE) as process:
        yield process


def test_one_that_is_interrupted_goes_on(
    system: System, folder: Path, interrupted: "subprocess.Popen[bytes]"
) -> None:
    part = system.tmp_path / "f" / "z.tunnelsync.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 0, 30, "the last dataset to come")
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(30) == 130
    assert part.exists()
    os.truncate(folder / "z", 64 * KIB)
    done = system.cli("fetch-folder", MAC, "f", "--json").json()
    assert (done["fetched"], done["there"]) == (1, 6)
    assert same(system.tmp_path / "f", folder)
