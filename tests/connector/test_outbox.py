"""The outbox: bounded, in order, progress dropped first."""

import asyncio

from tunnelsync.connector.outbox import Outbox
from tunnelsync.protocol import Ack, Progress


async def test_progress_gives_way_and_acks_keep_their_order() -> None:
    outbox = Outbox(3)
    await outbox.put(Ack("r1"))
    outbox.offer(Progress("r1", "reading"))
    outbox.offer(Progress("r2", "reading"))
    outbox.offer(Progress("r3", "reading"))
    await outbox.put(Ack("r2"))
    await outbox.put(Ack("r3"))
    assert [await outbox.get() for _ in range(3)] == [Ack("r1"), Ack("r2"), Ack("r3")]


async def test_what_must_not_be_lost_waits_for_room() -> None:
    outbox = Outbox(1)
    await outbox.put(Ack("r1"))
    waiting = asyncio.create_task(outbox.put(Ack("r2")))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await outbox.get() == Ack("r1")
    await waiting
    assert await outbox.get() == Ack("r2")


async def test_a_new_socket_begins_with_an_empty_one() -> None:
    outbox = Outbox(1)
    await outbox.put(Ack("r1"))
    waiting = asyncio.create_task(outbox.put(Ack("r2")))
    await asyncio.sleep(0)
    outbox.clear()
    await waiting
    assert await outbox.get() == Ack("r2")
