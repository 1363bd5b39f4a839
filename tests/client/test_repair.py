"""What is wrong or missing is fetched again, and nothing else; real sockets, played faults."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from client.test_offload import Store, told
from played_router import MAC, Flipping, Streaming, client, content, json, played
from tunnelsync.client import Record, Resume, TunnelSync
from tunnelsync.errors import (
    ConnectorOffline,
    ConnectorUnknown,
    DatasetDenied,
    StoreRefused,
    VerificationFailed,
)
from tunnelsync.frames import BLOCK_BYTES, END
from tunnelsync.protocol import H_MODE, Mode, error_answer
from tunnelsync.settings import ClientSettings

FRAME = BLOCK_BYTES + 36
DATA = content(5 * BLOCK_BYTES + 77)
PATIENT: dict[str, Any] = {"retry_for_seconds": 30.0, "backoff_first_seconds": 0.01}


async def fetched(ts: TunnelSync, target: Path, **how: Any) -> Record:
    """Fetch by stream, see that the target is right, and return what happened."""
    record = Record()
    await ts.fetch(MAC, "d", target, record=record, **{"mode": Mode.STREAM, **how})
    assert target.read_bytes() == DATA
    assert os.listdir(target.parent) == [target.name]
    return record


@pytest.mark.parametrize("where", ["payload", "digest"])
async def test_b6_a_block_that_came_wrong_is_fetched_again_alone(
    tmp_path: Path, where: str
) -> None:
    at = 2 * FRAME + (100 if where == "payload" else FRAME - 1)
    router = Flipping(DATA, at, times=1)
    async with played(router) as url, client(url) as ts:
        record = await fetched(ts, tmp_path / "d")
    assert router.asked == [(0, None), (2, 1)]
    assert (record.repaired, record.retries) == (1, 0)
    assert record.receipt().repaired_blocks == 1


@pytest.mark.parametrize("byte", [0, 3])
async def test_b6_a_flipped_head_costs_no_more_than_what_follows_it(
    tmp_path: Path, byte: int
) -> None:
    router = Flipping(DATA, 2 * FRAME + byte, times=1)
    async with played(router) as url, client(url) as ts:
        await fetched(ts, tmp_path / "d")
    assert router.asked[0] == (0, None)
    assert [first for first, _ in router.asked[1:]] == [2] * (len(router.asked) - 1)


async def test_b6_an_end_that_does_not_fit_condemns_the_whole_stream(tmp_path: Path) -> None:
    router = Flipping(DATA, -1, times=1)
    async with played(router) as url, client(url) as ts:
        await fetched(ts, tmp_path / "d")
    assert router.asked == [(0, None), (0, None)]


async def test_b6_a_block_that_stays_wrong_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    class Third(Streaming):
        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            first = self.asked[-1][0]
            wrong = bytearray(body)
            wrong[(2 - first) * FRAME + 9] ^= 1
            return await super().send(request, headers, bytes(wrong))

    router = Third(DATA)
    async with played(router) as url, client(url) as ts:
        with pytest.raises(VerificationFailed, match="block 2 came wrong 4 times"):
            await fetched(ts, tmp_path / "d")
        assert not (tmp_path / "d").exists()
        right = Streaming(DATA)
        router.send = right.send  # type: ignore[method-assign]
        router.asked.clear()
        record = await fetched(ts, tmp_path / "d")
    assert router.asked == [(2, 1)]
    assert record.resumed_bytes == len(DATA) - BLOCK_BYTES


class Breaking(Streaming):
    """A router that breaks each stream off after some bytes, so many times."""

    def __init__(self, data: bytes, after: int, times: int) -> None:
        super().__init__(data)
        self.after, self.times = after, times

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        if not self.times:
            return await super().send(request, headers, body)
        self.times -= 1
        answer = web.StreamResponse(headers=headers | {"Content-Length": str(len(body))})
        await answer.prepare(request)
        await answer.write(body[: self.after])
        assert request.transport is not None
        request.transport.close()
        return answer


async def test_a_stream_that_breaks_goes_on_at_the_first_missing_block(tmp_path: Path) -> None:
    router = Breaking(DATA, FRAME + 5, times=3)
    async with played(router) as url, client(url, **PATIENT) as ts:
        record = await fetched(ts, tmp_path / "d")
    assert router.asked == [(0, None), (1, None), (2, None), (3, None)]
    assert record.retries == 3
    outcomes = [one.outcome for one in record.receipt().transfers]
    assert outcomes == ["broken", "broken", "broken", "delivered"]


async def test_a_stream_without_its_end_is_not_believed(tmp_path: Path) -> None:
    router = Breaking(DATA, 6 * FRAME - (BLOCK_BYTES - 77), times=1)
    async with played(router) as url, client(url, **PATIENT) as ts:
        await fetched(ts, tmp_path / "d")
    assert router.asked == [(0, None), (5, None)]
    assert END.size > 0


async def test_of_what_does_not_heal_nothing_is_tried_again(tmp_path: Path) -> None:
    asked = 0

    async def router(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return json(error_answer(DatasetDenied("no")), 403)

    async with played(router) as url, client(url, **PATIENT) as ts:
        with pytest.raises(DatasetDenied):
            await ts.fetch(MAC, "d", tmp_path)
    assert asked == 1


class Away(Streaming):
    """A router whose connector is away at first; it says so, and when to come again."""

    def __init__(self, data: bytes, *answers: Callable[[], web.Response]) -> None:
        super().__init__(data)
        self.answers = list(answers)
        self.times: list[float] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.times.append(asyncio.get_running_loop().time())
        if self.answers:
            return self.answers.pop(0)()
        return await super().__call__(request)


async def test_a_connector_that_is_away_is_waited_for_as_long_as_the_router_says(
    tmp_path: Path,
) -> None:
    def offline() -> web.Response:
        answer = json(error_answer(ConnectorOffline("away")), 503)
        answer.headers["Retry-After"] = "1"
        return answer

    router = Away(DATA, offline, lambda: web.Response(status=502, text="<html>"))
    async with played(router) as url, client(url, **PATIENT) as ts:
        record = await fetched(ts, tmp_path / "d")
    assert router.times[1] - router.times[0] >= 1
    assert record.retries == 2
    assert "away; trying again in" in record.notes[0]


async def test_a_connector_unknown_is_waited_for_only_after_other_trouble(tmp_path: Path) -> None:
    def unknown() -> web.Response:
        return json(error_answer(ConnectorUnknown("who?")), 404)

    router = Away(DATA, lambda: web.Response(status=503), unknown)
    async with played(router) as url, client(url, **PATIENT) as ts:
        await fetched(ts, tmp_path / "d")
        router.answers = [unknown]
        with pytest.raises(ConnectorUnknown):
            await ts.fetch(MAC, "d", tmp_path / "other")
        assert len(router.times) == 4


async def test_parallel_streams_share_the_blocks_and_repair_their_own(tmp_path: Path) -> None:
    class Second(Breaking):
        """Breaks the first stream that does not begin at the beginning."""

        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            if self.asked[-1][0] == 0:
                return await Streaming.send(self, request, headers, body)
            return await super().send(request, headers, body)

    router = Second(DATA, FRAME + 5, times=1)
    async with (
        played(router) as url,
        client(url, **PATIENT, parallel=3, parallel_least_bytes=2 * BLOCK_BYTES) as ts,
    ):
        record = await fetched(ts, tmp_path / "d")
    # Cut in two for the first, open-ended stream and another; the rest is less than two spans.
    assert router.asked[:2] == [(0, None), (3, None)]
    assert (4, None) in router.asked[2:]
    assert record.retries == 1


async def test_no_more_streams_are_open_at_once_than_there_may_be(tmp_path: Path) -> None:
    three, more, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Held(Streaming):
        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            if len(self.asked) >= 3:
                (three if len(self.asked) == 3 else more).set()
            answer = web.StreamResponse(headers=headers)
            await answer.prepare(request)
            await answer.write(body[:9])
            await go.wait()
            await answer.write(body[9:])
            return answer

    chosen = {"parallel": 6, "parallel_most": 3, "parallel_least_bytes": BLOCK_BYTES}
    async with played(Held(DATA)) as url, client(url, **chosen) as ts, asyncio.timeout(30):
        fetch = asyncio.create_task(fetched(ts, tmp_path / "d"))
        await three.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(more.wait(), 0.3)
        go.set()
        await fetch


async def test_parallel_streams_are_not_for_stdout_nor_for_buffer(tmp_path: Path) -> None:
    router = Streaming(DATA)
    chosen = {"parallel": 8, "parallel_least_bytes": BLOCK_BYTES}
    async with played(router) as url, client(url, **chosen) as ts:
        with (tmp_path / "d").open("wb") as file:
            await ts.write_to(MAC, "d", file.fileno(), mode=Mode.STREAM)
    assert (tmp_path / "d").read_bytes() == DATA
    assert router.asked == [(0, None)]


async def test_b6_a_block_that_came_wrong_for_stdout_is_fetched_again_and_none_is_left_out(
    tmp_path: Path,
) -> None:
    """What came behind it was in hand, and could not be written."""
    router = Flipping(DATA, 2 * FRAME + 100, times=1)
    async with played(router) as url, client(url) as ts:
        with (tmp_path / "d").open("wb") as file:
            await ts.write_to(MAC, "d", file.fileno(), mode=Mode.STREAM)
    assert (tmp_path / "d").read_bytes() == DATA
    assert router.asked == [(0, None), (2, None)]


async def test_b6_an_end_that_does_not_fit_what_went_to_stdout_is_told(tmp_path: Path) -> None:
    """It cannot be taken back, and nobody knows which block is wrong."""
    router = Flipping(DATA, -1, times=1)
    async with played(router) as url, client(url) as ts:
        with (tmp_path / "d").open("wb") as file, pytest.raises(VerificationFailed):
            await ts.write_to(MAC, "d", file.fileno(), mode=Mode.STREAM)
    assert router.asked == [(0, None)]


class Failing(Store):
    """A store that answers so many downloads wrong, then right; ``how`` answers the wrong ones."""

    def __init__(self, data: bytes, how: str, times: int) -> None:
        super().__init__(data)
        self.how, self.times = how, times

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        whole = await super().__call__(request)
        assert isinstance(whole, web.Response)
        if request.path == "/blocks" or not self.times:
            return whole
        self.times -= 1
        if self.how == "expired":
            return web.Response(status=403)
        body = bytes(whole.body)  # type: ignore[arg-type]
        answer = web.StreamResponse(status=whole.status, headers={"Content-Length": str(len(body))})
        await answer.prepare(request)
        cut = BLOCK_BYTES + 5 if self.how == "broken" else len(body)
        wrong = bytearray(body)
        if self.how == "altered":
            wrong[2 * BLOCK_BYTES + 7] ^= 1
        await answer.write(bytes(wrong[:cut]))
        if self.how == "broken":
            assert request.transport is not None
            request.transport.close()
        return answer


class Offering:
    """A router that offers the store's object, each time at another address."""

    def __init__(self, store: str, stream: Streaming) -> None:
        self.store, self.stream = store, stream
        self.accepted: list[list[str]] = []
        self.offers = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        said = await request.json()
        self.accepted.append(said["accept"])
        if request.path.endswith("auto") and "offload" not in said["accept"]:
            return await self.stream(request)
        self.offers += 1
        return json(told(self.store, DATA), headers={H_MODE: "offload"})


