"""What a download leaves when it is cut off, crowded out, or out of space."""

import asyncio
import fcntl
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from played_router import MAC, Streaming, client, content, framed, played, stream_headers, streamed
from tunnelsync.client import Fetched, Record
from tunnelsync.errors import Cancelled, TargetBusy, TargetExists, WriteFailed
from tunnelsync.frames import BLOCK_BYTES

DATA = content(3 * BLOCK_BYTES)
SHORT = content(1000)
PART = "d.tunnelsync.part"


async def sending(request: web.Request) -> web.StreamResponse:
    return streamed(DATA)


async def sending_short(request: web.Request) -> web.StreamResponse:
    return streamed(SHORT)


class Waiting:
    """A router that holds the second block back, or the end, until it is told."""

    def __init__(self, data: bytes = DATA) -> None:
        self.go = asyncio.Event()
        self._data = data

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        whole, first = framed(self._data), min(BLOCK_BYTES, len(self._data)) + 36
        answer = web.StreamResponse(headers=stream_headers(len(self._data)))
        await answer.prepare(request)
        await answer.write(whole[:first])
        await self.go.wait()
        await answer.write(whole[first:])
        return answer


class Begun:
    """Notes what a progress callback is told; ``first`` is set at once, ``block`` by a block."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.block = asyncio.Event()
        self.told: list[tuple[int, int | None]] = []

    def __call__(self, done: int, size: int | None) -> None:
        self.told.append((done, size))
        self.first.set()
        if done:
            self.block.set()


async def test_progress_tells_the_size_at_once_and_each_block_that_is_written(
    tmp_path: Path,
) -> None:
    begun = Begun()
    async with played(sending) as url, client(url) as ts:
        await ts.fetch(MAC, "d", tmp_path, progress=begun)
    assert begun.told == [(i * BLOCK_BYTES, len(DATA)) for i in (0, 1, 2, 3)]


async def test_nothing_is_asked_for_a_target_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"old")
    async with client("http://127.0.0.1:1") as ts:
        with pytest.raises(TargetExists):
            await ts.fetch(MAC, "d", tmp_path)
    assert (tmp_path / "d").read_bytes() == b"old"


async def test_a_cancelled_download_leaves_nothing(tmp_path: Path) -> None:
    begun = Begun()
    async with played(Waiting()) as url, client(url) as ts:
        task = asyncio.create_task(ts.fetch(MAC, "d", tmp_path, progress=begun))
        async with asyncio.timeout(10):
            while not list(tmp_path.iterdir()):
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert list(tmp_path.iterdir()) == []


async def test_a_fetch_that_is_cancelled_from_within_is_no_success(tmp_path: Path) -> None:
    def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    async def whole(request: web.Request) -> web.StreamResponse:
        return streamed(DATA)

    async with played(whole) as url, client(url) as ts:
        with pytest.raises(Cancelled):
            await ts.fetch(MAC, "d", tmp_path, progress=cancelled)
    assert "d" not in os.listdir(tmp_path)


async def test_of_two_at_once_one_wins_whole_and_the_other_says_why(tmp_path: Path) -> None:
    router = Waiting()
    async with played(router) as url, client(url) as one, client(url) as two:
        first = asyncio.create_task(one.fetch(MAC, "d", tmp_path))
        async with asyncio.timeout(10):
            while not list(tmp_path.iterdir()):
                await asyncio.sleep(0)
        with pytest.raises(TargetBusy, match="another fetch of this process"):
            await two.fetch(MAC, "d", tmp_path)
        router.go.set()
        await first
    assert (tmp_path / "d").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["d"]


@asynccontextmanager
async def short_in_hand(folder: Path) -> AsyncIterator[asyncio.Task[Fetched]]:
    """Fetch a short dataset whose block has come, but not its end; that comes with the end here."""
    begun, router = Begun(), Waiting(SHORT)
    async with played(router) as url, client(url) as ts:
        task = asyncio.create_task(ts.fetch(MAC, "d", folder, progress=begun))
        await asyncio.wait_for(begun.block.wait(), 10)
        yield task
        router.go.set()
        await asyncio.wait({task})


@pytest.mark.parametrize("data", [SHORT, DATA], ids=["short", "long"])
async def test_who_waits_for_an_answer_holds_the_target(tmp_path: Path, data: bytes) -> None:
    go = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        await go.wait()
        return streamed(data)

    async with played(slow) as url, client(url) as ts, asyncio.timeout(20):
        first = asyncio.create_task(ts.fetch(MAC, "d", tmp_path))
        while PART not in os.listdir(tmp_path):
            await asyncio.sleep(0)
        with pytest.raises(TargetBusy):
            await ts.fetch(MAC, "d", tmp_path)
        go.set()
        await first
    assert os.listdir(tmp_path) == ["d"]
    assert (tmp_path / "d").read_bytes() == data


async def test_a_target_that_another_takes_before_the_answer_is_left_to_it(tmp_path: Path) -> None:
    others: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        others.append(os.open(tmp_path / PART, os.O_CREAT | os.O_WRONLY))
        fcntl.flock(others[0], fcntl.LOCK_EX)
        return streamed(DATA)

    record = Record()
    async with played(answer) as url, client(url) as ts:
        with pytest.raises(TargetBusy):
            await ts.fetch(MAC, "d", tmp_path, record=record)
    os.close(*others)
    assert os.listdir(tmp_path) == [PART]
    assert record.notes == []  # nothing is kept that one could go on from


async def test_a_target_that_comes_before_the_answer_is_not_replaced(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        (tmp_path / "d").write_bytes(b"new")
        return streamed(DATA)

    async with played(answer) as url, client(url) as ts:
        with pytest.raises(TargetExists):
            await ts.fetch(MAC, "d", tmp_path)
    assert os.listdir(tmp_path) == ["d"]
    assert (tmp_path / "d").read_bytes() == b"new"


async def test_a_short_dataset_takes_no_file_before_all_of_it_came(tmp_path: Path) -> None:
    async with short_in_hand(tmp_path):
        assert os.listdir(tmp_path) == []
    assert os.listdir(tmp_path) == ["d"]
    assert (tmp_path / "d").read_bytes() == SHORT


async def test_a_short_dataset_is_not_put_over_what_another_process_writes(tmp_path: Path) -> None:
    async with short_in_hand(tmp_path) as task:
        other = os.open(tmp_path / PART, os.O_CREAT | os.O_WRONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        os.write(other, b"theirs")
    os.close(other)
    assert isinstance(task.exception(), TargetBusy)
    assert os.listdir(tmp_path) == [PART]
    assert (tmp_path / PART).read_bytes() == b"theirs"


async def test_what_was_left_meanwhile_is_none_of_a_short_dataset(tmp_path: Path) -> None:
    async with short_in_hand(tmp_path):
        (tmp_path / PART).write_bytes(b"left" * 1000)
    assert os.listdir(tmp_path) == ["d"]
    assert (tmp_path / "d").read_bytes() == SHORT


async def test_a_short_dataset_never_replaces_what_came_there_meanwhile(tmp_path: Path) -> None:
    async with short_in_hand(tmp_path) as task:
        (tmp_path / "d").write_bytes(b"new")
    assert isinstance(task.exception(), TargetExists)
    assert os.listdir(tmp_path) == ["d"]
    assert (tmp_path / "d").read_bytes() == b"new"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 6 MiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


async def test_b8_a_full_disk_is_a_clear_error_and_what_came_stays_for_the_next_run(
    small_disk: Path,
) -> None:
    (small_disk / "d").write_bytes(b"old")
    router = Streaming(DATA)
    async with played(router) as url, client(url) as ts:
        with pytest.raises(WriteFailed, match="the disk is full"):
            await ts.fetch(MAC, "d", small_disk, force=True)
        assert (small_disk / "d").read_bytes() == b"old"
        subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
        done = await ts.fetch(MAC, "d", small_disk, force=True)
    assert (small_disk / "d").read_bytes() == DATA
    assert os.listdir(small_disk) == ["d"]
    assert router.asked == [(0, None), (1, None)]
    assert done.resumed_bytes == BLOCK_BYTES


async def test_b8_a_full_disk_keeps_nothing_of_a_short_dataset(small_disk: Path) -> None:
    full = small_disk / "full"
    with suppress(OSError), full.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    async with played(sending_short) as url, client(url) as ts:
        with pytest.raises(WriteFailed, match="the disk is full"):
            await ts.fetch(MAC, "d", small_disk)
        assert os.listdir(small_disk) == ["full"]
        full.unlink()
        await ts.fetch(MAC, "d", small_disk)
    assert (small_disk / "d").read_bytes() == SHORT


async def test_a_folder_that_cannot_be_written_is_told_before_anything_is_asked(
    small_disk: Path,
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    async with client("http://127.0.0.1:1") as ts:
        with pytest.raises(WriteFailed, match="the file system is read-only"):
            await ts.fetch(MAC, "d", small_disk)


async def test_a_name_never_leads_out_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    async with played(sending) as url, client(url) as ts:
        for name in ("etc/passwd", "a/b/..c", "x\\..\\y", "~root", "-"):
            done = await ts.fetch(MAC, name)
            assert done.path is not None
            assert done.path.parent == tmp_path / "here"
    assert os.listdir(tmp_path) == ["here"]


async def test_a_plain_part_file_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d.part").write_bytes(b"mine")
    async with played(sending) as url, client(url) as ts:
        await ts.fetch(MAC, "d", tmp_path)
    assert (tmp_path / "d.part").read_bytes() == b"mine"


async def test_the_longest_name_there_is_can_be_fetched(tmp_path: Path) -> None:
    async with played(sending) as url, client(url) as ts:
        await ts.fetch(MAC, "n" * 255, tmp_path)
    assert os.listdir(tmp_path) == ["n" * 255]
