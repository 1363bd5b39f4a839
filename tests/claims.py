"""What a played connector may claim of the store, and who looks there."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import Completed, System
from played_connector import PlayedConnector
from played_router import content, digests_of
from s3 import S3Server
from store_stage import BUCKET, Shelf, environ, fetch, running
from tunnelsync import frames
from tunnelsync.client import Resume, TunnelSync
from tunnelsync.errors import TunnelSyncError
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode, OffloadAnswer
from tunnelsync.settings import ClientSettings

DATA = content(2 * BLOCK_BYTES + 1000)
DIGESTS = b"".join(digests_of(DATA))


@pytest.fixture(scope="module")
def at_store(
    tmp_path_factory: pytest.TempPathFactory, store_server: S3Server, outside: Any
) -> Iterator[System]:
    """A router with a store, for connectors that are played."""
    with running(tmp_path_factory.mktemp("claims"), environ(store_server)) as system:
        system.router()
        yield system


def claim(shelf: Shelf, data: bytes | None, blocks: bytes) -> OffloadAnswer:
    """Put objects into the store, and claim that they are `DATA` and its digests."""
    urls = {}
    for name, stuff in (("data", data), ("blocks", blocks)):
        where = {"Bucket": BUCKET, "Key": f"{shelf.prefix}/{name}"}
        if stuff is not None:
            shelf.client.put_object(**where, Body=stuff)
        urls[name] = shelf.client.generate_presigned_url("get_object", Params=where)
    return offer(urls["data"], urls["blocks"])


def offer(download_url: str, blocks_url: str) -> OffloadAnswer:
    """Return what a connector says of `DATA`."""
    return OffloadAnswer(
        download_url=download_url,
        blocks_url=blocks_url,
        dataset="d",
        size=len(DATA),
        etag="v1",
        modified_ns=10**18,
        root=frames.root(digests_of(DATA)),
        count=3,
        expires_seconds=60,
    )


async def fetched(
    system: System, connector: PlayedConnector, answer: OffloadAnswer, **env: str
) -> Completed:
    """Fetch by the command line, while the connector says where it is."""
    async with answering(connector, answer):
        return await asyncio.to_thread(
            fetch, system, "offload", system.tmp_path / "out", mac=connector.mac, **env
        )


@asynccontextmanager
async def answering(connector: PlayedConnector, answer: OffloadAnswer) -> AsyncIterator[None]:
    """Say the same of each dataset, as often as it is asked for."""

    async def answer_all() -> None:
        while True:
            request_id = await connector.command("get_dataset_offload")
            assert (await connector.result(request_id, answer)).status == 200

    task = asyncio.create_task(answer_all())
    try:
        yield
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError), ended


async def exit_code(connector: PlayedConnector, answer: OffloadAnswer, target: Path) -> int:
    """Fetch in mode offload, while the connector says where it is; return the exit code."""
    once = ClientSettings(router=connector.url, retry_for_seconds=0)
    async with TunnelSync(settings=once) as client, answering(connector, answer):
        try:
            await client.fetch(connector.mac, "d", target, mode=Mode.OFFLOAD, resume=Resume.NO)
        except TunnelSyncError as error:
            return error.exit_code
    return 0


FOREIGN = (
    "http://127.0.0.1:OTHER/x",
    "https://127.0.0.1:STORE/x",
    "http://localhost:STORE/x",
    "http://127.0.0.2:STORE/x",
    "http://127.0.0.1/x",
    "http://user@127.0.0.1:STORE/x",
    "http://127.0.0.1:STORE@127.0.0.1:OTHER/x",
    "http://127.0.0.1:STORE\\@127.0.0.1:OTHER/x",
    "http://127.0.0.1:OTHER#@127.0.0.1:STORE/x",
    "http://127.0.0.1:OTHER\r\nHost: 127.0.0.1:STORE/x",
    "http://127.0.0.1:STORE.example.org/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://2852039166/x",
    "http://0/x",
    "file:///etc/passwd",
    "file://127.0.0.1:STORE/etc/passwd",
    "ftp://127.0.0.1:STORE/x",
    "//127.0.0.1:STORE/x",
    "/etc/passwd",
    "http://127.0.0.1:99999/x",
    "http://\u0661\u0662\u0667.0.0.1:STORE/x",
    "",
)


@dataclass(slots=True)
class Place:
    """A server that counts who comes."""

    port: int
    visits: int = 0


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """Listen, and answer nobody."""

    async def count_it(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.visits += 1
        writer.close()

    server = await asyncio.start_server(count_it, "127.0.0.1", 0)
    here = Place(server.sockets[0].getsockname()[1])
    async with server:
        yield here
