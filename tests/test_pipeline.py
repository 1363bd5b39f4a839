"""Segments on their way into a store, which here does as the test says."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tunnelsync import pipeline
from tunnelsync.errors import DatasetChanged, StoreRefused, StoreUnavailable
from tunnelsync.multipart import Operations
from tunnelsync.pipeline import Pipeline
from tunnelsync.settings import MIB, StoreSettings
from tunnelsync.versions import Versions
from tunnelsync.window import Reading

SIZE, SECONDS = 32 * MIB, 20


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
        assert name == "delete_object"
        removing.set()
        await go.wait()
        removed.append(kind["Key"])
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


class Away:
    """A store that keeps keys, and is away for a moment when the test says."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.removed: list[str] = []
        self.away: list[str] = []
        """The ends of keys whose next request fails."""
        self.hangs = asyncio.Event()
        self.keeps_silent = False
        """When it is asked to remove something."""
        self.dataset, self.progress = Dataset(), list[int]()
        self.settings = StoreSettings(parts_at_once=2, abort_seconds=0.5)
        operations = Operations(
            request=self._request, ask=self._request, send=self._send, wait=_never, sign=_never
        )
        self.versions = Versions(self.settings, operations)
        self.line = Pipeline(self.settings, operations, self.versions, "k", SIZE, None, 60)

    async def _request(self, name: str, **kind: Any) -> dict[str, Any]:
        if name == "delete_object":
            if self.keeps_silent:
                await asyncio.Event().wait()
            self.removed.append(kind["Key"])
        else:
            self._put(kind["Key"])
        return {}

    async def _send(self, window: Any, name: str, **kind: Any) -> None:
        if self.hangs.is_set() and self.keys:
            await asyncio.Event().wait()
        if self.dataset.fileno() >= 0:
            async with window.deadline:
                window.begin(SECONDS)
                async for _ in window:
                    pass
        self._put(kind["Key"])

    def _put(self, key: str) -> None:
        for end in self.away:
            if key.endswith(end):
                self.away.remove(end)
                raise StoreUnavailable("it is away")
        self.keys.append(key)

    async def fill(self) -> None:
        with ThreadPoolExecutor(1) as executor:
            reading = Reading(self.dataset, executor, self.progress.append)
            await self.line.fill(reading, True, lambda: (), lambda: None)


async def _never(*_: object) -> Any:
    raise AssertionError


@pytest.mark.parametrize("what", [f"{16 * MIB:016x}", "/blocks"])
async def test_a_store_that_is_away_for_a_moment_costs_one_request(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "PAUSES_SECONDS", (0, 0))
    store = Away()
    store.away = [what, what]
    await store.fill()
    assert store.away == []
    assert len(store.keys) == len(set(store.keys)) == len(store.line.shelf.cuts) + 1
    assert store.removed == []


async def test_a_segment_that_goes_out_again_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "PAUSES_SECONDS", (0, 0))
    store = Away()
    store.away = [f"{16 * MIB:016x}"]
    with (tmp_path / "d").open("w+b") as file:
        file.truncate(SIZE)
        store.dataset.fileno = file.fileno  # type: ignore[method-assign]
        await store.fill()
    assert max(store.progress) == store.progress[-1] == SIZE


async def test_b2_of_a_dataset_that_is_edited_no_segment_counts_that_came_after_it() -> None:
    store, looks = Away(), 0

    async def unchanged() -> None:
        nonlocal looks
        looks += 1
        if looks > 1:
            raise DatasetChanged("it was edited")

    store.dataset.unchanged = unchanged  # type: ignore[method-assign]
    with pytest.raises(DatasetChanged):
        await store.fill()
    assert not any(key.endswith("/blocks") for key in store.keys)
    assert set(store.keys) <= set(store.removed)


async def test_a_store_that_stays_away_ends_it_and_one_before_the_first_byte_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "PAUSES_SECONDS", (0, 0))
    store = Away()
    store.away = [f"{16 * MIB:016x}"] * 3
    with pytest.raises(StoreUnavailable):
        await store.fill()
    assert store.away == []
    assert set(store.keys) <= set(store.removed)
    store = Away()
    store.away = ["0" * 16]
    with pytest.raises(StoreUnavailable):
        await store.fill()
    assert store.keys == []


async def test_what_was_cut_off_on_its_way_is_removed_once_more_later() -> None:
    store = Away()
    store.hangs.set()
    filling = asyncio.create_task(store.fill())
    async with asyncio.timeout(10):
        while len(store.line.shelf.under_way) < 2:
            await asyncio.sleep(0)
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    once = sorted(store.removed)
    assert len(once) == 3  # the first, which is up, and two that may still land
    store.removed.clear()
    await store.versions.multipart.close()
    assert sorted(store.removed) == [one for one in once if one not in store.keys]


async def test_a_store_that_is_silent_when_it_is_to_tidy_up_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "PAUSES_SECONDS", (0, 0))
    store = Away()
    store.away, store.keeps_silent = [f"{16 * MIB:016x}"] * 3, True
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable):
            await store.fill()
    assert store.removed == []
    store.keeps_silent = False
    await store.versions.multipart.close()
    assert store.keys
    assert set(store.keys) <= set(store.removed)
