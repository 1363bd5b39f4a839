"""A fetch that is cut off at any moment: what was verified stays, and what appears is whole."""

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest
from aiohttp import web

from played_router import MAC, Streaming, client, content, played
from tunnelsync.client.journal import Journal, Kept, Origin, Version
from tunnelsync.client.part import PartFile
from tunnelsync.client.record import Record
from tunnelsync.errors import BrokenOff, VerificationFailed, WriteFailed
from tunnelsync.frames import BLOCK_BYTES, digest
from tunnelsync.protocol import Mode

DATA = content(3 * BLOCK_BYTES + 5)
FRAME_BYTES = BLOCK_BYTES + 36


class BreakingOnce(Streaming):
    """A router whose first stream breaks off in its third block."""

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        if len(self.asked) == 1:
            body = body[: 2 * FRAME_BYTES + 9]
        return await super().send(request, headers, body)


async def left_two_blocks(url: str, target: Path) -> None:
    """Let an earlier run leave two verified blocks."""
    async with client(url) as ts:
        with pytest.raises(BrokenOff):
            await ts.fetch(MAC, "d", target, mode=Mode.STREAM)


def kept_beside(target: Path, data: bytes = DATA) -> Kept | None:
    """Read the journal of a target; see that each block it claims is on the disk, and right."""
    kept = Journal(target.with_name(target.name + ".tunnelsync.journal"), 1 << 20).read()
    if kept is not None:
        there = target.with_name(target.name + ".tunnelsync.part").read_bytes()
        for index, one in kept.blocks.items():
            assert digest(there[index * BLOCK_BYTES :][:BLOCK_BYTES]) == one
            assert one == digest(data[index * BLOCK_BYTES :][:BLOCK_BYTES])
    return kept


def descriptors(folder: Path) -> set[str]:
    """Return the files of a folder that this process has open."""
    links = []
    for one in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{one}"))
        except OSError:
            continue
    return {link for link in links if link.startswith(f"{folder}/")}


@pytest.mark.parametrize("steps", [*range(12), *range(12, 60, 3), *range(60, 400, 20)])
async def test_b7_cancelled_after_any_step_what_an_earlier_run_verified_stays(
    tmp_path: Path, steps: int
) -> None:
    target = tmp_path / "d"
    router = BreakingOnce(DATA)
    async with played(router) as url:
        await left_two_blocks(url, target)
        async with client(url, journal_seconds=0.001) as ts:
            task = asyncio.create_task(ts.fetch(MAC, "d", target, mode=Mode.STREAM))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            assert descriptors(tmp_path) == set()
            if target.exists():
                assert target.read_bytes() == DATA
                assert os.listdir(tmp_path) == ["d"]
                return
            assert task.cancelled()
            kept = kept_beside(target)
            assert kept is not None
            assert {0, 1} <= set(kept.blocks)
            done = await ts.fetch(MAC, "d", target, mode=Mode.STREAM)
    assert done.resumed_bytes >= 2 * BLOCK_BYTES
    assert target.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize("steps", [*range(12), *range(12, 60, 3), *range(60, 400, 20)])
async def test_b7_a_first_fetch_cancelled_after_any_step_leaves_what_is_true_or_nothing(
    tmp_path: Path, steps: int
) -> None:
    target = tmp_path / "d"
    async with played(Streaming(DATA)) as url, client(url, journal_seconds=0.001) as ts:
        task = asyncio.create_task(ts.fetch(MAC, "d", target, mode=Mode.STREAM))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert descriptors(tmp_path) == set()
        if target.exists():
            assert target.read_bytes() == DATA
            assert os.listdir(tmp_path) == ["d"]
            return
        kept = kept_beside(target)
        assert os.listdir(tmp_path) == [] or (kept and kept.blocks)


