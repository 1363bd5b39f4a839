"""Uploads for nobody: how long they go on, and which are ended for others."""

import asyncio
from collections.abc import Awaitable, Callable

from tunnelsync.connector.flight import Flight, Flights
from tunnelsync.errors import StoreRefused
from tunnelsync.settings import StoreSettings

SECONDS = 10
Wait = Callable[[], Awaitable[object]]


def flights(wait: dict[str, Wait], **settings: float) -> Flights:
    """Flights whose work is to wait for what belongs to their name, if anything."""

    async def fill(flight: Flight, _: bool) -> None:
        if (waiting := wait.get(flight.key[0])) is not None:
            await waiting()

    return Flights(StoreSettings(**settings), fill)  # type: ignore[arg-type]


async def asked(all_of_them: Flights, name: str) -> Flight:
    """Ask once, as a client that then leaves."""
    flight = all_of_them.join((name, "v1"), anew=False)
    question = asyncio.create_task(flight.reached(0, lambda *_: None))
    await asyncio.sleep(0)
    if name != "long":
        await asyncio.wait_for(question, SECONDS)
    question.cancel()
    await asyncio.gather(question, return_exceptions=True)
    return flight


async def test_uploads_that_are_done_end_none_that_runs() -> None:
    here = flights({"long": asyncio.Event().wait}, lingering=1)
    long = await asked(here, "long")
    first, second = await asked(here, "first"), await asked(here, "second")
    assert here.get(long.key) is long
    assert here.get(second.key) is second
    assert here.get(first.key) is None
    await here.close()
    assert long.task.cancelled()


async def test_no_upload_ends_while_a_question_about_it_waits_in_line() -> None:
    here = flights({"long": asyncio.Event().wait}, linger_seconds=0.01)
    async with asyncio.timeout(SECONDS):
        with here.expected("long"):
            flight = await asked(here, "long")
            for _ in range(3):
                timer = flight.timer
                while flight.timer is timer:
                    assert not flight.task.done()
                    await asyncio.sleep(0.001)
        await asyncio.wait([flight.task])
    assert flight.task.cancelled()
    assert here.get(flight.key) is None


async def test_an_upload_that_has_failed_takes_no_later_one_with_it() -> None:
    async def full() -> None:
        raise StoreRefused("it is full")

    wait: dict[str, Wait] = {"d": full}
    here = flights(wait)
    first = here.join(("d", "v1"), anew=False)
    await asyncio.wait({first.task})
    wait["d"] = asyncio.Event().wait
    second = here.join(first.key, anew=False)
    assert second is not first
    here.end(first)
    assert here.get(first.key) is second
    await here.close()


async def test_what_an_upload_has_found_holds_no_longer_than_an_address() -> None:
    for seconds in (0, 600):
        here = flights({}, url_lifetime_seconds=seconds)
        done = await asked(here, "done")
        assert (here.join(done.key, anew=False) is done) == (seconds > 0)
        await here.close()


async def test_an_upload_that_a_question_waits_for_is_not_the_one_too_many() -> None:
    never = asyncio.Event().wait
    here = flights({"long": never}, lingering=1)
    first = here.join(("long", "v1"), anew=False)
    with here.expected("long"):
        first = await asked(here, "long")
        other = here.join(("long", "v2"), anew=False)
        question = asyncio.create_task(other.reached(0, lambda *_: None))
        await asyncio.sleep(0)
        question.cancel()
        await asyncio.gather(question, return_exceptions=True)
        assert here.get(first.key) is first
        assert here.get(other.key) is other
    await here.close()
