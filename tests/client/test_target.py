"""Real files: a target appears whole or not at all, and is never replaced unasked."""

import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tunnelsync.client.journal import Version
from tunnelsync.client.part import PartFile
from tunnelsync.client.target import Descriptor, resolve, write_all, write_at
from tunnelsync.errors import TargetBusy, TargetExists, Usage, WriteFailed

HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def written(target: Path, data: bytes, *, force: bool = False, sync: bool = False) -> None:
    part = PartFile(target, force=force, sync=sync)
    part.open()
    try:
        part.begin(Version(len(data), "v1", 0), ())
        part.write(0, (data,))
        part.publish(1_700_000_000_123_456_789)
    finally:
        part.close(keep=False)


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_appears_with_its_time_and_no_part_is_left(tmp_path: Path, sync: bool) -> None:
    written(tmp_path / "a", b"data", sync=sync)
    assert (tmp_path / "a").read_bytes() == b"data"
    assert (tmp_path / "a").stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert os.listdir(tmp_path) == ["a"]


def test_nothing_is_there_before_the_end(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "a")
    part.open()
    part.write(0, (b"data",))
    assert os.listdir(tmp_path) == ["a.tunnelsync.part"]
    part.close(keep=False)
    part.close(keep=False)
    assert os.listdir(tmp_path) == []


def test_a_name_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "a")
    part.open()
    (tmp_path / "a").write_bytes(b"theirs")
    with pytest.raises(TargetExists):
        part.publish(0)
    part.close(keep=False)
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a"]


def test_force_replaces_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with (tmp_path / "a").open("rb") as before:
        written(tmp_path / "a", b"new", force=True)
        assert before.read() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"


def test_force_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "far").write_bytes(b"far")
    (tmp_path / "a").symlink_to("far")
    with pytest.raises(TargetExists):
        resolve(tmp_path / "a", "d", force=False)
    written(resolve(tmp_path / "a", "d", force=True), b"new", force=True)
    assert (tmp_path / "far").read_bytes() == b"far"
    assert not (tmp_path / "a").is_symlink()


def test_another_process_that_writes_it_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a.tunnelsync.part")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        part = PartFile(tmp_path / "a")
        with pytest.raises(TargetBusy, match="a"):
            part.open()
        part.close(keep=False)
        assert (tmp_path / "a.tunnelsync.part").exists()
        other.communicate()
    written(tmp_path / "a", b"mine")
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_a_part_left_by_a_killed_run_is_taken_over_empty(tmp_path: Path) -> None:
    (tmp_path / "a.tunnelsync.part").write_bytes(b"left over, and long")
    written(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_part_that_is_the_target_itself_is_not_cut_short(tmp_path: Path) -> None:
    """As after kill -9 between the link and the removal of the part file's name."""
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "a.tunnelsync.part")
    part = PartFile(tmp_path / "a", force=True)
    part.open()
    assert (tmp_path / "a").read_bytes() == b"old"
    part.close(keep=False)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_part_that_is_no_file_is_refused_without_blocking(tmp_path: Path, kind: str) -> None:
    part = tmp_path / "a.tunnelsync.part"
    (tmp_path / "far").write_bytes(b"far")
    if kind == "link":
        part.symlink_to("far")
    elif kind == "fifo":
        os.mkfifo(part)
    else:
        part.mkdir()
    with pytest.raises(WriteFailed):
        PartFile(tmp_path / "a").open()
    assert (tmp_path / "far").read_bytes() == b"far"
    assert os.path.lexists(part)


def test_the_name_comes_from_the_last_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(None, "deep/er/x.csv", force=False) == tmp_path / "x.csv"
    assert resolve(tmp_path, "deep/x.csv", force=False) == tmp_path / "x.csv"
    assert resolve("y", "x.csv", force=False) == tmp_path / "y"
    assert resolve(None, "a\nb", force=False) == tmp_path / "a\nb"


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "a", f"{tmp_path}/no/"):
        with pytest.raises(Usage, match="no folder"):
            resolve(path, "x", force=False)
    with pytest.raises(Usage):
        resolve("", "x", force=False)


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(TargetExists, match="not a regular file"):
        resolve("/dev/null", "x", force=True)


