"""Mode stream: the blocks come as frames while the connector reads them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientResponse

from tunnelsync.client import receipts
from tunnelsync.client.body import Body
from tunnelsync.client.incoming import Incoming, etag_of, number_of, request_id_of, size_of
from tunnelsync.client.link import Link
from tunnelsync.errors import BrokenOff
from tunnelsync.frames import Claimed, Decoder
from tunnelsync.identity import Mac
from tunnelsync.protocol import H_MODIFIED, Coding, DatasetRequest, Mode


@asynccontextmanager
async def opened(link: Link, mac: Mac, dataset: str) -> AsyncIterator[Incoming]:
    """Ask for a dataset in mode stream. Raises the router's error before the first byte."""
    request = DatasetRequest(mac, dataset, coding=Coding.BLOCKS)
    async with link.request("POST", "datasets/request-stream", request) as response:
        yield incoming(link, response)


def incoming(link: Link, response: ClientResponse) -> Incoming:
    """Return the dataset that the frames of an answer carry."""
    body = link.body(response)
    return Incoming(
        request_id=request_id_of(response),
        mode=Mode.STREAM,
        size=size_of(response),
        etag=etag_of(response),
        modified_ns=number_of(response, H_MODIFIED),
        claims=claims(link, request_id_of(response), body),
        body=body,
    )


async def claims(link: Link, request_id: str, body: Body) -> AsyncIterator[Claimed]:
    """Yield the blocks of a framed body; raise what its failure frame says.

    A body that breaks off without one raises what the receipt names, else `BrokenOff`.
    """
    decoder = Decoder()
    ended = False
    while not ended:
        try:
            data = await body.read()
            if not data:
                decoder.finish()
        except BrokenOff as broken:
            raise await receipts.reason_of(link, request_id, broken) from None
        for event in decoder.feed(data):
            if isinstance(event, Claimed):
                yield event
            else:
                ended = True