async def offloaded(folder: Path, store: Store, mode: Mode, **settings: Any) -> Offering:
    async with played(store) as store_url:
        router = Offering(store_url, Streaming(DATA))
        async with played(router) as url:
            chosen = ClientSettings(router=url, **{**PATIENT, **settings})
            async with TunnelSync(settings=chosen) as ts:
                record = await fetched(ts, folder / "d", mode=mode, resume=Resume.YES)
    assert record.root is not None
    return router


def ranges(store: Store) -> list[str | None]:
    """Return the ranges of the downloads of the object."""
    return [one.headers.get("Range") for one in store.asked if one.path == "/data"]


async def test_s2_an_address_that_expires_in_mid_download_is_renewed(tmp_path: Path) -> None:
    class Expiring(Failing):
        """Breaks the first download off, and knows its address no more at the second one."""

        async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
            self.how = {0: "broken", 1: "expired"}.get(len(ranges(self)), "")
            return await super().__call__(request)

    store = Expiring(DATA, "", times=2)
    router = await offloaded(tmp_path, store, Mode.OFFLOAD)
    assert router.offers >= 2
    rest = f"bytes={BLOCK_BYTES}-{len(DATA) - 1}"
    assert ranges(store)[0] is None
    assert set(ranges(store)[1:]) == {rest}


