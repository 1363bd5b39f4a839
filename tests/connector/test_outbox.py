"""The outbox: bounded, in order, progress dropped first."""

import asyncio

from tunnelsync.connector.outbox import Outbox
from tunnelsync.protocol import Ack, Fault, Progress

NEVER = 3600.0


async def test_progress_gives_way_and_acks_keep_their_order() -> None:
    outbox = Outbox(3, NEVER)
    await outbox.put(Ack("r1"))
    outbox.offer(Progress("r1", "reading"))
    outbox.offer(Progress("r2", "reading"))
    outbox.offer(Progress("r3", "reading"))
    await outbox.put(Ack("r2"))
    await outbox.put(Ack("r3"))
    assert [await outbox.get() for _ in range(3)] == [Ack("r1"), Ack("r2"), Ack("r3")]


async def test_what_must_not_be_lost_waits_for_room() -> None:
    outbox = Outbox(1, NEVER)
    await outbox.put(Ack("r1"))
    waiting = asyncio.create_task(outbox.put(Ack("r2")))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await outbox.get() == Ack("r1")
    await waiting
    assert await outbox.get() == Ack("r2")


async def test_a_new_socket_begins_with_an_empty_one() -> None:
    outbox = Outbox(1, NEVER)
    await outbox.put(Ack("r1"))
    waiting = asyncio.create_task(outbox.put(Ack("r2")))
    await asyncio.sleep(0)
    outbox.clear()
    await waiting
    assert await outbox.get() == Ack("r2")


async def test_what_is_done_in_time_is_not_acknowledged() -> None:
    outbox = Outbox(9, 0.0)
    for request_id in ("r1", "r2", "r3"):
        await outbox.owe(request_id)
    outbox.settle("r2")
    assert [await outbox.get(), await outbox.get()] == [Ack("r1"), Ack("r3")]
    outbox.settle("r1")  # too late, and no harm
    await outbox.owe("r4")
    assert await outbox.get() == Ack("r4")


async def test_acks_that_are_owed_take_room_until_they_are_settled() -> None:
    outbox = Outbox(2, NEVER)
    await outbox.owe("r1")
    await outbox.owe("r2")
    waiting = asyncio.create_task(outbox.put(Fault("bad_request", "")))
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.settle("r1")
    await waiting
    assert isinstance(await outbox.get(), Fault)


async def test_acks_owed_on_a_lost_socket_are_forgotten() -> None:
    outbox = Outbox(9, 0.0)
    await outbox.owe("r1")
    outbox.clear()
    await outbox.owe("r2")
    assert await outbox.get() == Ack("r2")
