"""`TunnelSync`: the Python API of the client. The command line asks a router by nothing else."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tunnelsync.client import receipts
from tunnelsync.client.auto import Auto
from tunnelsync.client.buffer import Buffer
from tunnelsync.client.download import Download
from tunnelsync.client.holdings import Progress
from tunnelsync.client.incoming import WHOLE, Way, etag_of, number_of, prove, size_of
from tunnelsync.client.journal import Origin
from tunnelsync.client.link import WAIT_AGAIN_SECONDS, Link
from tunnelsync.client.offload import Offload
from tunnelsync.client.part import PartFile, Resume
from tunnelsync.client.probe import Beginning, Nowhere
from tunnelsync.client.record import Asked, Fetched, Record
from tunnelsync.client.stream import Stream
from tunnelsync.client.target import Descriptor, Sink, resolve
from tunnelsync.client.thread import SHORT_BYTES, Threads
from tunnelsync.errors import BadSetting, BrokenOff, ProtocolError
from tunnelsync.frames import BLOCK_BYTES
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

WAYS: Mapping[Mode, Callable[[Link, Mac, str], Way]] = {
    Mode.BUFFER: Buffer,
    Mode.STREAM: Stream,
    Mode.OFFLOAD: Offload,
}
WAIT_ONCE_SECONDS = 30.0
"""One request for a receipt waits no longer than this, below what proxies cut."""


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
    (`RouterUnreachable`, `BrokenOff`, `Stalled`, `VerificationFailed`, ...); for an argument of a
    wrong type Python's `TypeError`, `ValueError` or `AttributeError`. ``settings`` holds
    all the rest; its ``token_file`` is read by the command line only. ``waiting`` is told now and
    then how a request stands that has no answer yet: in line, or how many bytes are uploaded.
    """

    def __init__(
        self,
        router: str | None = None,
        *,
        token: str | None = None,
        settings: ClientSettings | None = None,
        waiting: Callable[[Receipt], None] | None = None,
    ) -> None:
        chosen = settings or ClientSettings()
        if router is not None:
            chosen = replace(chosen, router=router)
        if token is not None:
            chosen = replace(chosen, token=Secret(token))
        self._settings = chosen
        self._link = Link(chosen)
        self._link.waiting = waiting
        self._threads = Threads(chosen.idle_threads)

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.close()
        await self._link.__aexit__(kind, error, trace)

    async def fetch(
        self,
        mac: str,
        dataset: str,
        path: Path | str | None = None,
        *,
        mode: Mode = Mode.AUTO,
        force: bool = False,
        resume: Resume = Resume.YES,
        sync: bool = True,
        progress: Progress | None = None,
        record: Record | None = None,
    ) -> Fetched:
        """Bring a dataset into a file, which appears whole and verified or not at all.

        Without ``path``, or with a folder as one, the file has the dataset's base name. What an
        earlier run has left is gone on with, and what this one verifies before an error stays for
        the next, as ``resume`` says. Trouble that can pass is waited out for
        ``retry_for_seconds``. ``sync`` makes the file last through a power cut from the moment it
        appears. ``record`` is told what happens, and gives the receipt, after an error too.

        Raises `TargetExists` before anything is asked for, unless ``force``; `TargetBusy` while
        another process writes it; `WriteFailed`; `VerificationFailed`, which names the block.
        """
        mac, dataset = _checked(mac, dataset)
        record = self._record(record, mac, dataset, mode)
        target = resolve(path, dataset, force=force)
        part = PartFile(
            target,
            force=force,
            sync=sync,
            origin=None if resume is Resume.NO else Origin(str(self._link.router), mac, dataset),
            restart=resume is Resume.RESTART,
            journal_bytes=self._settings.journal_bytes,
        )
        return await self._fetch(record, part, target, progress)

    async def write_to(
        self,
        mac: str,
        dataset: str,
        descriptor: int,
        *,
        mode: Mode = Mode.AUTO,
        progress: Progress | None = None,
        record: Record | None = None,
    ) -> Fetched:
        """Write a dataset to an open descriptor, each block once it is verified.

        After an error what was written is a true beginning of the dataset. A write to a reader that
        does not read is left to its thread when this is cancelled; Python waits for it at its end.
        """
        mac, dataset = _checked(mac, dataset)
        record = self._record(record, mac, dataset, mode)
        return await self._fetch(record, Descriptor(descriptor), None, progress)

    async def probe(
        self,
        mac: str,
        dataset: str,
        *,
        mode: Mode = Mode.AUTO,
        blocks: int | None = None,
        streams: int = 1,
    ) -> Fetched:
        """Bring a dataset, or its first ``blocks``, by so many streams, and keep nothing of it.

        All is as in `fetch`, but that a block is dropped once it is verified. For measuring:
        ``bytes`` and ``root`` in the answer are of what came. Mode buffer brings all in any case,
        by one stream.
        """
        if streams < 1 or (blocks is not None and blocks < 1):
            raise BadSetting("a probe is of at least one block, by at least one stream")
        mac, dataset = _checked(mac, dataset)
        record = self._record(None, mac, dataset, mode)
        way = self._way(Mode(mode), mac, dataset, record)
        least = self._settings.parallel_least_bytes
        if blocks is not None and way.in_parts:
            way, least = Beginning(way, blocks), min(least, blocks // streams * BLOCK_BYTES)
        settings = replace(self._settings, parallel=streams, parallel_least_bytes=least)
        await Download(way, Nowhere(), settings, self._threads, record).run()
        return record.fetched(None)

    async def _fetch(
        self, record: Record, sink: Sink, path: Path | None, progress: Progress | None
    ) -> Fetched:
        asked = record.asked
        assert asked is not None
        way = self._way(asked.mode, asked.mac, asked.dataset, record)
        await Download(way, sink, self._settings, self._threads, record, progress).run()
        return record.fetched(path)

    def _record(self, record: Record | None, mac: Mac, dataset: str, mode: Mode) -> Record:
        record = Record() if record is None else record
        record.ask(Asked(str(self._link.router), mac, dataset, Mode(mode)))
        return record

    def _way(self, mode: Mode, mac: Mac, dataset: str, record: Record) -> Way:
        if mode is Mode.AUTO:
            return Auto(self._link, mac, dataset, record.note)
        return WAYS[mode](self._link, mac, dataset)

    async def blocks(
        self, mac: str, dataset: str, *, mode: Mode = Mode.AUTO
    ) -> AsyncGenerator[bytes, None]:
        """Yield a dataset's blocks in order (4 MiB, the last one shorter), each verified.

        Only the end of the iteration says that they were all: it raises if any is missing. It
        asks once, and tries nothing again. Who takes nothing for longer than the router's
        ``idle_seconds`` (60 s) gets `Stalled`: `fetch` first what is to be worked on slowly.
        """
        mac, dataset = _checked(mac, dataset)
        thread = self._threads.take()
        try:
            async with (
                self._way(Mode(mode), mac, dataset, Record()).opened(WHOLE) as incoming,
                aclosing(incoming.claims) as claims,
            ):
                size, done = incoming.version.size, 0
                async for claim in claims:
                    short = sum(map(len, claim.parts)) <= SHORT_BYTES
                    proof = partial(prove, claim, size)
                    parts = proof() if short else await thread.call(proof)
                    yield (block := b"".join(parts))
                    done += len(block)
                if done < size:
                    raise BrokenOff(f"{done} of {size} bytes came")
        finally:
            self._threads.give(thread)

    async def read(self, mac: str, dataset: str) -> bytes:
        """Return a whole, verified dataset by mode buffer; `TooLarge` over the router's cap."""
        return b"".join([block async for block in self.blocks(mac, dataset, mode=Mode.BUFFER)])

    async def list(self, mac: str, folder: str = "") -> AsyncGenerator[ListEntry, None]:
        """Yield what a folder holds, sorted by name; an empty ``folder`` is the root."""
        async for page in self.pages(mac, folder):
            for entry in page.entries:
                yield entry

    async def pages(self, mac: str, folder: str = "") -> AsyncGenerator[ListAnswer, None]:
        """Yield a folder's listing page by page, each with its count of unlisted names."""
        folder = folder.removesuffix("/")
        path = _path(mac_address(mac), f"{check_name(folder)}/" if folder else "")
        after: str | None = None
        while True:
            query = f"?after={quote(after, safe='')}" if after else ""
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
            raise BadSetting("the seconds to wait must not be negative", hint="Give 0 or more.")
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
