"""Modes offload and auto with a real store: one upload for all who want the same version."""

import asyncio
import os
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from played_connector_router import MAC, PlayedRouter, connected, served, settings_for
from played_router import content, digests_of
from s3 import S3Server, age_seconds, s3_server
from tunnelsync import frames, protocol
from tunnelsync.protocol import (
    Cancel,
    Conditions,
    GetDatasetAuto,
    GetDatasetOffload,
    Progress,
    StatDataset,
)
from tunnelsync.settings import MIB

BOTH = ("stream", "offload")


@pytest.fixture
def store(store_server: S3Server) -> Iterator[S3Server]:
    yield store_server
    store_server.resume()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two datasets that are old enough to be reused from the store."""
    (tmp_path / "data").mkdir()
    for name, size in (("small", 10), ("large", 9 * MIB)):
        (tmp_path / "data" / name).write_bytes(content(size))
        os.utime(tmp_path / "data" / name, (1, 1))
    return tmp_path / "data"


@pytest.fixture
async def router() -> AsyncIterator[PlayedRouter]:
    async with served(PlayedRouter()) as played:
        yield played


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        data: bytes = response.read()
        return data


async def test_S5_asked_for_at_once_it_is_uploaded_once(
    router: PlayedRouter, folder: Path, store: S3Server
) -> None:
    data = content(9 * MIB)
    async with connected(settings_for(router, folder), store.settings("once")):
        ws = await router.socket()
        assert router.hellos[0].capabilities == ("buffer", "stream", "offload", "auto")
        for number in range(5):
            await ws.send_str(protocol.encode(GetDatasetOffload(f"r{number}", "large")))
        answers = [await router.result(f"r{number}") for number in range(5)]
        assert len({answer["download_url"] for answer in answers}) == 1
        assert answers[0]["status"] == "success"
        assert (answers[0]["dataset"], answers[0]["size"]) == ("large", len(data))
        assert answers[0]["root"] == frames.root(digests_of(data))
        assert await asyncio.to_thread(fetched, answers[0]["download_url"]) == data
        packed = await asyncio.to_thread(fetched, answers[0]["blocks_url"])
        assert packed == b"".join(digests_of(data))


async def test_cancelling_one_waiter_leaves_the_upload_to_the_others(
    router: PlayedRouter, folder: Path, store: S3Server
) -> None:
    store.pause()
    async with connected(
        settings_for(router, folder, progress_seconds=0.05), store.settings("left")
    ):
        ws = await router.socket()
        for name in ("r1", "r2", "r3"):
            await ws.send_str(protocol.encode(GetDatasetOffload(name, "large")))
        for name in ("r1", "r2", "r3"):
            while (await router.heard_next(Progress)).request_id != name:
                pass
        await ws.send_str(protocol.encode(Cancel("r1")))
        await ws.send_str(protocol.encode(StatDataset("r9", "small")))
        await router.result("r9")
        store.resume()
        assert (await router.result("r2"))["status"] == "success"
        assert (await router.result("r3"))["status"] == "success"
    assert not router.results["r1"]


async def test_auto_takes_the_store_for_large_and_whole_datasets(
    router: PlayedRouter, folder: Path, store: S3Server
) -> None:
    settings = settings_for(router, folder, auto_offload_bytes=MIB)
    async with connected(settings, store.settings("auto")):
        ws = await router.socket()
        await ws.send_str(protocol.encode(GetDatasetAuto("r1", "large", BOTH)))
        assert "download_url" in await router.result("r1")
        await ws.send_str(protocol.encode(GetDatasetAuto("r2", "small", BOTH)))
        assert (await router.stream("r2")).body == content(10)
        await ws.send_str(protocol.encode(GetDatasetAuto("r3", "large", BOTH, offset=1, length=5)))
        assert (await router.stream("r3")).body == content(9 * MIB)[1:6]
        await ws.send_str(protocol.encode(GetDatasetAuto("r4", "large", ("stream",))))
        assert (await router.stream("r4")).body == content(9 * MIB)


async def test_S3_auto_streams_when_the_store_is_down_and_offload_says_so(
    router: PlayedRouter, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with s3_server() as server:
        down = server.settings("down", connect_seconds=1.0, attempts=1)
        server.stop()
    async with connected(settings_for(router, folder, auto_offload_bytes=MIB), down):
        ws = await router.socket()
        await ws.send_str(protocol.encode(GetDatasetAuto("r1", "large", BOTH)))
        assert (await router.stream("r1")).body == content(9 * MIB)
        await ws.send_str(protocol.encode(GetDatasetOffload("r2", "large")))
        assert (await router.result("r2"))["error"]["code"] == "store_unavailable"
    assert len([one for one in caplog.records if "streamed instead" in one.getMessage()]) == 1


async def test_if_match_is_honoured(router: PlayedRouter, folder: Path, store: S3Server) -> None:
    async with connected(settings_for(router, folder), store.settings("match")):
        ws = await router.socket()
        other = Conditions(if_match='"other"')
        await ws.send_str(protocol.encode(GetDatasetOffload("r1", "small", other)))
        assert (await router.result("r1"))["error"]["code"] == "precondition_failed"


# --- uploads that an earlier process left open --------------------------------------------------


@dataclass(slots=True)
class Door:
    """A way to the store that is shut at first: who comes waits before it."""

    url: str = ""
    came: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def door(store: S3Server) -> AsyncIterator[Door]:
    port = int(store.endpoint.rpartition(":")[2])
    way = Door()
    carrying: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        carrying.add(task)
        way.came.set()
        with closing(writer), suppress(asyncio.CancelledError):
            await way.opened.wait()
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(there_writer):
                await asyncio.gather(carry(reader, there_writer), carry(there_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    way.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield way
        server.close()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying)


def begun(client: Any, bucket: str, mac: str) -> str:
    """Begin a multipart upload as a connector does, and return its id."""
    key = f"datasets/{mac}/{0:064x}/data"
    return str(client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"])


async def test_S3_at_its_start_a_connector_aborts_its_uploads_that_are_older_and_no_others(
    router: PlayedRouter, folder: Path, store: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is younger than the process may be of another that has taken its MAC."""
    bucket, client = "tidy", store.client()
    client.create_bucket(Bucket=bucket)
    begun(client, bucket, MAC)
    other = begun(client, bucket, "cc-28-aa-00-11-23")
    async with asyncio.timeout(30):
        while age_seconds(client, bucket, f"datasets/{MAC}/{0:064x}/data") < 3:
            await asyncio.sleep(0.05)
    async with door(store) as way:
        settings = store.settings(bucket, endpoint=way.url)
        async with connected(settings_for(router, folder), settings):
            async with asyncio.timeout(30):
                await way.came.wait()
                young = begun(client, bucket, MAC)
                way.opened.set()
                while "1 uploads that were left open are aborted" not in caplog.messages:
                    await asyncio.sleep(0.01)
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert {one["UploadId"] for one in left} == {young, other}


async def test_S3_a_store_that_is_away_at_the_start_is_told_and_hinders_nothing(
    router: PlayedRouter, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with s3_server() as server:
        down = server.settings("down", connect_seconds=1.0, attempts=1)
    async with connected(settings_for(router, folder), down):
        ws = await router.socket()
        await ws.send_str(protocol.encode(StatDataset("r1", "small")))
        assert (await router.result("r1"))["size"] == 10
        async with asyncio.timeout(30):
            while not [one for one in caplog.messages if "left open may stay so" in one]:
                await asyncio.sleep(0.01)


async def test_S3_the_search_at_the_start_has_a_deadline(
    router: PlayedRouter, folder: Path, store: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with door(store) as way:
        settings = store.settings("deadline", endpoint=way.url, tidy_seconds=0.2)
        async with connected(settings_for(router, folder), settings):
            async with asyncio.timeout(30):
                while not [one for one in caplog.messages if "given up after 0.2 s" in one]:
                    await asyncio.sleep(0.01)
