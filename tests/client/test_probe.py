"""A probe: the download of a fetch, of which nothing is kept."""

import os
from pathlib import Path

import pytest

from played_router import MAC, Flipping, Streaming, client, content, digests_of, played
from tunnelsync import frames
from tunnelsync.errors import BadSetting, VerificationFailed
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode

DATA = content(4 * BLOCK_BYTES + 7)


async def test_a_probe_brings_all_of_it_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    router = Streaming(DATA)
    async with played(router) as url, client(url) as ts:
        probed = await ts.probe(MAC, "d", mode=Mode.STREAM)
    assert (probed.bytes, probed.path) == (len(DATA), None)
    assert probed.root == frames.root(digests_of(DATA))
    assert router.asked == [(0, None)]
    assert os.listdir(tmp_path) == []


async def test_a_probe_of_a_beginning_asks_for_no_more_than_that() -> None:
    router = Streaming(DATA)
    async with played(router) as url, client(url) as ts:
        probed = await ts.probe(MAC, "d", mode=Mode.STREAM, blocks=2)
    assert probed.bytes == 2 * BLOCK_BYTES
    assert probed.root == frames.root(digests_of(DATA)[:2])
    assert router.asked == [(0, 2)]


async def test_a_beginning_longer_than_the_dataset_is_the_dataset() -> None:
    async with played(Streaming(DATA)) as url, client(url) as ts:
        probed = await ts.probe(MAC, "d", mode=Mode.STREAM, blocks=99)
    assert (probed.bytes, probed.root) == (len(DATA), frames.root(digests_of(DATA)))


@pytest.mark.parametrize("streams", [2, 4])
async def test_each_stream_of_a_probe_is_one_request(streams: int) -> None:
    router = Streaming(DATA)
    async with played(router) as url, client(url) as ts:
        probed = await ts.probe(MAC, "d", mode=Mode.STREAM, blocks=4, streams=streams)
    assert (probed.bytes, len(router.asked)) == (4 * BLOCK_BYTES, streams)


async def test_a_block_that_is_not_right_is_no_success() -> None:
    async with played(Flipping(DATA, 99)) as url, client(url) as ts:
        with pytest.raises(VerificationFailed):
            await ts.probe(MAC, "d", mode=Mode.STREAM, blocks=1)


@pytest.mark.parametrize(("blocks", "streams"), [(0, 1), (1, 0), (None, 0)])
async def test_a_probe_of_nothing_is_refused(blocks: int | None, streams: int) -> None:
    async with client("http://127.0.0.1:1") as ts:
        with pytest.raises(BadSetting):
            await ts.probe(MAC, "d", blocks=blocks, streams=streams)