class Reads:
    """``os.pread``, counted, and held back in its thread until told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.began = threading.Event()
        self.go = threading.Event()
        self._real = os.pread
        monkeypatch.setattr(os, "pread", self)

    def __call__(self, descriptor: int, length: int, offset: int) -> bytes:
        self.count += 1
        self.began.set()
        assert self.go.wait(20)
        return self._real(descriptor, length, offset)


async def test_b4_what_was_left_in_order_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, reads = BreakingOnce(DATA), Reads(monkeypatch)
    reads.go.set()
    async with played(router) as url:
        await left_two_blocks(url, tmp_path / "d")
        async with client(url) as ts:
            done = await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert (done.resumed_bytes, reads.count) == (2 * BLOCK_BYTES, 0)
    assert (tmp_path / "d").read_bytes() == DATA


async def test_b4_what_was_changed_since_is_found_beside_what_comes_and_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, reads = BreakingOnce(DATA), Reads(monkeypatch)
    notes: list[str] = []

    def progress(done: int, size: int | None) -> None:
        if done == size:
            reads.go.set()  # all the rest came before the first block was read

    async with played(router) as url:
        await left_two_blocks(url, tmp_path / "d")
        with (tmp_path / "d.tunnelsync.part").open("r+b") as file:
            file.seek(BLOCK_BYTES + 9)
            file.write(b"other")
        async with client(url) as ts:
            record = Record(notes.append)
            done = await ts.fetch(
                MAC, "d", tmp_path, mode=Mode.STREAM, record=record, progress=progress
            )
    assert done.resumed_bytes == BLOCK_BYTES
    assert router.asked[1:] == [(2, None), (1, 1)]
    assert notes == [
        f"going on from {2 * BLOCK_BYTES:,} bytes verified before, which are checked meanwhile",
        "1 of 2 blocks are not as left, and are fetched again",
    ]
    assert (tmp_path / "d").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["d"]


async def test_b7_cancelled_while_it_looks_again_the_doubt_stays_and_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, reads = tmp_path / "d", Reads(monkeypatch)
    router = BreakingOnce(DATA)
    async with played(router) as url:
        await left_two_blocks(url, target)
        os.utime(target.with_name("d.tunnelsync.part"))
        async with client(url) as ts:
            task = asyncio.create_task(ts.fetch(MAC, "d", target, mode=Mode.STREAM))
            await until(reads.began)
            task.cancel()
            reads.go.set()
            await asyncio.wait({task}, timeout=20)
            assert task.cancelled()
            assert reads.count == 1
            kept = kept_beside(target)
            assert kept is not None
            assert {0, 1} <= set(kept.blocks)
            assert kept.sealed_ns is None
            reads.count = 0
            done = await ts.fetch(MAC, "d", target, mode=Mode.STREAM)
    assert done.resumed_bytes >= 2 * BLOCK_BYTES
    assert reads.count >= 1
    assert target.read_bytes() == DATA


class Disk:
    """``os.fdatasync``, held back in its thread until told, and then failing if told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        self.error: OSError | None = None
        self._real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, descriptor: int) -> None:
        self.began.set()
        assert self.go.wait(20)
        error, self.error = self.error, None
        if error is not None:
            raise error  # once: Linux tells a lost write to one caller only
        self._real(descriptor)


