"""A part file and its journal on real disks: names, crowds, full disks, and the order of things."""

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from changes import edit
from played_router import MAC, Streaming, client, content, digests_of, played
from tunnelsync.client.journal import Journal, Kept, Origin, Version, encode
from tunnelsync.client.part import JOURNAL_SUFFIX, SUFFIX, PartFile
from tunnelsync.errors import TargetBusy, TargetExists, WriteFailed
from tunnelsync.frames import BLOCK_BYTES, digest
from tunnelsync.objects import SECOND_NS
from tunnelsync.protocol import Mode

DATA = content(2 * BLOCK_BYTES + 5)
BLOCKS = [DATA[at : at + BLOCK_BYTES] for at in range(0, len(DATA), BLOCK_BYTES)]
DIGESTS = dict(enumerate(digests_of(DATA)))
ORIGIN = Origin("http://127.0.0.1:8080/", MAC, "d")
VERSION = Version(len(DATA), "v1", 1_700_000_000_000_000_000)


def part_of(target: Path, **changes: Any) -> PartFile:
    members: dict[str, Any] = {"origin": ORIGIN, "journal_bytes": 1 << 20}
    return PartFile(target, **members | changes)


def left(target: Path, *indices: int, version: Version = VERSION) -> None:
    """Leave what a run leaves that was killed with these blocks in its journal."""
    part = part_of(target)
    part.open()
    part.begin(version, ())
    for index in indices:
        part.write(index, (BLOCKS[index],))
    part.checkpoint([(index, DIGESTS[index]) for index in indices])
    part.close(keep=True)


def sealed(target: Path) -> bool:
    """Tell whether the next run takes what is left without a second look, and leave all as is."""
    part = part_of(target)
    kept = part.open()
    part.close(keep=True)
    assert kept is not None
    return kept.sealed_ns is not None


def copied(part: Path) -> None:
    shutil.copy2(part, part.with_name("copy"))
    part.with_name("copy").replace(part)


def made_anew(part: Path) -> None:
    """As a copy may be put back: ext4 gives the number of a file that was removed again."""
    data = part.read_bytes()
    part.unlink()
    part.write_bytes(data)


