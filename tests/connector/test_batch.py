"""Small answers in one request: what goes together, and what is given by itself after all."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from played_connector_router import PlayedRouter, connected, served, settings_for
from tunnelsync import protocol
from tunnelsync.batch import Item, unpack
from tunnelsync.connector.batch import LEAST_ITEMS, OPEN_REQUESTS, Batch, Refused
from tunnelsync.protocol import Coding, GetDatasetStream, StatDataset

COUNT = 40
WHOLE = b"0123456789"


class Posts:
    """Takes the requests of a `Batch`, and answers each when the test says."""

    def __init__(self, limit_bytes: int = 4000) -> None:
        self.came: asyncio.Queue[list[str]] = asyncio.Queue()
        self.answers: asyncio.Queue[Refused | None] = asyncio.Queue()
        self.batch = Batch(self.post)
        self.batch.limit_bytes = limit_bytes
        self.sizes: list[int] = []

    async def post(self, parts: Sequence[bytes]) -> Refused | None:
        body = b"".join(parts)
        self.sizes.append(len(body))
        self.came.put_nowait([item.request_id for item, _ in unpack(body)])
        return await self.answers.get()

    def give(self, name: str, body: bytes = b"") -> "asyncio.Task[bool]":
        return asyncio.create_task(self.batch.give(Item(name), body))

    def answer(self, *answers: Refused | None) -> None:
        for one in answers:
            self.answers.put_nowait(one)


async def test_what_becomes_ready_meanwhile_goes_together() -> None:
    posts = Posts()
    first = posts.give("r1")
    assert await posts.came.get() == ["r1"]  # alone, it does not wait
    others = [posts.give("r2")]
    assert await posts.came.get() == ["r2"]
    others += [posts.give(name) for name in ("r3", "r4", "r5")]
    await asyncio.sleep(0)
    assert posts.came.empty()
    assert OPEN_REQUESTS == 2
    posts.answer({})
    assert await posts.came.get() == ["r3", "r4", "r5"]
    posts.answer({}, {})
    assert await asyncio.gather(first, *others) == [True] * 5


async def test_what_is_given_as_the_others_are_answered_is_sent() -> None:
    posts = Posts()

    async def one_after_the_other() -> bool:
        return await posts.batch.give(Item("r1"), b"") and await posts.batch.give(Item("r3"), b"")

    two = asyncio.create_task(one_after_the_other())
    assert await posts.came.get() == ["r1"]
    other = posts.give("r2")
    assert await posts.came.get() == ["r2"]
    posts.answer({}, {}, {})
    async with asyncio.timeout(5):
        assert [await two, await other] == [True, True]


async def test_a_batch_is_no_longer_than_the_router_takes() -> None:
    posts = Posts(limit_bytes=1000)
    given = [posts.give(f"r{number}", bytes(200)) for number in range(9)]
    posts.answer(*[{}] * 9)
    assert all(await asyncio.gather(*given))
    assert max(posts.sizes) <= 1000
    assert len(posts.sizes) == 3
    assert posts.batch.has_room(1000 // LEAST_ITEMS)
    assert not posts.batch.has_room(1000 // LEAST_ITEMS + 1)


async def test_no_batches_without_a_router_that_takes_them() -> None:
    assert not Posts(limit_bytes=0).batch.has_room(0)


async def test_what_is_refused_must_go_by_itself_unless_nobody_waits() -> None:
    posts = Posts()
    given = [posts.give(name) for name in ("taken", "busy", "conflict", "gone", "unknown")]
    posts.answer({"busy": 503, "conflict": 409, "gone": 410, "unknown": 404})
    assert await asyncio.gather(*given) == [True, False, False, True, True]


async def test_what_no_router_took_must_go_by_itself() -> None:
    posts = Posts()
    given = [posts.give("r1"), posts.give("r2")]
    posts.answer(None)
    assert await asyncio.gather(*given) == [False, False]


async def test_the_answer_to_a_command_that_was_cancelled_is_not_sent() -> None:
    posts = Posts()
    open_ones = [posts.give("r1")]
    assert await posts.came.get() == ["r1"]
    open_ones.append(posts.give("r2"))
    assert await posts.came.get() == ["r2"]
    cancelled, other = posts.give("r3"), posts.give("r4")
    await asyncio.sleep(0)
    cancelled.cancel()
    posts.answer({}, {}, {})
    assert await posts.came.get() == ["r4"]
    assert await asyncio.gather(*open_ones, other) == [True] * 3


async def test_at_its_end_nothing_waits_for_ever() -> None:
    posts = Posts()
    given = posts.give("r1")
    assert await posts.came.get() == ["r1"]
    await posts.batch.close()
    assert not await given


# --- with a connector -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(WHOLE)
    return tmp_path / "data"


@pytest.fixture
async def router() -> AsyncIterator[PlayedRouter]:
    played = PlayedRouter()
    played.batch_bytes = 64 * 1024
    async with served(played):
        yield played


async def asked(router: PlayedRouter, folder: Path) -> None:
    """Have a connector answer `COUNT` streams and stats."""
    async with connected(settings_for(router, folder)):
        ws = await router.socket()
        for number in range(COUNT):
            await ws.send_str(protocol.encode(GetDatasetStream(f"s{number}", "a", Coding.RAW)))
            await ws.send_str(protocol.encode(StatDataset(f"t{number}", "a")))
        for number in range(COUNT):
            stream = await router.stream(f"s{number}")
            assert bytes(stream.body) == WHOLE
            assert stream.init is not None
            assert (await router.result(f"t{number}"))["size"] == len(WHOLE)


async def test_small_answers_share_requests(router: PlayedRouter, folder: Path) -> None:
    await asked(router, folder)
    assert sum(map(len, router.batches)) == 2 * COUNT
    assert len(router.batches) < COUNT
    assert not any(stream.chunks for stream in router.streams.values())


@pytest.mark.parametrize("status", [404, 413, 500])
async def test_without_batches_each_goes_by_itself(
    router: PlayedRouter, folder: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """404: an address that a proxy does not know; 413: a body that it does not take."""
    router.refuse_batches = status
    await asked(router, folder)
    assert all(stream.chunks == [0] for stream in router.streams.values())
    told = [one for one in caplog.messages if "the router takes no batches" in one]
    assert bool(told) == (status == 404)
    if status == 404:
        assert len(router.batches) <= 2 * OPEN_REQUESTS


async def test_a_refused_item_goes_by_itself_and_the_others_do_not(
    router: PlayedRouter, folder: Path
) -> None:
    router.refuse_items = {"s3": 503, "t5": 503}
    await asked(router, folder)
    alone = {name for name, stream in router.streams.items() if stream.chunks}
    assert alone == {"s3"}


async def test_a_router_that_names_no_batches_gets_none(router: PlayedRouter, folder: Path) -> None:
    router.batch_bytes = 0
    await asked(router, folder)
    assert not router.batches
