"""A folder with all below it, each dataset brought as `TunnelSync.fetch` does."""

import asyncio
import os
import stat
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from tunnelsync.client.api import TunnelSync
from tunnelsync.client.part import Resume
from tunnelsync.client.record import Fetched
from tunnelsync.errors import (
    BadSetting,
    DatasetChanged,
    DatasetDenied,
    DatasetNotFound,
    NotADataset,
    OutsideRoot,
    ProtocolError,
    ReadFailed,
    TargetBusy,
    TargetExists,
    TunnelSyncError,
    Usage,
    VerificationFailed,
    WriteFailed,
)
from tunnelsync.objects import SECOND_NS
from tunnelsync.protocol import ListAnswer, ListEntry, Mode, check_name, printable
from tunnelsync.together import Together

ITS_OWN = (
    DatasetChanged,
    DatasetDenied,
    DatasetNotFound,
    NotADataset,
    OutsideRoot,
    ReadFailed,
    TargetBusy,
    TargetExists,
    Usage,
    VerificationFailed,
)
"""What goes wrong with one dataset or folder, and says nothing of the others."""
FAILURES = 1000
"""So many failures are listed; all are counted."""


@dataclass(slots=True)
class FolderFetched:
    """What became of a folder. Sizes in bytes; ``seconds`` from the call to the end.

    ``there`` counts datasets that were there already, of the same size and time, ``unlisted`` the
    names that cannot be datasets; ``failures`` has the first of those that failed, by name.
    """

    fetched: int = 0
    bytes: int = 0
    there: int = 0
    failed: int = 0
    unlisted: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, TunnelSyncError]] = field(default_factory=list)


Told = Callable[[str, Fetched | TunnelSyncError | None], None]
"""Hears of each dataset by its name: what was fetched, what went wrong, or None: it was there."""


async def fetch_folder(
    ts: TunnelSync,
    mac: str,
    folder: str,
    into: Path | str,
    *,
    at_once: int = 4,
    mode: Mode = Mode.AUTO,
    force: bool = False,
    resume: Resume = Resume.YES,
    sync: bool = True,
    told: Told = lambda _, __: None,
) -> FolderFetched:
    """Bring what is in a folder of a connector, with all folders below it, into a folder here.

    The folder here is made if its parent is there. A file that is there with the dataset's size
    and time stays as it is; another one is replaced with ``force``, and is a failure without. What
    goes wrong with one dataset is kept in the answer, and the others come all the same; what
    concerns all of them (no router, no connector, no room) is raised as `TunnelSync.fetch` does.
    """
    if at_once < 1:
        raise BadSetting("a folder is fetched by at least one dataset at once")
    began, done, turn = time.monotonic(), FolderFetched(), asyncio.Lock()

    def failed(name: str, error: TunnelSyncError) -> None:
        if not isinstance(error, ITS_OWN):
            raise error
        done.failed += 1
        if len(done.failures) < FAILURES:
            done.failures.append((name, error))
        told(name, error)

    async def work(found: AsyncIterator[tuple[str, Path, ListEntry]]) -> None:
        while True:
            async with turn:
                one = await anext(found, None)
            if one is None:
                return
            name, path, entry = one
            try:
                if await asyncio.to_thread(_is_there, path, entry):
                    done.there += 1
                    told(name, None)
                    continue
                fetched = await ts.fetch(
                    mac, name, path, mode=mode, force=force, resume=resume, sync=sync
                )
            except TunnelSyncError as error:
                failed(name, error)
                continue
            done.fetched += 1
            done.bytes += fetched.bytes
            told(name, fetched)

    async with aclosing(_below(ts, mac, folder.strip("/"), Path(into), done, failed)) as found:
        together = Together()
        for _ in range(at_once):
            together.add(work(found))
        await together.wait()
    done.seconds = time.monotonic() - began
    return done


@dataclass(slots=True)
class _Open:
    """A folder that is gone through: where it goes, the pages to come, and what is left of one."""

    name: str
    path: Path
    pages: AsyncGenerator[ListAnswer, None]
    entries: deque[ListEntry] = field(default_factory=deque)


async def _below(
    ts: TunnelSync,
    mac: str,
    folder: str,
    into: Path,
    done: FolderFetched,
    failed: Callable[[str, TunnelSyncError], None],
) -> AsyncGenerator[tuple[str, Path, ListEntry], None]:
    """Yield each dataset below a folder, with its name and where it goes, and make the folders."""
    opened = [_Open(folder, into, ts.pages(mac, folder))]
    try:
        while opened:
            here = opened[-1]
            if not here.entries:
                page = await _next_page(here, failed, first=len(opened) == 1)
                if page is None:
                    opened.pop()
                    continue
                done.unlisted += page.unlisted if page.next is None else 0
                if here.path is into:  # now that there is something to bring
                    await asyncio.to_thread(_make, into)
                here.entries.extend(page.entries)
                continue
            entry = here.entries.popleft()
            name = f"{here.name}/{entry.name}".lstrip("/")
            path = here.path / _component(entry.name)
            if entry.kind != "folder":
                yield name, path, entry
                continue
            try:
                await asyncio.to_thread(_make, path)
            except TunnelSyncError as error:
                failed(f"{name}/", error)
                continue
            opened.append(_Open(name, path, ts.pages(mac, name)))
    finally:
        for here in opened:
            await here.pages.aclose()


async def _next_page(
    here: _Open, failed: Callable[[str, TunnelSyncError], None], *, first: bool
) -> ListAnswer | None:
    """Return the next page of a folder, or None at its end; the first folder must be there."""
    try:
        return await anext(here.pages, None)
    except TunnelSyncError as error:
        if first:
            raise
        failed(f"{here.name}/", error)
        return None


def _component(name: str) -> str:
    """Return a name of a listing if it leads nowhere else; raises `ProtocolError`."""
    if "/" in name or check_name(name) != name:
        raise ProtocolError(f"the listing has a name that leads elsewhere: {printable(name[:200])}")
    return name


def _make(path: Path) -> None:
    """Make a folder, unless it is there. A link is not followed: it was not made by us."""
    try:
        path.mkdir()
    except FileExistsError:
        if not stat.S_ISDIR(path.lstat().st_mode):
            what = f"{printable(str(path))} is there, and is no folder"
            raise TargetExists(what, hint="Move it away, or choose another place.") from None
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "that cannot be the name of a folder"
        raise WriteFailed(f"cannot make the folder {printable(str(path))}: {why}") from None


def _is_there(path: Path, entry: ListEntry) -> bool:
    """Tell whether a file has the size and the time of a dataset; `fetch` gives it both."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
        return False
    theirs = entry.modified_ns
    if theirs is not None and not found.st_mtime_ns % SECOND_NS:
        theirs -= theirs % SECOND_NS  # a file system that keeps no more
    return found.st_mtime_ns == theirs