async def test_s4_a_block_of_the_store_that_is_wrong_is_fetched_again_alone(
    tmp_path: Path,
) -> None:
    store = Failing(DATA, "altered", times=1)
    await offloaded(tmp_path, store, Mode.OFFLOAD)
    one = f"bytes={2 * BLOCK_BYTES}-{3 * BLOCK_BYTES - 1}"
    assert ranges(store) == [None, one]


async def test_auto_goes_on_as_a_stream_when_the_store_breaks_twice(tmp_path: Path) -> None:
    store = Failing(DATA, "broken", times=100)
    router = await offloaded(tmp_path, store, Mode.AUTO)
    assert router.accepted[-1] == ["stream"]
    assert router.stream.asked == [(2, None)]


async def test_auto_goes_on_as_a_stream_when_an_object_is_wrong(tmp_path: Path) -> None:
    store = Failing(DATA, "altered", times=100)
    store.data = DATA[: 2 * BLOCK_BYTES] + bytes(BLOCK_BYTES) + DATA[3 * BLOCK_BYTES :]
    store.times = 0
    router = await offloaded(tmp_path, store, Mode.AUTO)
    assert router.stream.asked == [(2, 1)]


class Rangeless(Failing):
    """A store that gives whole objects alone."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        whole = await super().__call__(request)
        if isinstance(whole, web.Response) and whole.status == 206:
            return web.Response(body=self.data)
        return whole


async def test_a_store_that_gives_no_parts_ends_it_at_once_and_auto_streams(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="no parts of an object"):
        await offloaded(tmp_path, Rangeless(DATA, "broken", times=1), Mode.OFFLOAD)
    (tmp_path / "auto").mkdir()
    router = await offloaded(tmp_path / "auto", Rangeless(DATA, "broken", times=1), Mode.AUTO)
    assert router.stream.asked == [(1, None)]


async def test_ranges_of_the_store_come_by_several_downloads(tmp_path: Path) -> None:
    store = Store(DATA)
    await offloaded(tmp_path, store, Mode.OFFLOAD, parallel=3, parallel_least_bytes=2 * BLOCK_BYTES)
    assert len(ranges(store)) == 2
