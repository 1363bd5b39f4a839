"""Mode offload: the connector puts the dataset into the store, and we fetch it from there.

A large one comes in pieces, each of which may be fetched while the connector still uploads the
next ones: we ask again and again for what there is beyond those that we know.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar

from tunnelsync import frames
from tunnelsync.client import pieces
from tunnelsync.client.body import Body
from tunnelsync.client.incoming import Incoming, Part
from tunnelsync.client.link import Link, session_for
from tunnelsync.client.pieces import Offer, Piece, Reach
from tunnelsync.errors import (
    ConnectorUnknown,
    DatasetChanged,
    ProtocolError,
    StoreUnavailable,
    TunnelSyncError,
)
from tunnelsync.frames import Claimed
from tunnelsync.identity import Mac
from tunnelsync.protocol import DatasetRequest, Mode


class Offload:
    """The way by the store: the pieces that are known, and as many downloads as are asked for.

    An address that has expired is asked for anew, in the middle of a dataset too.
    """

    in_parts: ClassVar[bool] = True

    def __init__(self, link: Link, mac: Mac, dataset: str) -> None:
        self._known = Known(link, mac, dataset)

    def opened(self, part: Part) -> AbstractAsyncContextManager[Incoming]:
        """Download a part. Raises `StoreUntrusted` for an address that is not the store's,
        `StoreUnavailable` until the first byte has come, `BrokenOff` after it.
        """
        return _brought(self._known, part, tries=2)

    def first(self, offer: Offer, part: Part) -> AbstractAsyncContextManager[Incoming]:
        """Download a part by an offer that was an answer to another request."""
        self._known.take(offer)
        return _brought(self._known, part, tries=1)

    def distrust(self, why: str) -> None:
        """Ask for every piece anew; the connector looks after it then."""
        self._known.clear()


class Known:
    """The pieces of one version that we have addresses of, shared by the downloads of its parts."""

    def __init__(self, link: Link, mac: Mac, dataset: str) -> None:
        self.link = link
        self.offer: Offer | None = None
        self.ending = asyncio.Lock()
        """Held by who asks for the end, which takes a place at the connector: one is enough."""
        self._mac = mac
        self._dataset = dataset
        self._pieces: dict[int, Piece] = {}

    def find(self, at: int, etag: str | None) -> Piece | None:
        """Return the piece with this byte, if its address still holds for a while."""
        if self.offer is None or etag not in (None, self.offer.version.etag):
            return None
        now = asyncio.get_running_loop().time()
        begins = self._pieces.get(at)  # with it, as most that are looked for: there may be many
        some = self._pieces.values() if begins is None else [begins]
        return next((one for one in some if one.holds(at) and now < one.renew_at), None)

    async def ask(self, at: int, etag: str | None) -> Piece:
        """Ask for the piece with this byte, which may take until it is uploaded.

        Raises the router's error, or what `pieces.offered` does; `DatasetChanged` for another
        version than was asked for.
        """
        request = DatasetRequest(self._mac, self._dataset, if_match=etag, segments_from=at)
        async with self.link.request("POST", "datasets/request-offload", request) as answer:
            offer = await pieces.offered(self.link, answer)
        if etag not in (None, offer.version.etag):
            raise DatasetChanged("the dataset has another version than a moment ago")
        self.take(offer)
        found = next((one for one in offer.pieces if one.holds(at)), None)
        if found is None:
            raise ProtocolError(f"the answer has no address for byte {at}")
        return found

    def take(self, offer: Offer) -> None:
        """Take what an answer says for what is known; where both speak, for what is right."""
        if self.offer is None or self.offer.version.etag != offer.version.etag:
            self._pieces.clear()
        new = offer.pieces
        for at in [at for at in self._pieces if new and new[0].offset <= at < new[-1].end]:
            del self._pieces[at]
        self._pieces.update({one.offset: one for one in new})
        self.offer = offer

    def forget(self, piece: Piece) -> None:
        """Do not use an address again."""
        if self._pieces.get(piece.offset) is piece:
            del self._pieces[piece.offset]

    def clear(self) -> None:
        """Use none of the addresses again."""
        self._pieces.clear()


@asynccontextmanager
async def _brought(known: Known, part: Part, tries: int) -> AsyncIterator[Incoming]:
    async with AsyncExitStack() as stack:
        if known.find(part.offset, part.if_match) is None:
            await known.ask(part.offset, part.if_match)
            tries = 1
        offer = known.offer
        assert offer is not None
        session = await stack.enter_async_context(session_for(known.link.settings))
        reach = Reach(session, known.link.settings)
        run = _Run(known, reach, offer.version.etag, offer.version.size)
        end = run.size if part.length is None else min(run.size, part.offset + part.length)
        first: Begun | None = None
        if part.offset < end:
            first = await run.begin(part.offset, end, tries)
            stack.push_async_callback(first.close)
        incoming = Incoming(
            request_id=offer.request_id,
            mode=Mode.OFFLOAD,
            version=offer.version,
            claims=run.claims(first, part.offset, end),
            body=first.body if first else None,
            root=offer.root,
        )
        run.incoming = incoming
        yield incoming


AHEAD_BLOCKS = 2
"""So many before the end of a piece the next one is begun: a store does not wait long to send."""
ASK_AGAIN_SECONDS = 1.0
"""The pause before a question that failed is put again."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A piece, and the body of its download, whose first byte has come; close it in any case."""

    piece: Piece
    body: Body
    close: Callable[[], Awaitable[None]]


