"""Tasks that run side by side: what one failure does to the others, and to who waits."""

import asyncio
import gc

import pytest

from tunnelsync.together import Together


class Odd(Exception):
    """What a test raises."""


async def fails(after: asyncio.Event | None = None) -> None:
    if after is not None:
        await after.wait()
    raise Odd


async def test_all_come_to_their_end_also_those_that_were_added_meanwhile() -> None:
    together, ended = Together(), list[int]()

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        if number:
            together.add(work(number - 1))
        await asyncio.sleep(0)
        ended.append(number)

    together.add(work(3))
    await together.wait()
    assert sorted(ended) == [0, 1, 2, 3]


@pytest.mark.parametrize("added_later", [False, True])
async def test_the_first_failure_ends_all_and_who_waited_is_as_before(added_later: bool) -> None:
    together, endless, go = Together(), asyncio.Event(), asyncio.Event()

    async def adds() -> None:
        together.add(fails())
        await endless.wait()

    other = asyncio.create_task(endless.wait())
    together.add(other)
    together.add(adds() if added_later else fails(go))
    go.set()
    with pytest.raises(Odd):
        await asyncio.wait_for(together.wait(), 20)
    assert other.cancelled()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_fails_at_its_end_is_no_second_failure() -> None:
    together = Together()

    async def untidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    together.add(untidy())
    await asyncio.sleep(0)
    together.add(fails())
    with pytest.raises(Odd):
        await asyncio.wait_for(together.wait(), 20)


async def test_of_two_that_fail_at_once_the_other_is_no_trouble(
    caplog: pytest.LogCaptureFixture,
) -> None:
    together, go = Together(), asyncio.Event()
    for _ in range(3):
        together.add(fails(go))
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(Odd):
        await together.wait()
    gc.collect()
    assert not caplog.text  # asyncio tells of errors that nobody asked for


async def test_one_that_is_cancelled_ends_alone() -> None:
    together, ended = Together(), asyncio.Event()
    together.add(other := asyncio.create_task(asyncio.Event().wait()))
    other.cancel()

    async def work() -> None:
        await asyncio.sleep(0)
        ended.set()

    together.add(work())
    await together.wait()
    assert ended.is_set()


async def test_who_stops_waiting_ends_all() -> None:
    together = Together()
    together.add(endless := asyncio.create_task(asyncio.Event().wait()))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(together.wait(), 0.01)
    assert endless.cancelled()
