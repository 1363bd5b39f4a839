"""What tests look at of a transfer between a real router and a connector that they play."""

import asyncio
from typing import Any

from played_connector import (
    PlayedConnector,
    asking,
)
from tunnelsync.errors import TunnelSyncError
from tunnelsync.frames import Claimed, Decoder


async def receipt(connector: PlayedConnector, request_id: str) -> dict[str, Any]:
    """Return the receipt of a transfer that ends."""
    answer = await asking(connector.url, "GET", f"/transfers/{request_id}?wait=20")
    return answer.json()


async def still_works(connector: PlayedConnector) -> None:
    """Prove that the next command comes on the socket, and its answer to the client."""
    client = asking(connector.url, "GET", f"/datasets/{connector.mac}/")
    request_id = await connector.command("list_datasets")
    assert (await connector.result(request_id, {"entries": []})).status == 200
    assert (await client).json()["entries"] == []


def decoded(body: bytes) -> tuple[list[bytes], TunnelSyncError | None]:
    """Return the proven blocks of a framed body, and the error that it ends with, if any."""
    decoder, blocks = Decoder(), []
    events = decoder.feed(body)
    try:
        while isinstance(event := next(events, None), Claimed):
            blocks.append(b"".join(event.verified()))
        decoder.finish()
    except TunnelSyncError as error:
        return blocks, error
    return blocks, None


async def queued(connector: PlayedConnector, request_id: str, until: int) -> None:
    """Wait until the router has the chunk request that ends there: a wrong one is told so."""
    async with asyncio.timeout(20):
        while True:
            probe = await connector.chunk(request_id, 10**15, b"x")
            assert (probe.status, probe.code) == (409, "wrong_offset"), probe
            if probe.value["offset"] == until:
                return


async def relayed(connector: PlayedConnector, request_id: str, size: int) -> None:
    """Wait until so many bytes have gone to the client."""
    async with asyncio.timeout(20):
        while (await asking(connector.url, "GET", f"/transfers/{request_id}")).json()[
            "bytes"
        ] < size:
            pass
