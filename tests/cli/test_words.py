"""What is written beside a dataset costs nothing that matters: receipts, words, a file's owner."""

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from harness import MAC, System, clean_environ, make_file

COMMAND = (sys.executable, "-m", "tunnelsync")


def told_beside(command: list[str], stdout: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command with this standard output, and keep what it says on stderr."""
    return subprocess.run(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=clean_environ(),
        timeout=60,
        check=False,
        text=True,
    )


@pytest.fixture
def ready(system: System) -> System:
    """A router and a connector with one dataset."""
    system.router()
    system.connector()
    make_file(system.tmp_path / "datasets" / "data", 1000)
    return system


def test_a_receipt_takes_the_place_of_nothing_else(ready: System, tmp_path: Path) -> None:
    (tmp_path / "r.json.new").write_text("mine")
    done = ready.cli("fetch", MAC, "data", "-o", tmp_path / "a", "--receipt", tmp_path / "r.json")
    assert done.code == 0, done.err
    assert (tmp_path / "r.json.new").read_text() == "mine"
    assert json.loads((tmp_path / "r.json").read_bytes())["outcome"] == "delivered"
    assert not [one for one in os.listdir(tmp_path) if one.startswith(".tunnelsync")]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(fifo.read_bytes()))
    reader.start()
    done = ready.cli("fetch", MAC, "data", "-o", tmp_path / "b", "--receipt", fifo)
    reader.join(20)
    assert done.code == 0, done.err
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert json.loads(heard[0])["outcome"] == "delivered"


def test_a_receipt_on_a_descriptor_goes_to_what_is_open_there(
    ready: System, tmp_path: Path
) -> None:
    (tmp_path / "stderr").symlink_to("/proc/self/fd/2")  # as in /dev
    for number, where in enumerate((tmp_path / "stderr", "/dev/fd/2")):
        log = tmp_path / f"log{number}"
        target = ["-o", str(tmp_path / str(number)), "--receipt", str(where), "--quiet"]
        command = [*COMMAND, "fetch", "--router", ready.url, MAC, "data", *target]
        with log.open("wb") as into:
            into.write(b"before\n")
            into.flush()
            subprocess.run(command, stderr=into, env=clean_environ(), timeout=60, check=True)
        before, receipt = log.read_bytes().splitlines()
        assert before == b"before"
        assert json.loads(receipt)["outcome"] == "delivered"
    assert (tmp_path / "stderr").is_symlink()


@pytest.mark.parametrize("name", ["a", "a.tunnelsync.part", "a.tunnelsync.journal"])
def test_a_receipt_is_not_the_dataset_by_another_way(
    ready: System, tmp_path: Path, name: str
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    target, receipt = tmp_path / "link" / "a", tmp_path / "real" / name
    done = ready.cli("fetch", MAC, "data", "-o", target, "--receipt", receipt)
    assert done.code == 2
    assert os.listdir(tmp_path / "real") == []


def test_words_that_nobody_can_write_cost_no_success(ready: System, tmp_path: Path) -> None:
    for number, name in enumerate(("/dev/full", "closed pipe")):
        target = tmp_path / str(number)
        command = [*COMMAND, "fetch", "--router", ready.url, MAC, "data", "-o", str(target)]
        if name == "closed pipe":
            out, into = os.pipe()
            os.close(out)
        else:
            into = os.open(name, os.O_WRONLY)
        done = subprocess.run(command, stderr=into, env=clean_environ(), timeout=60, check=False)
        os.close(into)
        assert (name, done.returncode) == (name, 0)
        assert target.stat().st_size == 1000


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("stat", MAC, "data", "--json"), 7, "error: cannot write to standard output"),
        (("stat", MAC, "nothing", "--json"), 3, 'error: there is no "nothing"'),
        (("stat", MAC, "data"), 7, "error: cannot write to standard output"),
    ],
)
@pytest.mark.parametrize("into", ["/dev/full", "closed pipe", "closed"])
def test_what_stdout_does_not_take_is_told_on_stderr(
    ready: System, words: tuple[str, ...], code: int, told: str, into: str
) -> None:
    command = [*COMMAND, *words[:1], "--router", ready.url, *words[1:]]
    if into == "closed":
        command = ["sh", "-c", '"$@" >&-', "sh", *command]
    with open("/dev/full" if into == "/dev/full" else os.devnull, "w") as stdout:
        out: Any = stdout
        if into == "closed pipe":
            reader, out = os.pipe()
            os.close(reader)
        done = told_beside(command, out)
    if into == "closed pipe":
        os.close(out)
    assert done.returncode == code
    assert done.stderr.startswith(told)
    assert done.stderr.count("error: ") == 1


def test_a_tokens_file_that_may_not_keep_its_owner_stays_as_it_is(
    system: System, tmp_path: Path
) -> None:
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root, and setpriv, which takes its privileges away")
    file = tmp_path / "tokens.json"
    assert system.cli("token", "create", "--role", "client", "--tokens", file).code == 0
    os.chown(file, 65534, 65533)
    before = file.read_bytes(), file.stat()
    words = ("token", "create", "--role", "client", "--tokens", str(file))
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-chown", *COMMAND, *words],
        env=clean_environ(),
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout) == (7, "")
    assert "Operation not permitted" in done.stderr
    assert "hint: Run this as the user whose file it is, or as root" in done.stderr
    assert (file.read_bytes(), file.stat()) == before
    assert os.listdir(tmp_path) == ["tokens.json"]


def test_a_tokens_file_keeps_its_owner(system: System, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file to another user")
    file = tmp_path / "tokens.json"
    assert system.cli("token", "create", "--role", "client", "--tokens", file).code == 0
    os.chown(file, 65534, 65533)
    os.chmod(file, 0o640)
    assert system.cli("token", "create", "--role", "client", "--tokens", file).code == 0
    found = file.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65533, 0o640)


def test_a_receipt_takes_the_place_of_another_and_of_no_other_file(
    ready: System, tmp_path: Path
) -> None:
    command, receipt = ("fetch", MAC, "data", "-o"), tmp_path / "r"
    for number in range(2):
        done = ready.cli(*command, tmp_path / f"a{number}", "--receipt", receipt)
        assert done.code == 0, done.err
    receipt.write_text("precious")
    done = ready.cli(*command, tmp_path / "b", "--receipt", receipt)
    assert (done.code, "no receipt" in done.err, "--force" in done.err) == (4, True, True)
    assert (receipt.read_text(), (tmp_path / "b").exists()) == ("precious", False)
    done = ready.cli(*command, tmp_path / "b", "--receipt", receipt, "--force")
    assert done.code == 0
    assert json.loads(receipt.read_bytes())["outcome"] == "delivered"
    assert ready.cli(*command, tmp_path / "c", "--receipt", "-").code == 2


def test_a_dataset_that_is_here_is_told_though_its_receipt_is_not(
    ready: System, tmp_path: Path
) -> None:
    done = ready.cli("fetch", MAC, "data", "-o", tmp_path / "a", "--receipt", "/dev/full")
    assert done.code == 7
    summary, error, hint = done.err.splitlines()
    assert "verified blake3-4m:" in summary
    assert error.startswith("error: the dataset is here, whole and verified; cannot write")
    assert "--receipt" in hint
    assert (tmp_path / "a").stat().st_size == 1000


def test_what_failed_is_told_though_its_receipt_cannot_be_written(
    ready: System, tmp_path: Path
) -> None:
    done = ready.cli("fetch", MAC, "none", "-o", tmp_path / "a", "--receipt", "/dev/full")
    assert done.code == 3
    assert "none" in done.err.splitlines()[0]


def test_a_receipt_that_cannot_be_written_leaves_nothing(ready: System, tmp_path: Path) -> None:
    make_file(tmp_path / "datasets" / "empty", 0)
    (tmp_path / "out").mkdir()
    target, receipt = tmp_path / "out" / "empty", tmp_path / "out" / "r"
    limited = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *COMMAND]
    words = ["--router", ready.url, MAC, "empty", "-o", str(target), "--receipt", str(receipt)]
    done = told_beside([*limited, "fetch", *words], None)
    assert (done.returncode, "File too large" in done.stderr) == (7, True)
    assert os.listdir(tmp_path / "out") == ["empty"]


def into_full(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command whose standard output takes nothing."""
    with open("/dev/full", "w") as full:
        return told_beside([*COMMAND, *words], full)


def test_a_token_that_nobody_saw_is_not_made(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    done = into_full("token", "create", "--role", "client", "--tokens", str(file))
    assert (done.returncode, "no token was made" in done.stderr) == (7, True)
    assert json.loads(file.read_bytes())["tokens"] == []


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("fetch", "--help")])
def test_help_that_nobody_takes_is_no_defect(words: tuple[str, ...]) -> None:
    done = into_full(*words)
    assert done.returncode == 7
    assert done.stderr.startswith("error: cannot write to standard output: No space left")
    assert done.stderr.count("error: ") == 1


@pytest.mark.parametrize("words", [("ls", MAC), ("connectors",)])
def test_a_table_for_a_stdout_that_is_closed_is_no_defect(
    ready: System, words: tuple[str, ...]
) -> None:
    command = ["sh", "-c", '"$@" >&-', "sh", *COMMAND, *words, "--router", ready.url]
    done = told_beside(command, None)
    assert done.returncode == 7
    assert done.stderr == "error: cannot write to standard output: it is closed\n"
