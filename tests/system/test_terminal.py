"""What `tunnelsync fetch` shows on a terminal while it works."""

import os
import pty
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import COMMAND, MAC, System, clean_environ, make_file, sparse_file
from held import HeldGet
from tunnelsync.settings import GIB, MIB


def shown(terminal: int, wanted: str) -> str:
    """Read what a terminal shows until the text is there, or all of it until its end."""
    text = ""
    while wanted not in text:
        ready, _, _ = select.select([terminal], [], [], 30)
        assert ready, text
        try:
            text += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the other end has closed it
            break
    return text


def fetching(theirs: int, *words: str | Path, stdout: int) -> "subprocess.Popen[bytes]":
    """Start a fetch whose words for people go to a terminal, which is its own then."""
    process = subprocess.Popen(
        (*COMMAND, "fetch", *words),
        env=clean_environ({"TERM": "xterm", "COLUMNS": "120"}),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=theirs,
    )
    os.close(theirs)
    return process


@contextmanager
def in_line(system: System, tmp_path: Path) -> Iterator[str]:
    """Have the connector's only place taken while the block runs, and return the router's URL."""
    router = system.router()
    system.connector(places=1, progress_seconds=0.2)
    sparse_file(tmp_path / "datasets" / "big", GIB)
    make_file(tmp_path / "datasets" / "small", 3 * MIB)
    with HeldGet(router.url, f"/datasets/{MAC}/big") as held:
        held.read(MIB)
        yield router.url


def test_a_terminal_shows_the_place_in_line_then_the_progress_and_one_line_at_the_end(
    system: System, tmp_path: Path
) -> None:
    terminal, theirs = pty.openpty()
    with in_line(system, tmp_path) as url:
        words = ("--router", url, MAC, "small", "-o", tmp_path / "out")
        fetch = fetching(theirs, *words, stdout=subprocess.PIPE)
        assert "small: in line, place 1" in shown(terminal, "place 1")
    rest = shown(terminal, "verified blake3-4m:")
    out, _ = fetch.communicate(timeout=30)
    os.close(terminal)
    assert fetch.returncode == 0, rest
    assert out == b""
    assert "3,145,728 bytes" in rest
    assert (tmp_path / "out").stat().st_size == 3 * MIB


def test_data_on_a_terminal_is_not_mixed_with_a_bar(system: System, tmp_path: Path) -> None:
    router = system.router()
    system.connector()
    (tmp_path / "datasets" / "d").write_text("no line end")
    terminal, theirs = pty.openpty()
    fetch = fetching(theirs, "--router", router.url, MAC, "d", "-o", "-", stdout=theirs)
    text = shown(terminal, "no such text")
    assert fetch.wait(30) == 0
    os.close(terminal)
    assert text.startswith("no line end")
    assert "\x1b" not in text


def test_a_terminal_that_goes_while_the_bar_is_drawn_costs_no_success(
    system: System, tmp_path: Path
) -> None:
    terminal, theirs = pty.openpty()
    with in_line(system, tmp_path) as url:
        words = ("--router", url, MAC, "small", "-o", tmp_path / "out")
        receipt = ("--receipt", tmp_path / "receipt")
        fetch = fetching(theirs, *words, *receipt, stdout=subprocess.DEVNULL)
        shown(terminal, "place 1")
        os.close(terminal)
    assert fetch.wait(30) == 0
    assert (tmp_path / "out").stat().st_size == 3 * MIB
    assert b'"outcome":"delivered"' in (tmp_path / "receipt").read_bytes()
