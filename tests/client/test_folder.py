"""A folder with all below it, of a router that a test plays: names that lead away, and bounds."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from played_router import MAC, client, json, played, streamed
from tunnelsync.client import fetch_folder
from tunnelsync.client.folder import FAILURES
from tunnelsync.errors import (
    BadName,
    BadSetting,
    DatasetDenied,
    ProtocolError,
    TunnelSyncError,
    Unauthorized,
)
from tunnelsync.protocol import Mode


class Listed:
    """A router with one folder of these names, and how many datasets are asked for at once."""

    def __init__(self, *names: str, kind: str = "dataset", code: str = "", status: int = 0) -> None:
        self.entries: list[dict[str, Any]] = [
            {"name": name, "kind": kind, "size": 3, "etag": "v1", "modified_ns": 1}
            for name in names
        ]
        self.code, self.status = code, status
        self.at_once = self.most = self.asked = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            inner = request.path.rstrip("/").endswith(MAC)
            return json({"entries": self.entries if inner else [], "unlisted": 2})
        self.asked += 1
        if self.code:
            return json({"status": "error", "error": {"code": self.code}}, self.status)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            for _ in range(10):
                await asyncio.sleep(0)
            return streamed(b"abc")
        finally:
            self.at_once -= 1


async def brought(listed: Listed, into: Path, **how: Any) -> Any:
    async with played(listed) as url, client(url) as ts:
        return await fetch_folder(ts, MAC, "", into, mode=Mode.STREAM, sync=False, **how)


@pytest.mark.parametrize("kind", ["dataset", "folder"])
@pytest.mark.parametrize("name", ["..", ".", "", "../x", "a/b", "/etc/x", "a\0b"])
async def test_n4_a_name_of_a_listing_leads_nowhere_else(
    tmp_path: Path, kind: str, name: str
) -> None:
    into = tmp_path / "into"
    with pytest.raises((ProtocolError, BadName)):
        await brought(Listed(name, kind=kind), into)
    assert [path.name for path in tmp_path.rglob("*")] == ["into"]


async def test_no_more_are_asked_for_at_once_than_may_be(tmp_path: Path) -> None:
    listed = Listed(*map(str, range(40)))
    done = await brought(listed, tmp_path, at_once=3)
    assert (done.fetched, done.bytes, done.unlisted, listed.most) == (40, 120, 2, 3)
    with pytest.raises(BadSetting):
        await brought(listed, tmp_path, at_once=0)


async def test_failures_are_counted_and_not_all_kept(tmp_path: Path) -> None:
    listed = Listed(*map(str, range(FAILURES + 5)), code="dataset_denied", status=403)
    told: list[object] = []
    done = await brought(listed, tmp_path, told=lambda _, what: told.append(what))
    assert (done.failed, len(done.failures), done.fetched) == (FAILURES + 5, FAILURES, 0)
    assert len(told) == FAILURES + 5
    assert all(isinstance(one, DatasetDenied) for one in told)


async def test_an_error_of_all_is_raised_and_ends_the_others(tmp_path: Path) -> None:
    listed = Listed(*map(str, range(100)), code="unauthorized", status=401)
    with pytest.raises(TunnelSyncError) as caught:
        await brought(listed, tmp_path, at_once=2)
    assert type(caught.value) is Unauthorized
    assert listed.asked <= 4
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