class Waiting(Streaming):
    """A router that holds each stream's second half back until it is told."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.go = asyncio.Event()

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(request)
        await answer.write(body[: 2 * FRAME_BYTES])
        await self.go.wait()
        await answer.write(body[2 * FRAME_BYTES :])
        return answer


async def until(event: threading.Event) -> None:
    """Wait for an event of another thread."""
    assert await asyncio.to_thread(event.wait, 20)


async def test_a_block_counts_when_it_is_written_and_not_when_the_next_one_comes(
    tmp_path: Path,
) -> None:
    router = Waiting(DATA)
    both = asyncio.Event()

    def progress(done: int, size: int | None) -> None:
        if done == 2 * BLOCK_BYTES:
            both.set()

    async with played(router) as url, client(url) as ts:
        fetch = ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM, progress=progress)
        task = asyncio.create_task(fetch)
        await asyncio.wait_for(both.wait(), 20)
        router.go.set()
        await task


async def test_b8_a_disk_that_loses_a_write_at_the_very_end_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, router = Disk(monkeypatch), Waiting(DATA)
    disk.error = OSError(errno.EIO, "lost")
    async with played(router) as url, client(url, journal_seconds=0.001) as ts:
        all_of_it = asyncio.Event()

        def progress(done: int, size: int | None) -> None:
            if done == size:
                all_of_it.set()

        fetch = ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM, progress=progress)
        task = asyncio.create_task(fetch)
        await until(disk.began)
        router.go.set()
        await asyncio.wait_for(all_of_it.wait(), 20)
        disk.go.set()
        with pytest.raises(WriteFailed):
            await task
    assert not (tmp_path / "d").exists()


async def test_b8_a_disk_that_loses_a_write_ends_the_fetch_before_all_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    disk.error = OSError(errno.EIO, "lost")
    over = asyncio.Event()

    class Long(Waiting):
        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            answer = web.StreamResponse(headers=headers)
            await answer.prepare(request)
            await answer.write(body[:FRAME_BYTES])
            await self.go.wait()
            await answer.write(body[FRAME_BYTES : 3 * FRAME_BYTES])
            await over.wait()
            return answer

    router = Long(DATA)
    async with played(router) as url, client(url, journal_seconds=0.001) as ts:
        task = asyncio.create_task(ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM))
        await until(disk.began)
        disk.go.set()
        async with asyncio.timeout(20):
            while disk.error is not None:
                await asyncio.sleep(0)
        router.go.set()
        with pytest.raises(WriteFailed, match="lost"):
            await asyncio.wait_for(task, 20)
        over.set()


async def test_b8_after_a_lost_write_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, router = Disk(monkeypatch), Streaming(DATA)
    disk.go.set()
    async with played(router) as url, client(url) as ts:
        origin = Origin(url + "/", MAC, "d")
        sink = PartFile(tmp_path / "d", origin=origin, journal_bytes=1 << 20, sync=True)
        sink.open()
        sink.begin(Version(len(DATA), "v1", 0), ())
        blocks = [(i, digest(DATA[i * BLOCK_BYTES :][:BLOCK_BYTES])) for i in range(2)]
        for index, _ in blocks:
            sink.write(index, (DATA[index * BLOCK_BYTES :][:BLOCK_BYTES],))
        sink.checkpoint(blocks)
        disk.error = OSError(errno.EIO, "lost")
        for _ in range(2):
            with pytest.raises(WriteFailed):
                sink.seal()
        sink.close(keep=True)
        assert list(tmp_path.iterdir()) == []  # for in memory all of it looks right
        done = await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert done.resumed_bytes == 0


@pytest.mark.parametrize("size", [1000, len(DATA)])
async def test_b8_what_the_last_sync_lost_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The system tells of a lost write once: the sync after that would be believed."""
    real, lost, router = os.fsync, list[str](), Streaming(DATA[:size])

    def fsync(descriptor: int) -> None:
        if not lost:
            lost.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            raise OSError(errno.EIO, "lost")
        real(descriptor)

    async with played(router) as url, client(url) as ts:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(WriteFailed, match="lost"):
            await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
        assert lost == [str(tmp_path / "d.tunnelsync.part")]
        done = await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert done.resumed_bytes == 0
    assert (tmp_path / "d").read_bytes() == DATA[:size]


async def test_b7_cancelled_while_it_gets_its_name_nothing_is_written_to_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Event(), threading.Event()
    real = os.link

    def link(*args: object, **kwargs: object) -> None:
        began.set()
        assert go.wait(20)
        real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", link)
    synced: list[str] = []
    checkpoint = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        synced.append(threading.current_thread().name)
        checkpoint(descriptor)

    notes: list[str] = []
    async with played(Streaming(DATA)) as url, client(url) as ts:
        record = Record(notes.append)
        fetch = ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM, record=record)
        task = asyncio.create_task(fetch)
        await until(began)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        go.set()
        await asyncio.wait({task})
    assert task.cancelled()
    assert (tmp_path / "d").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["d"]
    assert synced == []
    assert not any("kept" in one for one in notes)


