"""What a client on a slow line takes is a sign of life, however little of a body it is."""

import asyncio
from typing import Any, cast

from aiohttp import web

from tunnelsync import protocol
from tunnelsync.identity import mac_address
from tunnelsync.router import relay
from tunnelsync.router.transfer import CLIENT_TAKES, Transfer
from tunnelsync.settings import MIB, RouterSettings

IDLE_SECONDS = 1.5
BYTES_PER_SECOND = 2 * MIB


class SlowClient:
    """A response that is taken at a steady pace."""

    def __init__(self) -> None:
        self.body = bytearray()

    async def write(self, data: Any) -> None:
        await asyncio.sleep(len(data) / BYTES_PER_SECOND)
        self.body += data


async def test_a_steady_client_is_not_stalled_by_a_large_piece() -> None:
    transfer = Transfer(
        protocol.GetDatasetStream("r", "d"),
        mac_address("cc-28-aa-00-11-22"),
        "d",
        "stream",
        RouterSettings(),
        lambda _: None,
    )
    data = bytes(range(256)) * (4 * MIB // 256)
    client = SlowClient()
    assert len(data) / BYTES_PER_SECOND > IDLE_SECONDS
    async with transfer.within(IDLE_SECONDS, CLIENT_TAKES):
        await relay._write(transfer, cast(web.StreamResponse, client), data)
    assert client.body == data
    assert transfer.written == transfer.chunks.taken == len(data)
