"""`TunnelSync`: the Python API of the client. The command line does nothing that is not here."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tunnelsync.client import auto, buffer, offload, receipts, stream
from tunnelsync.client.download import FileThread, Progress, download
from tunnelsync.client.incoming import Incoming, Proof, etag_of, number_of, size_of
from tunnelsync.client.link import Link
from tunnelsync.client.target import Descriptor, PartFile, Sink, resolve
from tunnelsync.errors import BadSetting, ProtocolError
from tunnelsync.identity import Mac, mac_address
from tunnelsync.protocol import (
    H_MODIFIED,
    ListAnswer,
    ListEntry,
    Mode,
    Receipt,
    check_name,
)
from tunnelsync.settings import ClientSettings, Secret

MODES: Mapping[Mode, Callable[[Link, Mac, str], AbstractAsyncContextManager[Incoming]]] = {
    Mode.BUFFER: buffer.opened,
    Mode.STREAM: stream.opened,
    Mode.OFFLOAD: offload.opened,
    Mode.AUTO: auto.opened,
}
PAGE_ENTRIES = 1000
"""The most that a router gives at once; a long folder comes in several pages."""
WAIT_ONCE_SECONDS = 30.0
"""One request for a receipt waits no longer than this, below what proxies cut."""
WAIT_AGAIN_SECONDS = 0.25
"""The least time between two requests for one receipt."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What `TunnelSync.fetch` brought: every byte of it is verified.

    ``mode`` is the one asked for, ``mode_used`` the one that brought it; ``path`` is None where
    it went to a descriptor. Times in seconds from the call; ``first_byte_seconds`` is None for
    an empty dataset whose bytes never came.
    """

    request_id: str
    mac: Mac
    dataset: str
    mode: Mode
    mode_used: Mode
    path: Path | None
    bytes: int
    seconds: float
    first_byte_seconds: float | None
    root: str
    etag: str

    @property
    def megabytes_per_second(self) -> float:
        """The rate from the call to the end, in 10**6 bytes per second."""
        return self.bytes / 1e6 / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ConnectorEntry:
    """One connector that the router knows."""

    mac: str
    version: str = ""
    state: str = ""
    connected_seconds: float | None = None
    transfers: int = 0


@dataclass(frozen=True, slots=True)
class _Connectors:
    connectors: tuple[ConnectorEntry, ...]


class TunnelSync:
    """A client of one router::

        async with TunnelSync("https://router.example.org", token="...") as ts:
            fetched = await ts.fetch("cc-28-aa-00-11-22", "data/2024.csv", "2024.csv")

    Every method raises a `TunnelSyncError`: the router's own, or one of ours for the way there
    (`RouterUnreachable`, `BrokenOff`, `Stalled`, `VerificationFailed`, ...). ``settings`` holds
    all the rest; its ``token_file`` is read by the command line only.
    """

    def __init__(
        self,
        router: str | None = None,
        *,
        token: str | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        chosen = settings or ClientSettings()
        if router is not None:
            chosen = replace(chosen, router=router)
        if token is not None:
            chosen = replace(chosen, token=Secret(token))
        self._settings = chosen
        self._link = Link(chosen)

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._link.__aexit__(kind, error, trace)

    async def fetch(
        self,
        mac: str,
        dataset: str,
        path: Path | str | None = None,
        *,
        mode: Mode = Mode.AUTO,
        force: bool = False,
        sync: bool = False,
        progress: Progress | None = None,
    ) -> Fetched:
        """Bring a dataset into a file, which appears whole and verified or not at all.

        Without ``path``, or with a folder as one, the file has the dataset's base name. Raises
        `TargetExists` before anything is asked for, unless ``force``; `TargetBusy` while another
        process writes it; `WriteFailed`. ``sync`` writes it through to the disk.
        """
        mac, dataset = _checked(mac, dataset)
        target = resolve(path, dataset, force=force)
        part = PartFile(target, force=force, sync=sync)
        return await self._fetch(mac, dataset, Mode(mode), part, target, progress)

    async def write_to(
        self,
        mac: str,
        dataset: str,
        descriptor: int,
        *,
        mode: Mode = Mode.AUTO,
        progress: Progress | None = None,
    ) -> Fetched:
        """Write a dataset to an open descriptor, each block once it is verified.

        After an error what was written is a true beginning of the dataset.
        """
        mac, dataset = _checked(mac, dataset)
        return await self._fetch(mac, dataset, Mode(mode), Descriptor(descriptor), None, progress)

    async def _fetch(
        self,
        mac: Mac,
        dataset: str,
        mode: Mode,
        sink: Sink,
        path: Path | None,
        progress: Progress | None,
    ) -> Fetched:
        began = time.perf_counter()
        incoming, root = await download(
            MODES[mode](self._link, mac, dataset),
            sink,
            blocks_in_hand=self._settings.blocks_in_hand,
            progress=progress,
        )
        first = incoming.first_byte_at
        return Fetched(
            request_id=incoming.request_id,
            mac=mac,
            dataset=dataset,
            mode=mode,
            mode_used=incoming.mode,
            path=path,
            bytes=incoming.size,
            seconds=time.perf_counter() - began,
            first_byte_seconds=None if first is None else first - began,
            root=root,
            etag=incoming.etag,
        )

    async def blocks(
        self, mac: str, dataset: str, *, mode: Mode = Mode.AUTO
    ) -> AsyncIterator[bytes]:
        """Yield a dataset's blocks in order (4 MiB, the last one shorter), each verified.

        Only the end of the iteration says that they were all: it raises if any is missing.
        """
        mac, dataset = _checked(mac, dataset)
        thread = FileThread()
        try:
            async with MODES[Mode(mode)](self._link, mac, dataset) as incoming:
                proof = Proof(incoming.size)
                async for claim in incoming.claims:
                    parts = await thread.call(partial(proof.take, claim))
                    yield b"".join(parts)
                proof.finish()
        finally:
            thread.close()

    async def read(self, mac: str, dataset: str) -> bytes:
        """Return a whole, verified dataset by mode buffer; `TooLarge` over the router's cap."""
        return b"".join([block async for block in self.blocks(mac, dataset, mode=Mode.BUFFER)])

    async def list(self, mac: str, folder: str = "") -> AsyncIterator[ListEntry]:
        """Yield what a folder holds, sorted by name; an empty ``folder`` is the root."""
        async for page in self.pages(mac, folder):
            for entry in page.entries:
                yield entry

    async def pages(self, mac: str, folder: str = "") -> AsyncIterator[ListAnswer]:
        """Yield a folder's listing page by page, each with its count of unlisted names."""
        folder = folder.removesuffix("/")
        path = _path(mac_address(mac), f"{check_name(folder)}/" if folder else "")
        after: str | None = None
        while True:
            query = f"?limit={PAGE_ENTRIES}" + (f"&after={quote(after, safe='')}" if after else "")
            page = await self._link.ask(ListAnswer, "GET", path + query)
            yield page
            if page.next is None:
                return
            if page.next == after:
                raise ProtocolError("the listing does not go on")
            after = page.next

    async def stat(self, mac: str, dataset: str) -> ListEntry:
        """Return a dataset's size, etag and time of change without reading it."""
        mac, dataset = _checked(mac, dataset)
        async with self._link.request("HEAD", _path(mac, dataset)) as response:
            return ListEntry(
                name=dataset,
                kind="dataset",
                size=size_of(response),
                etag=etag_of(response),
                modified_ns=number_of(response, H_MODIFIED),
            )

    async def connectors(self) -> tuple[ConnectorEntry, ...]:
        """Return the connectors that the router knows."""
        return (await self._link.ask(_Connectors, "GET", "connectors")).connectors

    async def receipt(self, request_id: str, *, wait_seconds: float = 0.0) -> Receipt:
        """Return a transfer's receipt; waits so long for its end, and then returns it as it is."""
        if not wait_seconds >= 0:
            raise BadSetting("the seconds to wait must not be negative")
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_seconds
        while True:
            asked = loop.time()
            left = min(WAIT_ONCE_SECONDS, max(0.0, end - asked))
            receipt = await receipts.ask(self._link, request_id, wait_seconds=round(left, 3))
            if receipt.outcome is not None or loop.time() >= end:
                return receipt
            await asyncio.sleep(max(0.0, asked + WAIT_AGAIN_SECONDS - loop.time()))

    async def cancel(self, request_id: str) -> None:
        """End a transfer; harmless if it has ended."""
        async with self._link.request("DELETE", receipts.path_of(request_id)) as response:
            await self._link.body(response).whole(self._settings.message_bytes)


def _checked(mac: str, dataset: str) -> tuple[Mac, str]:
    return mac_address(mac), check_name(dataset)


def _path(mac: Mac, name: str) -> str:
    return "/".join(["datasets", mac, *(quote(part, safe="") for part in name.split("/"))])
