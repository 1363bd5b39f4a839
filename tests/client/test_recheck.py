"""What an unsealed journal names is proven again beside what comes, under every kind of trouble."""

import asyncio
import errno
import itertools
import os
import threading
from pathlib import Path

import pytest
from aiohttp import web

from played_router import MAC, Streaming, client, content, played
from tunnelsync.client import journal
from tunnelsync.client.journal import TAKEN_BACK, Journal, Kept
from tunnelsync.client.record import Record
from tunnelsync.errors import BrokenOff, WriteFailed
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode

FRAME_BYTES = BLOCK_BYTES + 36


class Breaking(Streaming):
    """A router whose streams break off after so many blocks, each after its own number, the last
    one's for all that follow; a shorter stream comes whole."""

    def __init__(self, data: bytes, *after: int) -> None:
        super().__init__(data)
        self.after = list(after)

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        blocks = self.after[min(len(self.asked), len(self.after)) - 1]
        if len(body) > (blocks + 1) * FRAME_BYTES:
            body = body[: blocks * FRAME_BYTES + 9]
        return await super().send(request, headers, body)


WHOLE = 1000
"""More blocks than any stream of these tests has."""


async def broken_off(url: str, target: Path) -> None:
    async with client(url) as ts:
        with pytest.raises(BrokenOff):
            await ts.fetch(MAC, "d", target, mode=Mode.STREAM)


def spoil(target: Path, *indices: int) -> None:
    """Write over blocks of a part file, as a power cut may leave them."""
    with target.with_name("d.tunnelsync.part").open("r+b") as file:
        for index in indices:
            file.seek(index * BLOCK_BYTES + 9)
            file.write(b"other")


def left(target: Path) -> Kept | None:
    return Journal(target.with_name("d.tunnelsync.journal"), 1 << 20).read()


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


class Endless(Streaming):
    """A router whose first stream breaks off after two blocks; the others bring nothing."""

    holds = True

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        if len(self.asked) == 1:
            return await super().send(request, headers, body[: 2 * FRAME_BYTES + 9])
        if self.holds:
            answer = web.StreamResponse(headers=headers)
            await answer.prepare(request)
            await answer.write(body[:9])
            await asyncio.Event().wait()
        return await super().send(request, headers, body)


async def test_b4_a_seal_never_comes_before_the_record_that_takes_a_block_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, target = content(4 * BLOCK_BYTES + 5), tmp_path / "d"
    router, real = Endless(data), journal._write
    began, go = threading.Event(), threading.Event()

    def slow(descriptor: int, record: bytes) -> None:
        if TAKEN_BACK in record and not began.is_set():
            began.set()
            go.wait(0.5)  # or until the end, if that waits for us
        real(descriptor, record)

    async with played(router) as url:
        await broken_off(url, target)
        spoil(target, 1)
        monkeypatch.setattr(journal, "_write", slow)
        async with client(url, journal_seconds=0.05) as ts:
            task = asyncio.create_task(ts.fetch(MAC, "d", target, mode=Mode.STREAM))
            await until(began)
            task.cancel()
            await asyncio.wait({task})
        kept = left(target)
        assert kept is not None
        assert set(kept.blocks) == {0}
        router.holds = False
        async with client(url) as ts:
            await ts.fetch(MAC, "d", target, mode=Mode.STREAM)
    assert target.read_bytes() == data