def test_the_name_of_an_open_file_is_never_replaced(tmp_path: Path) -> None:
    """As ``/dev/stdout`` is one, whatever it leads to."""
    with (tmp_path / "log").open("wb") as file:
        (tmp_path / "out").symlink_to(f"/proc/self/fd/{file.fileno()}")
        for name in (tmp_path / "out", f"/proc/self/fd/{file.fileno()}"):
            with pytest.raises(TargetExists, match="not a regular file"):
                resolve(name, "x", force=True)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_what_no_file_can_be_called_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(Usage, match="cannot be the name of a file"):
        resolve(f"{tmp_path}/{name}", "x", force=True)


def test_many_parts_arrive_whole_and_in_order(tmp_path: Path) -> None:
    parts = [bytes([i % 251]) * 17 for i in range(5000)]
    with (tmp_path / "a").open("wb") as file:
        write_all(file.fileno(), parts)
    assert (tmp_path / "a").read_bytes() == b"".join(parts)


def test_what_the_system_takes_in_small_pieces_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, data = os.pwrite, os.urandom(5000)
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: real(fd, bytes(part)[:1000], at))
    with (tmp_path / "a").open("wb") as file:
        assert write_at(file.fileno(), 5, (data[:3000], data[3000:])) == 5000
    assert (tmp_path / "a").read_bytes() == bytes(5) + data


def test_a_full_disk_says_so() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(WriteFailed, match="disk is full"),
    ):
        Descriptor(full.fileno()).write(0, (b"x",))


def test_a_write_that_hangs_goes_to_no_other_file_and_ends_what_it_has(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    sink, data = Descriptor(writer), os.urandom(1 << 20)
    thread = threading.Thread(target=sink.write, args=(0, (data,)))
    thread.start()
    while select.select([], [writer], [], 0)[1]:
        pass  # until the pipe is full
    sink.close(keep=False)
    with (tmp_path / "another").open("wb") as another:
        os.dup2(another.fileno(), writer)  # as the next file may be that is opened after a close
        with open(reader, "rb") as pipe:
            assert pipe.read() == data  # to its end: nobody keeps the pipe open
        thread.join(10)
        os.close(writer)
    assert (tmp_path / "another").read_bytes() == b""


def test_a_descriptor_that_is_closed_says_so() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(WriteFailed, match="closed"):
        Descriptor(writer)


def test_a_reader_that_left_says_so() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with pytest.raises(WriteFailed, match="closed"):
            Descriptor(writer).write(0, (b"x",))
    finally:
        os.close(writer)


def test_a_pipe_that_does_not_block_gets_everything(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = os.urandom(1 << 20)
    copy = tmp_path / "copy"
    with copy.open("wb") as out, subprocess.Popen(["cat"], stdin=reader, stdout=out):
        os.close(reader)
        write_all(writer, (data[:7], data[7:]))
        os.close(writer)
    assert copy.read_bytes() == data


def test_a_way_through_a_link_leads_where_the_system_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows the link before ``..``; a path that is made absolute by its text does not."""
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/sub")
    os.mkfifo(tmp_path / "real" / "x")
    (tmp_path / "real" / "y").write_bytes(b"there already")
    (tmp_path / "z").write_bytes(b"elsewhere")
    monkeypatch.chdir(tmp_path)
    for folder in (f"{tmp_path}/link/..", "link/.."):
        with pytest.raises(TargetExists, match="never replaced"):
            resolve(f"{folder}/x", "d", force=True)
        with pytest.raises(TargetExists, match="there already"):
            resolve(f"{folder}/y", "d", force=False)
        written(resolve(f"{folder}/z", "d", force=False), b"new")
        assert (tmp_path / "real" / "z").read_bytes() == b"new"
        (tmp_path / "real" / "z").unlink()
        assert resolve(folder, "d", force=False).parent.samefile(tmp_path / "real")
