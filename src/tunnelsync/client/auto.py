"""Mode auto: the connector chooses stream or offload, and a store that fails costs one retry."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tunnelsync.client import offload, stream
from tunnelsync.client.incoming import Incoming, mode_of
from tunnelsync.client.link import Link
from tunnelsync.errors import ProtocolError, StoreRefused, StoreUnavailable
from tunnelsync.identity import Mac
from tunnelsync.protocol import Coding, DatasetRequest, Mode

BOTH = (Mode.STREAM, Mode.OFFLOAD)


@asynccontextmanager
async def opened(link: Link, mac: Mac, dataset: str) -> AsyncIterator[Incoming]:
    """Ask for a dataset and follow the mode that the connector chose.

    When the store fails before the first byte, asks again for stream alone.
    """
    async with AsyncExitStack() as stack:
        try:
            incoming = await stack.enter_async_context(_asked(link, mac, dataset, BOTH))
        except (StoreUnavailable, StoreRefused):
            incoming = await stack.enter_async_context(_asked(link, mac, dataset, BOTH[:1]))
        yield incoming


@asynccontextmanager
async def _asked(
    link: Link, mac: Mac, dataset: str, accept: tuple[Mode, ...]
) -> AsyncIterator[Incoming]:
    request = DatasetRequest(mac, dataset, coding=Coding.BLOCKS, accept=accept)
    async with link.request("POST", "datasets/request-auto", request) as response:
        match mode_of(response):
            case Mode.STREAM:
                yield stream.incoming(link, response)
            case Mode.OFFLOAD if Mode.OFFLOAD in accept:
                async with offload.downloading(link, response) as incoming:
                    yield incoming
            case other:
                raise ProtocolError(f"mode {other} was not among those we accept")
