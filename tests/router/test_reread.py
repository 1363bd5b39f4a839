"""Files that are read again when they have changed, and not again until they change once more."""

import asyncio
import os
from pathlib import Path

import pytest

from tunnelsync.router import reread
from tunnelsync.router.reread import Files


@pytest.mark.parametrize("other", ["other", "a longer one"])
async def test_a_file_that_has_changed_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Also where another took its place that is as long and as old."""
    path, looks, stamp = tmp_path / "file", asyncio.Semaphore(0), reread._stamp
    loop = asyncio.get_running_loop()

    def looked(path: str) -> tuple[int, ...] | None:
        loop.call_soon_threadsafe(looks.release)
        return stamp(path)

    path.write_text("first")
    files, taken = Files(str(path)), list[str]()
    monkeypatch.setattr(reread, "_stamp", looked)
    watching = asyncio.create_task(files.watch(0.001, path.read_text, taken.append, else_=""))
    async with asyncio.timeout(20):
        for _ in range(3):
            await looks.acquire()
        assert taken == []
        (tmp_path / "new").write_text(other)
        os.utime(tmp_path / "new", ns=(0, path.stat().st_mtime_ns))
        os.replace(tmp_path / "new", path)
        while not taken:
            await looks.acquire()
        while not looks.locked():
            await looks.acquire()
        for _ in range(3):
            await looks.acquire()
    watching.cancel()
    assert taken == [other]