async def test_a_block_that_was_taken_back_is_progress_when_it_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a line that breaks after each block; two tries without progress are too many."""
    data, target = content(10 * BLOCK_BYTES + 5), tmp_path / "d"
    router = Breaking(data, 9, WHOLE, 1)
    async with played(router) as url:
        await broken_off(url, target)
        spoil(target, *range(1, 9))
        loop = asyncio.get_running_loop()
        async with client(url, retry_for_seconds=1.0, backoff_first_seconds=0.001) as ts:
            real = loop.time
            monkeypatch.setattr(loop, "time", lambda: real() + 0.6 * len(router.asked))
            await ts.fetch(MAC, "d", target, mode=Mode.STREAM)
    assert target.read_bytes() == data


class Counting(Breaking):
    """One that counts its streams that are open at once."""

    now = most = 0

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        if len(self.asked) == 1:
            return await super().send(request, headers, body)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            answer = web.StreamResponse(headers=headers)
            await answer.prepare(request)
            for at in range(0, len(body), FRAME_BYTES):
                await answer.write(body[at : at + FRAME_BYTES])
            return answer
        finally:
            self.now -= 1


async def test_what_is_fetched_again_takes_no_stream_more_than_was_asked_for(
    tmp_path: Path,
) -> None:
    data, target = content(12 * BLOCK_BYTES + 5), tmp_path / "d"
    router = Counting(data, 2)
    async with played(router) as url:
        await broken_off(url, target)
        spoil(target, 0)
        async with client(url, parallel=1) as ts:
            done = await ts.fetch(MAC, "d", target, mode=Mode.STREAM)
    assert (router.most, done.resumed_bytes) == (1, BLOCK_BYTES)
    assert target.read_bytes() == data


async def test_progress_tells_of_what_is_missing_after_all(tmp_path: Path) -> None:
    data, target = content(4 * BLOCK_BYTES + 5), tmp_path / "d"
    seen: list[int] = []
    async with played(Breaking(data, 3, WHOLE)) as url:
        await broken_off(url, target)
        spoil(target, 0, 2)
        async with client(url) as ts:
            await ts.fetch(
                *(MAC, "d", target), mode=Mode.STREAM, progress=lambda done, _: seen.append(done)
            )
    assert any(after < before for before, after in itertools.pairwise(seen))
    assert seen[-1] == len(data)


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let syncs of a part file fail while the list holds True."""
    real, lost = os.fdatasync, [False]

    def fdatasync(descriptor: int) -> None:
        if lost[0] and os.readlink(f"/proc/self/fd/{descriptor}").endswith(".part"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return lost


async def test_b8_a_sync_that_fails_costs_what_came_since_and_nothing_that_was_sealed(
    tmp_path: Path, losing: list[bool]
) -> None:
    data, target, notes = content(6 * BLOCK_BYTES + 5), tmp_path / "d", list[str]()
    async with played(Breaking(data, 3, 2, WHOLE)) as url:
        await broken_off(url, target)
        losing[0] = True
        async with client(url) as ts:
            with pytest.raises(BrokenOff):
                record = Record(notes.append)
                await ts.fetch(MAC, "d", target, mode=Mode.STREAM, record=record)
        assert notes[-1].startswith("what came lately is not kept: ")
        losing[0] = False
        kept = left(target)
        assert kept is not None
        assert (set(kept.blocks), kept.sealed_ns) == ({0, 1, 2}, None)
        async with client(url) as ts:
            done = await ts.fetch(MAC, "d", target, mode=Mode.STREAM)
    assert done.resumed_bytes == 3 * BLOCK_BYTES
    assert target.read_bytes() == data


async def test_b8_a_first_sync_that_fails_leaves_nothing_and_says_so(
    tmp_path: Path, losing: list[bool]
) -> None:
    notes: list[str] = []
    losing[0] = True
    async with played(Breaking(content(6 * BLOCK_BYTES), 2)) as url, client(url) as ts:
        with pytest.raises(BrokenOff):
            await ts.fetch(*(MAC, "d", tmp_path), mode=Mode.STREAM, record=Record(notes.append))
    assert notes[-1].startswith("what came lately is not kept: ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [1000, 2 * BLOCK_BYTES])
async def test_a_folder_that_takes_files_and_shows_none_can_be_written_into(
    tmp_path: Path, size: int
) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    box, data = tmp_path / "box", content(size)
    for folder in (box, *box.parents):
        folder.mkdir(exist_ok=True)
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    box.chmod(0o1733)
    async with played(Streaming(data)) as url, client(url) as ts:
        os.seteuid(65534)
        try:
            await ts.fetch(MAC, "d", box, mode=Mode.STREAM)
        finally:
            os.seteuid(0)
    assert os.listdir(box) == ["d"]
    assert (box / "d").read_bytes() == data


async def test_a_write_that_fails_when_the_file_is_closed_gives_it_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, told = os.close, list[int]()

    def close(descriptor: int) -> None:
        """As where another machine keeps the file: it hears of a full quota at the first close."""
        try:
            late = os.readlink(f"/proc/self/fd/{descriptor}").endswith("d.tunnelsync.part")
        except OSError:
            late = False
        real(descriptor)
        if late and not told:
            told.append(descriptor)
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    async with played(Streaming(content(2 * BLOCK_BYTES))) as url, client(url) as ts:
        monkeypatch.setattr(os, "close", close)
        with pytest.raises(WriteFailed, match="quota"):
            await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM, sync=False)
    assert not (tmp_path / "d").exists()