@pytest.mark.parametrize("change", [copied, edit, made_anew])
def test_b4_what_a_run_left_is_trusted_unseen_until_anybody_touches_it(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    left(tmp_path / "d", 0, 1)
    assert not sealed(tmp_path / "d")
    part = part_of(tmp_path / "d")
    kept = part.open()
    assert kept is not None
    part.begin(VERSION, kept.blocks.items())
    part.seal()  # which nobody need wait for
    part.close(keep=True)
    assert not sealed(tmp_path / "d")
    part = part_of(tmp_path / "d", sync=True)
    part.open()
    part.begin(VERSION, kept.blocks.items())
    part.seal()
    part.close(keep=True)
    assert sealed(tmp_path / "d")
    assert found(tmp_path / "d") == {0, 1}
    assert sealed(tmp_path / "d")  # for to look is not to touch
    part = part_of(tmp_path / "d", sync=True)
    part.open()
    part.seal()  # of a run that got no answer
    part.close(keep=True)
    assert sealed(tmp_path / "d")
    change(tmp_path / f"d{SUFFIX}")
    assert not sealed(tmp_path / "d")
    assert found(tmp_path / "d") == {0, 1}


def test_a_seal_says_nothing_where_times_are_whole_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit in the second of the seal would not be seen."""
    left(tmp_path / "d", 0)
    fstat = os.fstat

    def coarse(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        whole = found.st_ctime_ns // SECOND_NS * SECOND_NS
        return os.stat_result(tuple(found), {"st_ctime_ns": whole})

    monkeypatch.setattr(os, "fstat", coarse)
    part = part_of(tmp_path / "d", sync=True)
    kept = part.open()
    assert kept is not None
    part.begin(VERSION, kept.blocks.items())
    part.seal()
    part.close(keep=True)
    assert not sealed(tmp_path / "d")


def found(target: Path, **changes: Any) -> set[int] | None:
    """Return the blocks that the next run begins with, and leave all as it was."""
    part = part_of(target, **changes)
    kept = part.open()
    part.close(keep=True)
    return None if kept is None else set(kept.blocks)


@pytest.mark.parametrize("length", range(225, 256))
async def test_n3_a_name_of_any_length_can_be_fetched(tmp_path: Path, length: int) -> None:
    name = "n" * length
    async with played(Streaming(b"abc")) as url, client(url) as ts:
        await ts.fetch(MAC, name, tmp_path, mode=Mode.STREAM)
    assert os.listdir(tmp_path) == [name]


def test_b1_what_a_killed_run_left_is_taken_over(tmp_path: Path) -> None:
    left(tmp_path / "d", 0, 2)
    assert found(tmp_path / "d") == {0, 2}
    assert found(tmp_path / "d") == {0, 2}


@pytest.mark.parametrize(
    "other",
    [
        Origin("http://127.0.0.1:9/", MAC, "d"),
        Origin(ORIGIN.router, "cc-28-aa-00-11-23", "d"),
        Origin(ORIGIN.router, MAC, "e"),
        None,
    ],
)
def test_b4_what_is_of_another_origin_is_dropped_once_there_is_an_answer(
    tmp_path: Path, other: Origin | None
) -> None:
    left(tmp_path / "d", 0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    part = part_of(tmp_path / "d", origin=other)
    assert part.open() is None
    part.close(keep=False)  # a router, MAC or name that was mistyped costs nothing
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    begun(tmp_path / "d", origin=other)


def begun(target: Path, **changes: Any) -> None:
    """See that nothing is left of what was there once another fetch has begun, nor of that."""
    part = part_of(target, **changes)
    assert part.open() is None
    part.begin(VERSION, ())
    assert target.with_name(f"{target.name}{SUFFIX}").stat().st_size == 0
    assert not target.with_name(f"{target.name}{JOURNAL_SUFFIX}").exists()
    part.close(keep=False)
    assert list(target.parent.iterdir()) == []


def test_b4_without_its_journal_a_part_file_is_emptied(tmp_path: Path) -> None:
    left(tmp_path / "d", 0)
    (tmp_path / f"d{JOURNAL_SUFFIX}").unlink()
    begun(tmp_path / "d")


def test_b10_a_part_file_that_was_replaced_before_it_was_locked_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        copied(tmp_path / f"d{SUFFIX}")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    part = part_of(tmp_path / "d")
    part.open()
    with pytest.raises(TargetBusy):  # for it is the file of that name that is locked
        part_of(tmp_path / "d").open()
    part.close(keep=False)


@pytest.mark.parametrize("force", [False, True])
def test_b10_a_part_file_that_was_replaced_is_not_published(tmp_path: Path, force: bool) -> None:
    target = tmp_path / "d"
    if force:
        target.write_bytes(b"old")
    first = part_of(target, force=force)
    first.open()
    first.begin(VERSION, ())
    for index, block in enumerate(BLOCKS):
        first.write(index, (block,))
    (tmp_path / f"d{SUFFIX}").unlink()  # by somebody who thought that it hangs
    second = part_of(target, force=force)
    second.open()
    second.begin(VERSION, ())
    second.write(0, (BLOCKS[0],))
    with pytest.raises(TargetBusy, match="removed or replaced"):
        first.publish(VERSION.modified_ns)
    first.close(keep=False)
    assert target.exists() == force
    for index in (1, 2):
        second.write(index, (BLOCKS[index],))
    second.publish(VERSION.modified_ns)
    assert target.read_bytes() == DATA


def test_a_part_file_of_another_user_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path / "d", 0)
    inode = (tmp_path / f"d{SUFFIX}").stat().st_ino
    with (tmp_path / f"d{SUFFIX}").open("rb"):  # so that its number is not given again
        me = os.geteuid()
        answers = iter([me + 1])
        monkeypatch.setattr(os, "geteuid", lambda: next(answers, me))
        assert found(tmp_path / "d") is None
        assert (tmp_path / f"d{SUFFIX}").stat().st_ino != inode


def test_a_file_system_that_gives_files_another_owner_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    part = part_of(tmp_path / "d")
    assert part.open() is None
    part.begin(VERSION, ())
    for index, block in enumerate(BLOCKS):
        part.write(index, (block,))
    part.publish(VERSION.modified_ns)
    assert (tmp_path / "d").read_bytes() == DATA


def test_a_time_that_the_system_refuses_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    part = part_of(tmp_path / "d")
    part.open()
    part.begin(VERSION, ())
    for index, block in enumerate(BLOCKS):
        part.write(index, (block,))
    part.publish(VERSION.modified_ns)
    assert (tmp_path / "d").read_bytes() == DATA


@pytest.mark.parametrize(
    ("size", "there"),
    [(len(DATA) - 1, {0}), (2 * BLOCK_BYTES, {0}), (BLOCK_BYTES - 1, None), (0, None)],
)
def test_b4_of_a_part_file_cut_short_what_is_whole_is_taken(
    tmp_path: Path, size: int, there: set[int] | None
) -> None:
    left(tmp_path / "d", 0, 2)
    os.truncate(tmp_path / f"d{SUFFIX}", size)
    assert found(tmp_path / "d") == there


def test_b4_a_block_that_is_there_is_proven_by_its_digest_alone(tmp_path: Path) -> None:
    left(tmp_path / "d", 0, 2)
    part = part_of(tmp_path / "d")
    part.open()
    size = len(DATA)
    assert [part.proves(i, DIGESTS[i], size) for i in range(3)] == [True, False, True]
    assert not part.proves(0, DIGESTS[1], size)
    os.truncate(tmp_path / f"d{SUFFIX}", size - 1)
    assert not part.proves(2, DIGESTS[2], size)
    part.close(keep=True)
    assert not part.proves(0, DIGESTS[0], size)  # what cannot be read proves nothing


def test_restart_drops_what_was_left(tmp_path: Path) -> None:
    left(tmp_path / "d", 0)
    begun(tmp_path / "d", restart=True)


def test_m2_a_journal_of_a_size_beyond_all_measure_does_not_stop_a_fetch(tmp_path: Path) -> None:
    left(tmp_path / "d", 0, version=Version(2**63 - 1, "v1", 0))
    assert found(tmp_path / "d") == {0}


async def test_m2_a_dataset_longer_than_we_allow_in_a_journal_is_begun_anew(tmp_path: Path) -> None:
    async with played(Streaming(DATA)) as url, client(url) as ts:
        origin = Origin(f"{url}/", MAC, "d")
        part = part_of(tmp_path / "d", origin=origin)
        part.open()
        part.begin(Version(2**62, "v1", 0), ())
        part.write(0, (BLOCKS[0],))
        part.checkpoint([(0, DIGESTS[0])])
        part.close(keep=True)
        done = await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert done.resumed_bytes == 0
    assert (tmp_path / "d").read_bytes() == DATA


def test_b10_the_journal_of_one_that_began_while_we_gave_the_file_its_name_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (part_of(tmp_path / "d", force=True) for _ in range(2))
    first.open()
    first.begin(VERSION, ())
    replace = os.replace

    def replaced(old: Path, new: Path) -> None:
        replace(old, new)
        if new == tmp_path / "d":
            second.open()
            second.begin(VERSION, ())

    monkeypatch.setattr(os, "replace", replaced)
    first.publish(0)
    monkeypatch.undo()
    second.write(0, (BLOCKS[0],))
    second.checkpoint([(0, DIGESTS[0])])
    second.close(keep=True)
    assert found(tmp_path / "d") == {0}


def test_b10_who_holds_it_is_named_and_loses_nothing(tmp_path: Path) -> None:
    left(tmp_path / "d", 0)
    holder = part_of(tmp_path / "d")
    kept = holder.open()
    assert kept is not None
    with pytest.raises(TargetBusy, match="another fetch of this process"):
        part_of(tmp_path / "d", restart=True).open()
    holder.close(keep=True)
    assert found(tmp_path / "d") == {0}


def test_b10_who_holds_it_in_another_container_has_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, read = part_of(tmp_path / "d"), Path.read_text
    holder.open()
    monkeypatch.setattr(
        Path, "read_text", lambda path: read(path).replace(f" {os.getpid()} ", " 0 ")
    )
    with pytest.raises(TargetBusy, match="another process is writing"):
        part_of(tmp_path / "d").open()
    holder.close(keep=False)


def test_b7_killed_between_the_two_names_the_target_stays_and_its_other_name_goes(
    tmp_path: Path,
) -> None:
    target = tmp_path / "d"
    left(target, 0, 1, 2)
    os.link(tmp_path / f"d{SUFFIX}", target)
    assert found(target, force=True) is None
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("why", [0, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_b7_the_name_is_given_with_and_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, why: int
) -> None:
    if why:

        def refused(*args: object, **kwargs: object) -> None:
            raise OSError(why, "no hard links here")

        monkeypatch.setattr(os, "link", refused)
    target = tmp_path / "d"
    if force:
        target.write_bytes(b"old")
    part = part_of(target, force=force, sync=True)
    part.open()
    part.begin(VERSION, ())
    for index, block in enumerate(BLOCKS):
        part.write(index, (block,))
    part.publish(VERSION.modified_ns)
    part.close(keep=False)
    assert target.read_bytes() == DATA
    assert target.stat().st_mtime_ns == VERSION.modified_ns
    assert os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize("links", [False, True])
def test_b7_a_name_taken_meanwhile_costs_nothing_that_was_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def refused(*args: object, **kwargs: object) -> None:
            raise PermissionError(1, "no hard links here")

        monkeypatch.setattr(os, "link", refused)
    left(tmp_path / "d", 0, 1, 2)
    part = part_of(tmp_path / "d")
    kept = part.open()
    assert kept is not None
    part.begin(VERSION, kept.blocks.items())
    (tmp_path / "d").write_bytes(b"theirs")
    with pytest.raises(TargetExists):
        part.publish(0)
    part.close(keep=True)
    assert (tmp_path / "d").read_bytes() == b"theirs"
    assert found(tmp_path / "d") == {0, 1, 2}


def test_b7_what_a_power_cut_could_undo_is_synced_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seal after the bytes, the name after the file, and what is forgotten first of all."""
    done: list[str] = []

    def traced(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            at = (
                args[0] if not isinstance(args[0], int) else os.readlink(f"/proc/self/fd/{args[0]}")
            )
            path = Path(os.path.relpath(at, tmp_path)) if str(at).startswith("/") else at
            done.append(f"{name} {str(path).replace('.tunnelsync', '')}")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    left(tmp_path / "d", 0)
    for name in ("fsync", "fdatasync", "replace", "link", "ftruncate"):
        traced(name)
    part = part_of(tmp_path / "d", restart=True, sync=True)
    part.open()
    assert done == []  # nothing is dropped before there is an answer
    part.begin(VERSION, ())
    assert done == ["fsync .", "ftruncate d.part"]  # and no journal made before there is a block
    done.clear()
    part.write(0, (BLOCKS[0],))
    part.checkpoint([(0, DIGESTS[0])])
    assert done == ["replace d.new", "fdatasync d.journal", "fsync ."]
    done.clear()
    part.seal()
    assert done == ["fdatasync d.part", "fdatasync d.journal"]
    done.clear()
    part.publish(0)
    assert done == ["fsync d.part", "link d.part", "fsync ."]
    left(tmp_path / "e", 0)
    done.clear()
    part = part_of(tmp_path / "e")
    kept = part.open()
    assert kept is not None
    part.begin(VERSION, kept.blocks.items())
    part.close(keep=True)
    assert done == ["fsync e.new", "replace e.new"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 6 MiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_b8_on_a_full_disk_the_journal_gets_the_room_that_it_needs(small_disk: Path) -> None:
    """Its last page is full, so that one more entry needs another."""
    target, page = small_disk / "d", os.sysconf("SC_PAGE_SIZE")
    short = Kept(ORIGIN, VERSION, {})
    version = Version(len(DATA), "v" * (page - len(encode(short)) - 20), 0)
    part = part_of(target)
    part.open()
    part.begin(version, ())
    part.write(0, (BLOCKS[0],))
    with pytest.raises(WriteFailed, match="the disk is full"):
        part.write(1, (BLOCKS[1],))
    with pytest.raises(WriteFailed, match="the disk is full"):
        part.write(2, (BLOCKS[2],))
    part.checkpoint([(0, DIGESTS[0])])
    part.close(keep=True)
    journal = small_disk / f"d{JOURNAL_SUFFIX}"
    assert journal.stat().st_size > page
    kept = Journal(journal, 1 << 20).read()
    assert kept is not None
    assert set(kept.blocks) == {0}
    assert digest((small_disk / f"d{SUFFIX}").read_bytes()[:BLOCK_BYTES]) == DIGESTS[0]


def test_b8_blocks_that_found_no_room_in_the_journal_are_noted_once_there_is(
    small_disk: Path,
) -> None:
    target, page = small_disk / "d", os.sysconf("SC_PAGE_SIZE")
    short = Kept(ORIGIN, VERSION, {})
    version = Version(len(DATA), "v" * (page - len(encode(short)) - 20), 0)
    part = part_of(target)
    part.open()
    part.begin(version, ())
    part.write(0, (BLOCKS[0],))
    free = os.statvfs(small_disk)
    (small_disk / "other").write_bytes(bytes(free.f_bavail * free.f_frsize))
    with pytest.raises(WriteFailed, match="the disk is full"):
        part.checkpoint([(0, DIGESTS[0])])
    (small_disk / "other").unlink()
    part.checkpoint([])
    part.close(keep=True)
    assert found(target) == {0}


@pytest.mark.parametrize("sync", [True, False])
def test_with_a_sync_the_disk_begins_when_a_block_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    """What is synced at the end is not to wait for the end."""
    begun: list[tuple[int, int]] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED  # which writes out what it cannot drop
        begun.append((offset, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    part = part_of(tmp_path / "d", sync=sync)
    part.open()
    part.begin(VERSION, ())
    for index, block in enumerate(BLOCKS):
        part.write(index, (block[:3], block[3:]))
    part.publish(0)
    assert (tmp_path / "d").read_bytes() == DATA
    whole = [(0, BLOCK_BYTES), (BLOCK_BYTES, BLOCK_BYTES)]  # the rest is synced at once
    assert begun == (whole if sync else [])


def test_what_no_journal_speaks_of_is_not_kept(tmp_path: Path) -> None:
    part = part_of(tmp_path / "d")
    part.open()
    part.begin(VERSION, ())
    part.write(0, (BLOCKS[0],))
    part.close(keep=True)
    assert list(tmp_path.iterdir()) == []


def test_what_was_appended_to_a_part_file_is_not_published(tmp_path: Path) -> None:
    left(tmp_path / "d", 0, 1, 2)
    with (tmp_path / "d.tunnelsync.part").open("ab") as file:
        file.write(b"x")
    part = part_of(tmp_path / "d")
    kept = part.open()
    assert kept is not None
    part.begin(VERSION, kept.blocks.items())
    part.publish(VERSION.modified_ns)
    assert (tmp_path / "d").read_bytes() == DATA