class Parts(Streaming):
    """A router whose every other part breaks off; a part that begins at ``bad`` is wrong there,
    and waits until ``held`` is set."""

    bad = -1

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.held = asyncio.Event()

    def progress(self, done: int, size: int | None) -> None:
        """Hear how much of it is held."""
        if done:
            self.held.set()

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        if self.asked[-1][0] == self.bad:
            await self.held.wait()
            body = body[:9] + bytes([body[9] ^ 1]) + body[10:]
        elif len(self.asked) % 2:
            body = body[: FRAME_BYTES + 9]
        return await super().send(request, headers, body)


LONG = content(23 * BLOCK_BYTES + 5)
PARALLEL = {
    "parallel": 4,
    "parallel_least_bytes": 2 * BLOCK_BYTES,
    "journal_seconds": 0.001,
    "backoff_first_seconds": 0.001,
    "retry_for_seconds": 20.0,
}


@pytest.mark.parametrize("steps", [*range(0, 400, 50), *range(400, 2000, 400)])
async def test_b7_parallel_streams_that_break_and_are_cancelled_lose_nothing(
    tmp_path: Path, steps: int
) -> None:
    target = tmp_path / "d"
    router = Parts(LONG)
    async with played(router) as url, client(url, **PARALLEL) as ts:
        task = asyncio.create_task(ts.fetch(MAC, "d", target, mode=Mode.STREAM, sync=False))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert descriptors(tmp_path) == set()
        kept = kept_beside(target, LONG)
        assert target.exists() or os.listdir(tmp_path) == [] or (kept and kept.blocks)
        before = sum(len(LONG[i * BLOCK_BYTES :][:BLOCK_BYTES]) for i in kept.blocks) if kept else 0
        done = await ts.fetch(MAC, "d", target, mode=Mode.STREAM, sync=False, force=True)
    assert done.resumed_bytes == before or before == len(LONG)
    assert target.read_bytes() == LONG
    assert os.listdir(tmp_path) == ["d"]


async def test_an_error_of_one_of_several_streams_ends_them_all_and_keeps_what_came(
    tmp_path: Path,
) -> None:
    target = tmp_path / "d"
    router = Parts(LONG)
    router.bad = 12  # where the second of four streams begins
    async with played(router) as url:
        async with client(url, **PARALLEL, repairs=1) as ts:
            with pytest.raises(VerificationFailed, match="block 12 came wrong 2 times"):
                await ts.fetch(MAC, "d", target, mode=Mode.STREAM, progress=router.progress)
        assert descriptors(tmp_path) == set()
        kept = kept_beside(target, LONG)
        assert kept is not None
        assert 12 not in kept.blocks
        router.bad = -1
        async with client(url, **PARALLEL) as ts:
            done = await ts.fetch(MAC, "d", target, mode=Mode.STREAM)
    assert done.resumed_bytes > 0
    assert target.read_bytes() == LONG


async def test_b6_blocks_of_a_stream_that_ended_wrong_are_taken_back_from_the_journal(
    tmp_path: Path,
) -> None:
    """A kill while they come again must not leave them trusted."""

    async def journal_of(blocks: int) -> None:
        async with asyncio.timeout(20):
            while (kept := kept_beside(tmp_path / "d")) is None or len(kept.blocks) != blocks:
                await asyncio.sleep(0.01)

    class Lying(Streaming):
        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            answer = web.StreamResponse(headers=headers | {"Content-Length": str(len(body))})
            await answer.prepare(request)
            if len(self.asked) > 1:
                await asyncio.Event().wait()
            await answer.write(body[:-1])
            await journal_of(4)
            await answer.write(bytes([body[-1] ^ 1]))
            return answer

    async with played(Lying(DATA)) as url, client(url, journal_seconds=0.01) as ts:
        fetching = asyncio.create_task(ts.fetch(MAC, "d", tmp_path / "d", mode=Mode.STREAM))
        await journal_of(4)
        await journal_of(0)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    assert list(tmp_path.iterdir()) == []
