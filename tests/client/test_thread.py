"""Threads for files: kept for the next one, and never left behind by a client that is closed."""

import threading

import pytest

from tunnelsync.client.thread import Threads


async def test_an_idle_thread_is_used_again_up_to_their_number() -> None:
    threads = Threads(1)
    first, second = threads.take(), threads.take()
    name = await first.call(lambda: threading.current_thread().name)
    threads.give(first)
    threads.give(second)
    with pytest.raises(RuntimeError):
        await second.call(lambda: None)
    again = threads.take()
    assert await again.call(lambda: threading.current_thread().name) == name
    again.close()


async def test_one_that_is_given_back_after_the_close_ends() -> None:
    threads = Threads(8)
    late = threads.take()
    await late.call(lambda: None)
    threads.close()
    threads.give(late)
    with pytest.raises(RuntimeError):
        await late.call(lambda: None)
