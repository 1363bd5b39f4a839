"""Segments on their way into a store, which here does as the test says."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tunnelsync.errors import StoreRefused
from tunnelsync.pipeline import Pipeline
from tunnelsync.settings import MIB, StoreSettings
from tunnelsync.versions import Versions
from tunnelsync.window import Operations, Reading

SIZE = 32 * MIB


class Dataset:
    """A dataset that nobody reads here."""

    name, size, etag, mtime_ns, ctime_ns = "d", SIZE, "e", 0, 0

    def fileno(self) -> int:
        """Return nothing that can be read."""
        return -1

    async def unchanged(self) -> None:
        """It is."""


async def test_what_is_being_removed_is_not_told_of() -> None:
    removing, go = asyncio.Event(), asyncio.Event()
    put, removed = list[str](), list[str]()

    async def send(window: object, name: str, **kind: Any) -> None:
        if put:
            raise StoreRefused("it is full")
        put.append(kind["Key"])

    async def request(name: str, **kind: Any) -> dict[str, Any]:
        assert name == "delete_objects"
        removing.set()
        await go.wait()
        removed.extend(one["Key"] for one in kind["Delete"]["Objects"])
        return {}

    async def never(*_: object) -> Any:
        raise AssertionError

    settings = StoreSettings(parts_at_once=1)
    store = Operations(request=request, ask=request, send=send, wait=never, sign=never)
    line = Pipeline(settings, store, Versions(settings, store), "k", SIZE, None, 60)
    up: list[object] = []
    with ThreadPoolExecutor(1) as executor:
        reading = Reading(Dataset(), executor, None)
        filling = asyncio.create_task(
            line.fill(reading, True, lambda: (), lambda: up.extend(line.run(0)))
        )
        await asyncio.wait_for(removing.wait(), 10)
        assert len(up) == 1
        assert not line.run(0)
        go.set()
        with pytest.raises(StoreRefused):
            await filling
    assert set(put) < set(removed)
