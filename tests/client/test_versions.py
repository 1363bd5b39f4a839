"""Two versions of a dataset are never joined, whatever the answers call them."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from client.test_offload import Store, told
from played_router import (
    MAC,
    Streaming,
    client,
    content,
    framed,
    json,
    played,
    played_raw,
    raw_answer,
)
from tunnelsync import protocol
from tunnelsync.errors import (
    BrokenOff,
    DatasetChanged,
    PreconditionFailed,
    ProtocolError,
    TunnelSyncError,
)
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode

DATA = content(3 * BLOCK_BYTES + 5)
OTHER = bytes(byte ^ 1 for byte in DATA)
FRAME_BYTES = BLOCK_BYTES + 36


class Breaking(Streaming):
    """A router whose first stream breaks off after two blocks, and then has another dataset.

    ``etag`` is None where its answers carry none.
    """

    tag: str | None = ""

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        if self.tag is None:
            del headers["ETag"]
        if len(self.asked) == 1:
            self.data, body = OTHER, body[: 2 * FRAME_BYTES + 9]
        return await super().send(request, headers, body)


def breaking(tag: str | None) -> Breaking:
    router = Breaking(DATA)
    router.etag, router.tag = tag or "", tag
    return router


@pytest.mark.parametrize("tag", ["", None])
async def test_b3_without_an_etag_the_next_run_starts_over(tmp_path: Path, tag: str | None) -> None:
    async with played(breaking(tag)) as url, client(url) as ts:
        with pytest.raises(BrokenOff):
            await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
        done = await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert (tmp_path / "d").read_bytes() == OTHER
    assert done.resumed_bytes == 0


@pytest.mark.parametrize("tag", ["", None])
async def test_b3_without_an_etag_a_break_is_not_gone_on_from(
    tmp_path: Path, tag: str | None
) -> None:
    limits = {"retry_for_seconds": 20.0, "backoff_first_seconds": 0.0}
    async with played(breaking(tag)) as url, client(url, **limits) as ts:
        with pytest.raises(DatasetChanged, match="no etag"):
            await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert list(tmp_path.iterdir()) == []


async def test_b3_without_an_etag_one_stream_brings_it_all(tmp_path: Path) -> None:
    router = Streaming(DATA)
    router.etag = ""
    async with played(router) as url, client(url, parallel=2, parallel_least_bytes=1) as ts:
        await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert (tmp_path / "d").read_bytes() == DATA
    assert router.asked == [(0, None)]


async def test_b3_a_dataset_that_changes_again_after_starting_over_has_changed(
    tmp_path: Path,
) -> None:
    class Restless(Breaking):
        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            self.etag += "+"
            return await Streaming.send(self, request, headers, body[: FRAME_BYTES + 9])

    router = Restless(DATA)
    limits = {"backoff_first_seconds": 0.0}
    async with played(router) as url:
        async with client(url) as ts:
            with pytest.raises(BrokenOff):
                await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
        async with client(url, retry_for_seconds=20.0, **limits) as ts:
            with pytest.raises(DatasetChanged):
                await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
    assert list(tmp_path.iterdir()) == []


async def test_an_etag_that_cannot_be_asked_for_is_a_foreign_answer(tmp_path: Path) -> None:
    whole = framed(DATA)
    answer = raw_answer(whole, announced=len(whole), size=len(DATA)).replace(b'"v1"', b'"v\xe9"')
    async with played_raw(answer) as url, client(url) as ts:
        with pytest.raises(ProtocolError, match="lacks the headers"):
            await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)


class Renewing:
    """A router whose store holds another dataset under the same etag from the second offer on."""

    def __init__(self, first: str, then: str) -> None:
        self.first, self.then = first, then
        self.offers = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.offers += 1
        offer = told(self.first, DATA) if self.offers == 1 else told(self.then, OTHER)
        return json(offer, headers={protocol.H_MODE: "offload"})


class Short(Store):
    """A store that breaks off after two blocks."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = await super().__call__(request)
        if request.path == "/blocks":
            return answer
        assert request.transport is not None
        whole = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
        await whole.prepare(request)
        await whole.write(DATA[: 2 * BLOCK_BYTES + 9])
        request.transport.close()
        return whole


async def both(tmp_path: Path, target: Path, runs: int, **limits: Any) -> list[TunnelSyncError]:
    """Fetch from a store that breaks off and is then another; return the errors of the runs."""
    errors: list[TunnelSyncError] = []
    async with played(Short(DATA)) as first, played(Store(OTHER)) as then:
        async with played(Renewing(first, then)) as url, client(url, **limits) as ts:
            for _ in range(runs):
                try:
                    await ts.fetch(MAC, "d", target, mode=Mode.OFFLOAD)
                except TunnelSyncError as error:
                    errors.append(error)
    return errors


async def test_b3_other_digests_under_the_same_etag_are_never_joined(tmp_path: Path) -> None:
    limits = {"retry_for_seconds": 20.0, "backoff_first_seconds": 0.0}
    (error,) = await both(tmp_path, tmp_path / "d", 1, **limits)
    assert isinstance(error, DatasetChanged)
    assert list(tmp_path.iterdir()) == []


async def test_b3_nor_are_they_with_what_an_earlier_run_left(tmp_path: Path) -> None:
    broken, changed = await both(tmp_path, tmp_path / "d", 3)
    assert isinstance(broken, BrokenOff)
    assert isinstance(changed, DatasetChanged)
    assert (tmp_path / "d").read_bytes() == OTHER


async def test_b3_a_refusal_of_a_condition_that_was_not_made_is_told_as_it_is(
    tmp_path: Path,
) -> None:
    async def router(request: web.BaseRequest) -> web.StreamResponse:
        return json(protocol.error_answer(PreconditionFailed("odd")), 412)

    async with played(router) as url, client(url) as ts:
        with pytest.raises(PreconditionFailed, match="odd"):
            await ts.fetch(MAC, "d", tmp_path, mode=Mode.STREAM)