class _Run:
    """A part on its way: from one piece to the next, while it learns of those that follow."""

    def __init__(self, known: Known, reach: Reach, etag: str, size: int) -> None:
        self.size = size
        self.incoming: Incoming | None = None
        self._known = known
        self._reach = reach
        self._etag = etag
        self._asking = asyncio.Lock()
        self._asked_at = 0
        """The byte that is asked for by who holds the lock."""

    async def begin(self, at: int, end: int, tries: int) -> Begun:
        """Begin with the piece that holds a byte, up to its end or to ``end``."""
        while True:
            piece, tries = await self._reached(at), tries - 1
            until = min(end, piece.end)
            async with AsyncExitStack() as stack:
                getting = pieces.begun(self._reach, piece, at, until, more=until < end)
                try:
                    body = await stack.enter_async_context(getting)
                    return Begun(piece, body, stack.pop_all().aclose)
                except StoreUnavailable:
                    # Its address has expired, or the object is gone: the connector mends both.
                    self._known.forget(piece)
                    if tries <= 0:
                        raise

    async def claims(self, first: Begun | None, at: int, end: int) -> AsyncGenerator[Claimed, None]:
        """Yield the blocks of one piece after the other; raises as `Offload.opened` does.

        Before one has come the next is begun, so that the line is not idle between them.
        """
        begun, following, learning = first, None, None
        try:
            while begun is not None:
                if learning is None or learning.done():
                    learning = asyncio.create_task(self._learn(at, end))
                piece, body, until = begun.piece, begun.body, min(end, begun.piece.end)
                near = frames.block_count(until) - 1 - AHEAD_BLOCKS
                async for claim in pieces.claims(body, piece, at, until, self.size):
                    if following is None and until < end and claim.index >= near:
                        following = asyncio.create_task(self.begin(until, end, tries=1))
                    yield claim
                await begun.close()
                at, begun = until, None
                if following is not None:
                    with suppress(TunnelSyncError):  # which may have passed since
                        begun = await following
                    following = None
                if begun is None and at < end:
                    begun = await self.begin(at, end, tries=2)
        finally:
            await _ended(begun, following, learning)
        if self.incoming is not None and self._known.offer is not None:
            self.incoming.root = self._known.offer.root

    async def _learn(self, at: int, end: int) -> None:
        """Keep asking for what is not known, also while the piece before it comes, and at last
        for the end: the upload goes on, and what it has put stays, as long as somebody asks.

        What goes wrong is told by who needs the piece; what can pass is only asked again.
        """
        while True:
            try:
                while at < end:
                    at = (await self._reached(at)).end
                async with self._known.ending:
                    if self._known.offer is not None and self._known.offer.root is None:
                        await self._known.ask(self.size, self._etag)
            except TunnelSyncError as error:
                # A router that has just restarted knows no connector until it returns.
                if error.retry or isinstance(error, ConnectorUnknown):
                    await asyncio.sleep(error.retry_after_seconds or ASK_AGAIN_SECONDS)
                    continue
            return

    async def _reached(self, at: int) -> Piece:
        if found := self._known.find(at, self._etag):
            return found
        if at < self._asked_at:
            return await self._known.ask(at, self._etag)  # it need not wait for what comes later
        async with self._asking:  # what is asked for already may bring it
            self._asked_at = at
            try:
                return self._known.find(at, self._etag) or await self._known.ask(at, self._etag)
            finally:
                self._asked_at = 0


async def _ended(
    begun: Begun | None,
    following: "asyncio.Task[Begun] | None",
    learning: "asyncio.Task[None] | None",
) -> None:
    """End what comes, and what runs beside it."""
    tasks = [task for task in (following, learning) if task is not None]
    for task in tasks:
        task.cancel()
    try:
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        if begun is not None:
            await begun.close()
        if following is not None and not following.cancelled() and not following.exception():
            await following.result().close()
