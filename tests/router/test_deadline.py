"""One deadline for a sequence of waits."""

import asyncio

import pytest

from tunnelsync.errors import BrokenOff, Cancelled
from tunnelsync.router.deadline import Deadline

LONG = 600.0


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_wait_that_ends_in_time_has_no_error() -> None:
    deadline = Deadline()
    async with deadline.within(LONG, "a thing"):
        await asyncio.sleep(0)
    assert deadline.expected == "a thing"


async def test_a_wait_that_is_too_long_is_a_timeout_and_says_for_what() -> None:
    deadline = Deadline()
    with pytest.raises(TimeoutError):
        async with deadline.within(0.01, "one thing"):
            deadline.expect(0.02, "another")
            await for_ever()
    assert (deadline.expected, deadline.seconds, deadline.failure) == ("another", 0.02, None)


async def test_a_failure_ends_the_wait_at_once() -> None:
    deadline = Deadline()
    asyncio.get_running_loop().call_soon(deadline.fail, BrokenOff("gone"))
    with pytest.raises(BrokenOff, match="gone"):
        async with deadline.within(LONG, "a thing"):
            await for_ever()


async def test_a_failure_before_the_wait_is_raised_by_it() -> None:
    deadline = Deadline()
    deadline.fail(BrokenOff("gone"))
    with pytest.raises(BrokenOff):
        async with deadline.within(LONG, "a thing"):
            raise AssertionError("nothing runs in it")


async def test_the_first_failure_stands_whatever_comes_after() -> None:
    deadline = Deadline()
    with pytest.raises(BrokenOff):
        async with deadline.within(LONG, "a thing"):
            deadline.fail(BrokenOff("first"))
            deadline.fail(Cancelled("second"))
            deadline.alive()
            deadline.expect(LONG, "more")
            await for_ever()


async def test_signs_of_life_renew_it() -> None:
    deadline = Deadline()
    loop = asyncio.get_running_loop()
    end = loop.time() + 2.5
    async with deadline.within(1.2, "a thing"):
        while loop.time() < end:
            deadline.alive()
            await asyncio.sleep(0.01)


async def test_a_shorter_wait_takes_the_place_of_a_longer_one() -> None:
    deadline = Deadline()
    with pytest.raises(TimeoutError):
        async with deadline.within(LONG, "a thing"):
            deadline.expect(0.01, "a shorter one")
            await for_ever()


async def test_other_errors_and_cancelling_pass_through() -> None:
    deadline = Deadline()
    with pytest.raises(KeyError):
        async with deadline.within(LONG, "a thing"):
            raise KeyError
    waiting = asyncio.create_task(_wait(deadline))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    deadline.alive()  # and nothing is under way


async def _wait(deadline: Deadline) -> None:
    async with deadline.within(LONG, "a thing"):
        await for_ever()
