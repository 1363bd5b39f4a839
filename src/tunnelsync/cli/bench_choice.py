"""The datasets that ``tunnelsync bench`` measures with: those named, or chosen from listings."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from tunnelsync.cli.bench_plan import Dataset, nearest
from tunnelsync.client import TunnelSync
from tunnelsync.errors import ConnectorUnknown, DatasetNotFound, NotFound, Refused, Unauthorized
from tunnelsync.protocol import ListAnswer

PAGES = 20
"""Pages of listings that are looked through, of at most 1000 names each."""
CHOICES = 5
"""So often it is chosen anew where a dataset cannot be read."""
NEEDS = (
    "Put a file under the connector's root, for instance by "
    "`head -c 100000000 /dev/urandom > FOLDER/bench.bin` on its machine."
)


async def named(ts: TunnelSync, mac: str, names: Sequence[str]) -> list[Dataset]:
    """Return the datasets of these names, the smallest first, but for empty ones.

    Raises the error of one that cannot be read, and `DatasetNotFound` if all are empty.
    """
    found = [await _dataset(ts, mac, name) for name in dict.fromkeys(names)]
    if not any(one.size_bytes for one in found):
        raise DatasetNotFound("what was named is empty, and brings nothing to measure", hint=NEEDS)
    return sorted((one for one in found if one.size_bytes), key=lambda one: one.size_bytes)


async def chosen(
    ts: TunnelSync, mac: str, most_bytes: int, note: Callable[[str], None]
) -> list[Dataset]:
    """Choose from what the connector lists as `nearest` does, but for what it may not read.

    Raises `DatasetNotFound` if nothing is left; ``note`` hears if not all was looked at.
    """
    listed, refused = await _listed(ts, mac, note), dict[Dataset, NotFound | Refused]()
    for _ in range(CHOICES):
        found = nearest((one for one in listed if one not in refused), most_bytes)
        before = len(refused)
        for one in found:
            try:
                await _dataset(ts, mac, one.name)
            except (NotFound, Refused) as error:
                refused[one] = error
        if len(refused) == before:
            break
    if left := [one for one in found if one not in refused]:
        return left
    if refused:
        raise next(iter(refused.values()))
    raise DatasetNotFound(f"connector {mac} lists no dataset with bytes in it", hint=NEEDS)


async def _dataset(ts: TunnelSync, mac: str, name: str) -> Dataset:
    return Dataset(name, (await ts.stat(mac, name)).size or 0)


async def _listed(ts: TunnelSync, mac: str, note: Callable[[str], None]) -> list[Dataset]:
    """Look through the folders, those near the root first, up to `PAGES`."""
    found: list[Dataset] = []
    folders, pages = deque([""]), 0
    while folders and pages < PAGES:
        folder = folders.popleft()
        async for page in _pages(ts, mac, folder):
            pages += 1
            for entry in page.entries:
                name = folder + entry.name
                if entry.kind == "folder":
                    folders.append(f"{name}/")
                else:
                    found.append(Dataset(name, entry.size or 0))
            if pages == PAGES and (folders or page.next is not None):
                note(f"Only the first {len(found):,} datasets listed were looked at.")
                break
    return found


async def _pages(ts: TunnelSync, mac: str, folder: str) -> AsyncIterator[ListAnswer]:
    """Yield a folder's pages; nothing of one inside the root that cannot be listed."""
    try:
        async for page in ts.pages(mac, folder):
            yield page
    except (NotFound, Refused) as error:
        if not folder or isinstance(error, ConnectorUnknown | Unauthorized):
            raise
