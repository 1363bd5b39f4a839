"""Mode auto: the connector chooses stream or offload; a store that fails is not asked again."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import ClassVar

from tunnelsync.client import pieces, stream
from tunnelsync.client.incoming import Incoming, Part, mode_of
from tunnelsync.client.link import Link
from tunnelsync.client.offload import Offload
from tunnelsync.client.stream import Stream
from tunnelsync.errors import (
    ProtocolError,
    StoreRefused,
    StoreUnavailable,
    VerificationFailed,
)
from tunnelsync.identity import Mac
from tunnelsync.protocol import Mode

BOTH = (Mode.STREAM, Mode.OFFLOAD)


class Auto:
    """The way that the connector chose at the first request, and stream alone once a store failed.

    ``notice`` is told when that changes in the middle of a dataset.
    """

    in_parts: ClassVar[bool] = True

    def __init__(
        self, link: Link, mac: Mac, dataset: str, notice: Callable[[str], None] = lambda _: None
    ) -> None:
        self._link = link
        self._mac = mac
        self._dataset = dataset
        self._notice = notice
        self._accept: tuple[Mode, ...] = BOTH
        self._doubted = False
        self._chosen: Stream | Offload | None = None

    @asynccontextmanager
    async def opened(self, part: Part) -> AsyncIterator[Incoming]:
        """Ask for a part, and follow the mode that the connector chose.

        When the store fails before the first byte, or its digests are wrong, asks again for
        stream alone.
        """
        accept = self._accept
        async with AsyncExitStack() as stack:
            try:
                incoming = await stack.enter_async_context(self._way(part))
            except (StoreUnavailable, StoreRefused, VerificationFailed) as error:
                if accept != BOTH:
                    raise
                self._leave_the_store(error.message)
                incoming = await stack.enter_async_context(self._way(part))
            yield incoming

    def distrust(self, why: str) -> None:
        """Look at the store's object anew; the second time, turn from the store to the stream."""
        if isinstance(self._chosen, Offload):
            if self._doubted:
                self._leave_the_store(why)
            else:
                self._doubted = True
                self._chosen.distrust(why)

    def _leave_the_store(self, why: str) -> None:
        if self._accept != BOTH:
            return  # another stream of this fetch has found out first
        if self._chosen is not None:
            self._notice(f"going on in mode stream, for the store failed: {why}")
        self._accept, self._chosen = BOTH[:1], None

    @asynccontextmanager
    async def _way(self, part: Part) -> AsyncIterator[Incoming]:
        if self._chosen is not None:
            async with self._chosen.opened(part) as incoming:
                yield incoming
            return
        request = replace(
            stream.asked(self._mac, self._dataset, part),
            accept=self._accept,
            segments_from=part.offset,
        )
        async with self._link.request("POST", "datasets/request-auto", request) as response:
            match mode_of(response):
                case Mode.STREAM:
                    self._chosen = Stream(self._link, self._mac, self._dataset)
                    yield stream.incoming(self._link, response, part)
                    return
                case Mode.OFFLOAD if Mode.OFFLOAD in self._accept:
                    way = Offload(self._link, self._mac, self._dataset)
                    self._chosen = way
                    offer = await pieces.offered(self._link, response)
                case other:
                    raise ProtocolError(f"mode {other} was not among those we accept")
        async with way.first(offer, part) as incoming:
            yield incoming
