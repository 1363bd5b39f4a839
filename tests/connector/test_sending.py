"""The body of a stream on its way out: it gives way to others, also where the line takes it all."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from yarl import URL

from played_router import json, played
from tunnelsync.connector.body import Body
from tunnelsync.connector.sending import TURN_BYTES, Sending
from tunnelsync.connector.source import Root
from tunnelsync.connector.upload import Upload
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Coding, Init
from tunnelsync.settings import ConnectorSettings


async def test_others_get_their_turn_within_a_block_that_is_taken_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(BLOCK_BYTES))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with ClientSession() as http:
        with ThreadPoolExecutor(2) as executor:
            root = Root(tmp_path, executor, list_entries=1, folder_entries=1)
            async with await root.open("data") as source:
                body = Body(source, 0, BLOCK_BYTES, Coding.RAW)
                await body.prepare()
                upload = Upload(http, URL("http://127.0.0.1:1"), {}, ConnectorSettings())
                init = Init("r1", 200, BLOCK_BYTES, source.etag, body.length)
                sending = Sending(upload, init, body, lambda *_: None)
                waiting = asyncio.create_task(other())
                async with asyncio.timeout(10) as never:
                    at_pieces = [turns async for _ in sending._pieces(0, body.length, never)]
                waiting.cancel()
                await body.close()
            root.close()
    # The first piece may wait for the block; from then on all is there.
    assert at_pieces[-1] - at_pieces[0] >= BLOCK_BYTES // TURN_BYTES - 1


@pytest.mark.parametrize(
    ("said", "seen"),
    [({"offset": 7, "next": 7}, False), ({"offset": 7, "next": 8}, True), ({"offset": 7}, True)],
)
async def test_a_router_sees_a_chunk_request_once_the_next_is_to_begin_behind_it(
    said: dict[str, int], seen: bool
) -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        assert request.query["detach"] == "no"
        return json(said)

    async with played(router) as url, ClientSession() as http:
        upload = Upload(http, URL(url), {}, ConnectorSettings())
        assert await upload.sees("r1", 7) is seen
