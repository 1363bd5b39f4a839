"""A router that stops: what the wait for those that run costs, however many there are."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tunnelsync.router import app

COUNT = 300


class Running:
    """A transfer that ends when it is told to."""

    def __init__(self, running: dict[int, "Running"], number: int) -> None:
        self.ended = asyncio.Event()
        self._leave: Callable[[], object] = lambda: running.pop(number)

    def end(self) -> None:
        self._leave()
        self.ended.set()


async def test_a_drain_makes_no_task_for_each_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    running: dict[int, Running] = {}
    running |= {number: Running(running, number) for number in range(COUNT)}
    made, create_task = 0, asyncio.create_task

    def counted(*args: Any, **kind: Any) -> Any:
        nonlocal made
        made += 1
        return create_task(*args, **kind)

    transfers = SimpleNamespace(running=running)
    router: Any = SimpleNamespace(
        settings=SimpleNamespace(drain_seconds=20),
        switchboard=SimpleNamespace(transfers=transfers),
        draining=False,
    )
    drained = create_task(app._drained(router, asyncio.Event()))
    monkeypatch.setattr(asyncio, "create_task", counted)
    for one in list(running.values()):
        await asyncio.sleep(0)
        assert not drained.done()
        one.end()
    assert await asyncio.wait_for(drained, 10)
    assert router.draining
    assert made < 10
