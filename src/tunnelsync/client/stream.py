"""Mode stream: the blocks come as frames while the connector reads them."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

from aiohttp import ClientResponse

from tunnelsync.client import receipts
from tunnelsync.client.body import Body
from tunnelsync.client.incoming import (
    Incoming,
    Part,
    etag_of,
    number_of,
    request_id_of,
    size_of,
)
from tunnelsync.client.journal import Version
from tunnelsync.client.link import Link
from tunnelsync.errors import BrokenOff, ProtocolError
from tunnelsync.frames import Claimed, Decoder
from tunnelsync.identity import Mac
from tunnelsync.protocol import H_MODIFIED, H_OFFSET, Coding, DatasetRequest, Mode


@dataclass(frozen=True, slots=True)
class Stream:
    """The way by frames through the router."""

    in_parts: ClassVar[bool] = True
    link: Link
    mac: Mac
    dataset: str

    @asynccontextmanager
    async def opened(self, part: Part) -> AsyncIterator[Incoming]:
        """Ask for a part. Raises the router's error before the first byte."""
        request = asked(self.mac, self.dataset, part)
        async with self.link.request("POST", "datasets/request-stream", request) as response:
            yield incoming(self.link, response, part)

    def distrust(self, why: str) -> None:
        """There is no other."""


def asked(mac: Mac, dataset: str, part: Part) -> DatasetRequest:
    """Return the request for a part in frames."""
    return DatasetRequest(
        mac,
        dataset,
        offset=part.offset,
        length=part.length,
        if_match=part.if_match,
        coding=Coding.BLOCKS,
    )


def incoming(link: Link, response: ClientResponse, part: Part) -> Incoming:
    """Return the part that the frames of an answer carry.

    Raises `ProtocolError` for another part: its blocks have right digests, in wrong places.
    """
    if part.first and number_of(response, H_OFFSET) != part.offset:
        raise ProtocolError("the router answered with another part than was asked for")
    body = link.body(response)
    return Incoming(
        request_id=request_id_of(response),
        mode=Mode.STREAM,
        version=Version(size_of(response), etag_of(response), number_of(response, H_MODIFIED)),
        claims=claims(link, request_id_of(response), body, part.first),
        body=body,
    )


async def claims(
    link: Link, request_id: str, body: Body, first: int = 0
) -> AsyncGenerator[Claimed, None]:
    """Yield the blocks of a framed body, from block ``first`` on; raise what its failure says.

    A body that breaks off without one raises what the receipt names, else `BrokenOff`.
    """
    decoder = Decoder(first)
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
