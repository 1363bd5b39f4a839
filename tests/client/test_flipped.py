"""Whatever one wrong answer holds, the next one mends it; and what is always wrong has an end."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from played_router import MAC, Streaming, client, content, framed, played
from tunnelsync.errors import BrokenOff, VerificationFailed
from tunnelsync.frames import BLOCK_BYTES, END
from tunnelsync.protocol import Mode

FRAME_BYTES = BLOCK_BYTES + 36


class Once(Streaming):
    """A router whose next answer is changed, once, by ``change``."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.flip: int | None = None
        self.keep: int | None = None

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        if self.flip is not None:
            wrong = bytearray(body)
            wrong[self.flip // 8] ^= 1 << self.flip % 8
            body = bytes(wrong)
        if self.keep is not None:
            body = body[: self.keep]
        self.flip = self.keep = None
        return await super().send(request, headers, body)


@pytest.mark.parametrize("size", [0, 1])
async def test_b6_any_flipped_bit_of_a_small_dataset_is_mended(tmp_path: Path, size: int) -> None:
    data = content(size)
    router = Once(data)
    async with (
        played(router) as url,
        client(url, retry_for_seconds=20.0, backoff_first_seconds=0.0) as ts,
    ):
        for bit in range(len(framed(data)) * 8):
            router.flip, router.asked = bit, []
            await ts.fetch(MAC, "d", tmp_path / "d", mode=Mode.STREAM, force=True, sync=False)
            assert (tmp_path / "d").read_bytes() == data, bit
            assert len(router.asked) == 2, bit


@pytest.mark.parametrize("bit", [0, 9, 31])
@pytest.mark.parametrize("at", [0, FRAME_BYTES, 2 * FRAME_BYTES + 5 + 36])
async def test_b6_a_flipped_bit_in_any_head_of_a_long_dataset_is_mended(
    tmp_path: Path, at: int, bit: int
) -> None:
    data = content(2 * BLOCK_BYTES + 5)
    router = Once(data)
    router.flip = at * 8 + bit
    async with (
        played(router) as url,
        client(url, retry_for_seconds=20.0, backoff_first_seconds=0.0) as ts,
    ):
        await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert (tmp_path / "d").read_bytes() == data


@pytest.mark.parametrize("size", [0, 5])
async def test_b1_a_small_dataset_cut_anywhere_is_fetched_again(tmp_path: Path, size: int) -> None:
    data = content(size)
    router = Once(data)
    async with (
        played(router) as url,
        client(url, retry_for_seconds=20.0, backoff_first_seconds=0.0) as ts,
    ):
        for keep in range(len(framed(data))):
            router.keep, router.asked = keep, []
            await ts.fetch(MAC, "d", tmp_path / "d", mode=Mode.STREAM, force=True, sync=False)
            assert (tmp_path / "d").read_bytes() == data
            assert len(router.asked) == 2


class Ending(Streaming):
    """A router whose streams end as they should, after so many blocks of those asked for."""

    def __init__(self, data: bytes, blocks: int) -> None:
        super().__init__(data)
        self.blocks = blocks

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        at = self.asked[-1][0] * BLOCK_BYTES
        some = self.data[at : at + self.blocks * BLOCK_BYTES]
        return await super().send(request, headers, framed(some))


async def test_a_clean_end_that_comes_too_early_is_a_break_and_not_asked_for_ever(
    tmp_path: Path,
) -> None:
    router = Ending(content(2 * BLOCK_BYTES + 5), 0)
    async with played(router) as url, client(url) as ts:
        with pytest.raises(BrokenOff, match="before all of it"):
            await asyncio.wait_for(ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM), 20)
    assert router.asked == [(0, None)]


async def test_streams_that_end_too_early_each_bring_what_they_hold(tmp_path: Path) -> None:
    router = Ending(content(2 * BLOCK_BYTES + 5), 1)
    async with (
        played(router) as url,
        client(url, retry_for_seconds=20.0, backoff_first_seconds=0.0) as ts,
    ):
        await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert (tmp_path / "d").read_bytes() == router.data
    assert [first for first, _ in router.asked] == [0, 1, 2]


@pytest.mark.parametrize("size", [0, 5, BLOCK_BYTES + 5])
async def test_an_end_that_never_comes_is_not_waited_for_for_ever(
    tmp_path: Path, size: int
) -> None:
    class Endless(Streaming):
        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            return await super().send(request, headers, body[: -END.size])

    limits = {"retry_for_seconds": 0.5, "backoff_first_seconds": 0.01}
    async with played(Endless(content(size))) as url, client(url, **limits) as ts:
        with pytest.raises(BrokenOff):
            await asyncio.wait_for(ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM), 20)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("size", [0, 5])
async def test_an_answer_that_is_always_wrong_is_given_up_after_so_many_repairs(
    tmp_path: Path, size: int
) -> None:
    class Wrong(Streaming):
        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            return await super().send(request, headers, body[:-1] + bytes([body[-1] ^ 1]))

    router = Wrong(content(size))
    async with played(router) as url, client(url, repairs=2) as ts:
        with pytest.raises(VerificationFailed, match="came wrong 3 times"):
            await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert len(router.asked) == 3


async def test_no_least_length_of_a_stream_is_no_error(tmp_path: Path) -> None:
    router = Streaming(content(3 * BLOCK_BYTES))
    async with played(router) as url, client(url, parallel=3, parallel_least_bytes=0) as ts:
        await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert (tmp_path / "d").read_bytes() == router.data
