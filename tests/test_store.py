"""The store, against a real S3 server (see ``s3.py``)."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import content_disposition_filename, parse_content_disposition

from played_router import content, digests_of
from s3 import S3Server, s3_server
from tunnelsync import frames
from tunnelsync.connector.source import Root, Source
from tunnelsync.errors import (
    BadSetting,
    DatasetChanged,
    ReadFailed,
    StoreRefused,
    StoreUnavailable,
    TunnelSyncError,
    Unavailable,
)
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.objects import object_key, origin
from tunnelsync.settings import MIB, Secret, StoreSettings
from tunnelsync.store import Store

pytestmark = pytest.mark.store

MAC = "cc-28-aa-00-11-22"
PART = 8 * MIB
BUCKET = "datasets"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def settings(server: S3Server) -> StoreSettings:
    """Small parts, and nothing counts as young."""
    return server.settings(BUCKET, part_bytes=PART, settle_seconds=0.0)


@pytest.fixture
async def client(server: S3Server) -> AsyncIterator[Any]:
    """A client that looks at the server from outside, without our code."""
    async with outside(server) as found:
        yield found


@asynccontextmanager
async def outside(server: S3Server) -> AsyncIterator[Any]:
    import aioboto3

    session = aioboto3.Session()
    async with session.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    ) as found:
        yield found


class Watched:
    """A dataset that counts how often its descriptor is asked for, and can act at that moment."""

    def __init__(self, source: Source, on_read: Callable[[int], None] = lambda _: None) -> None:
        self.name, self.size, self.etag = source.name, source.size, source.etag
        self.mtime_ns, self.ctime_ns = source.mtime_ns, source.ctime_ns
        self.reads = 0
        self._source, self._on_read = source, on_read

    def fileno(self) -> int:
        self.reads += 1
        self._on_read(self.reads)
        return self._source.fileno()

    async def unchanged(self) -> None:
        await self._source.unchanged()


@asynccontextmanager
async def dataset(
    folder: Path,
    data: bytes,
    executor: ThreadPoolExecutor,
    *,
    name: str = "data.bin",
    on_read: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[Watched]:
    """Write a dataset and open it as a connector does."""
    (folder / name).write_bytes(data)
    async with opened(folder, executor, name=name, on_read=on_read) as found:
        yield found


@asynccontextmanager
async def opened(
    folder: Path,
    executor: ThreadPoolExecutor,
    *,
    name: str = "data.bin",
    on_read: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[Watched]:
    root = Root(folder, executor, list_entries=10, folder_entries=10)
    try:
        async with await root.open(name) as source:
            yield Watched(source, on_read)
    finally:
        root.close()


async def get(url: str) -> tuple[bytes, aiohttp.ClientResponse]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.read(), response


async def objects(client: Any, prefix: str) -> list[str]:
    answer = await client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [one["Key"] for one in answer.get("Contents", [])]


async def open_uploads(client: Any) -> list[str]:
    answer = await client.list_multipart_uploads(Bucket=BUCKET)
    return [one["Key"] for one in answer.get("Uploads", [])]


# --- what is put there --------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        BLOCK_BYTES + 1,
        PART - 1,
        PART,
        PART + 1,
        2 * PART,
        2 * PART + BLOCK_BYTES + 1,
        40 * MIB,
    ],
)
async def test_every_size_comes_back_whole_with_its_digests(
    size: int, settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    data, told = content(size), [0]
    async with Store(settings, executor) as store, dataset(tmp_path, data, executor) as source:
        stored = await store.offer(MAC, source, told.append)
    got, response = await get(stored.download_url)
    assert got == data
    packed, _ = await get(stored.blocks_url)
    assert packed == b"".join(digests_of(data))
    assert stored.root == frames.root(digests_of(data))
    assert (stored.size, stored.count) == (size, frames.block_count(size))
    assert (stored.etag, stored.reused) == (source.etag, False)
    assert told[-1] == size
    assert response.headers["Content-Type"] == "application/octet-stream"


async def test_a_download_is_saved_under_the_name_of_the_dataset(
    settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    name = 'été "1"; 漢\r\n%.csv'
    async with (
        Store(settings, executor) as store,
        dataset(tmp_path, b"x", executor, name=name) as source,
    ):
        stored = await store.offer(MAC, source)
    _, response = await get(stored.download_url)
    kind, params = parse_content_disposition(response.headers["Content-Disposition"])
    assert kind == "attachment"
    assert content_disposition_filename(params) == name


async def test_the_addresses_are_signed_for_the_public_endpoint(
    server: S3Server, settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    public = server.endpoint.replace("127.0.0.1", "localhost")
    settings = replace(settings, public_endpoint=public, url_lifetime_seconds=10**9)
    async with Store(settings, executor) as store, dataset(tmp_path, b"x", executor) as source:
        stored = await store.offer(MAC, source)
    assert origin(stored.download_url) == origin(stored.blocks_url) == public
    assert stored.expires_seconds == 7 * 24 * 3600
    assert (await get(stored.download_url))[0] == b"x"


async def test_many_datasets_at_once_share_the_bodies(
    settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    data = content(2 * PART + 1)
    (tmp_path / "data.bin").write_bytes(data)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store(settings, executor))
        sources = [await stack.enter_async_context(opened(tmp_path, executor)) for _ in range(20)]
        macs = [f"cc-28-aa-00-22-{number:02x}" for number in range(20)]
        offers = [store.offer(mac, one) for mac, one in zip(macs, sources, strict=True)]
        found = await asyncio.gather(*offers)
    assert {one.root for one in found} == {frames.root(digests_of(data))}


# --- used again ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2 * PART + 1])
async def test_the_same_version_is_used_again_without_a_read(
    size: int, settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    async with Store(settings, executor) as store:
        async with dataset(tmp_path, content(size), executor) as source:
            first = await store.offer(MAC, source)
        async with opened(tmp_path, executor) as source:
            second = await store.offer(MAC, source)
    assert source.reads == 0
    assert second.reused
    assert (second.root, second.count) == (first.root, first.count)
    assert (await get(second.download_url))[0] == content(size)


async def test_a_young_dataset_is_not_used_again(
    settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    settings = replace(settings, settle_seconds=3600.0)
    async with Store(settings, executor) as store, dataset(tmp_path, b"x", executor) as source:
        await store.offer(MAC, source)
        reads = source.reads
        again = await store.offer(MAC, source)
    assert not again.reused
    assert source.reads > reads


async def test_what_was_read_while_it_was_young_is_not_used_when_it_is_old(
    settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    young = replace(settings, settle_seconds=3600.0)
    async with dataset(tmp_path, b"x", executor) as source:
        async with Store(young, executor) as store:
            await store.offer(MAC, source)
        async with Store(settings, executor) as store:
            assert not (await store.offer(MAC, source)).reused
            assert (await store.offer(MAC, source)).reused


@pytest.mark.parametrize("damage", ["data short", "data gone", "blocks short", "blocks gone"])
async def test_what_is_not_whole_is_uploaded_again(
    damage: str,
    client: Any,
    settings: StoreSettings,
    executor: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    async with Store(settings, executor) as store, dataset(tmp_path, b"abc", executor) as source:
        await store.offer(MAC, source)
        which, what = damage.split()
        key = f"{object_key(settings.prefix, MAC, source.name, source.etag)}/{which}"
        await client.delete_object(Bucket=BUCKET, Key=key)
        if what == "short":
            meta = {"settled": "yes"}
            await client.put_object(Bucket=BUCKET, Key=key, Body=b"a", Metadata=meta)
        stored = await store.offer(MAC, source)
    assert not stored.reused
    assert (await get(stored.download_url))[0] == b"abc"
    assert (await get(stored.blocks_url))[0] == b"".join(digests_of(b"abc"))


# --- what goes wrong with the dataset -----------------------------------------------------


@pytest.mark.parametrize("size", [3 * MIB, 5 * PART])
@pytest.mark.parametrize("change", ["grows", "shrinks", "is edited"])
async def test_a_dataset_that_changes_while_it_is_read_leaves_nothing(
    size: int,
    change: str,
    client: Any,
    settings: StoreSettings,
    executor: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.bin"

    def disturb(reads: int) -> None:
        if reads != 2:
            return
        if change == "grows":
            with path.open("ab") as file:
                file.write(b"more")
        elif change == "shrinks":
            os.truncate(path, 100)
        else:
            with path.open("r+b") as file:
                file.write(b"edited")

    async with Store(settings, executor) as store:
        async with dataset(tmp_path, content(size), executor, on_read=disturb) as source:
            with pytest.raises(DatasetChanged):
                await store.offer(MAC, source)
        key = object_key(settings.prefix, MAC, source.name, source.etag)
        assert await objects(client, key) == []
        assert await open_uploads(client) == []


@pytest.mark.parametrize("size", [3 * MIB, 5 * PART])
async def test_a_read_error_is_told_and_leaves_nothing(
    size: int,
    client: Any,
    settings: StoreSettings,
    executor: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    def fail(reads: int) -> None:
        if reads == 2:
            raise OSError(5, "Input/output error")

    async with Store(settings, executor) as store:
        async with dataset(tmp_path, content(size), executor, on_read=fail) as source:
            with pytest.raises(ReadFailed, match="Input/output error"):
                await store.offer(MAC, source)
        key = object_key(settings.prefix, MAC, source.name, source.etag)
        assert await objects(client, key) == []
        assert await open_uploads(client) == []


@pytest.mark.parametrize("pieces", [0, 1, 5, 70, 159, 160])
async def test_a_cancelled_upload_leaves_no_upload_no_task_and_no_read(
    pieces: int,
    client: Any,
    settings: StoreSettings,
    executor: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    """Cancelled after so many of its 160 pieces of 256 KiB: before the first, at the last."""
    reached, seen = asyncio.Event(), [0]

    def count(_: int) -> None:
        seen[0] += 1
        if seen[0] >= pieces:
            reached.set()

    async with Store(settings, executor) as store:
        async with dataset(tmp_path, content(5 * PART), executor) as source:
            before = asyncio.all_tasks()
            offer = asyncio.create_task(store.offer(MAC, source, count))
            if pieces:
                await reached.wait()
            else:
                await asyncio.sleep(0)
            offer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await offer
            reads = source.reads
            await until(lambda: asyncio.all_tasks() == before)
            assert source.reads == reads
        if pieces:
            assert await open_uploads(client) == []


async def test_cancelling_twice_still_closes_the_upload_before_the_store_is_closed(
    client: Any, settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    reached = asyncio.Event()
    async with (
        Store(settings, executor) as store,
        dataset(tmp_path, content(5 * PART), executor) as source,
    ):
        offer = asyncio.create_task(store.offer(MAC, source, lambda _: reached.set()))
        await reached.wait()
        offer.cancel()
        await asyncio.sleep(0)
        offer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await offer
    assert await open_uploads(client) == []


# --- what goes wrong with the store -------------------------------------------------------


async def test_a_store_that_is_down_is_unavailable(
    executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with s3_server() as server:
        settings = server.settings(BUCKET)
    error = await refused(settings, executor, tmp_path, StoreUnavailable)
    assert_tells(error, settings)


async def test_a_store_that_dies_in_mid_upload_is_unavailable(
    executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with s3_server() as server:
        settings = server.settings(BUCKET, part_bytes=PART)

        def kill(sent_bytes: int) -> None:
            if sent_bytes > PART:
                server.stop()

        error = await refused(settings, executor, tmp_path, StoreUnavailable, kill)
        assert_tells(error, settings)


async def test_a_store_that_falls_silent_in_mid_upload_is_unavailable(
    executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with s3_server() as server:
        settings = server.settings(BUCKET, part_bytes=PART, read_seconds=1.0, abort_seconds=1.0)
        async with Store(settings, executor) as store:
            async with dataset(tmp_path, b"x", executor) as source:
                await store.offer(MAC, source)
            async with dataset(tmp_path, content(5 * PART), executor) as source:
                tasks, began = asyncio.all_tasks(), time.monotonic()
                with pytest.raises(StoreUnavailable, match="silent for 1 s") as failed:
                    await store.offer(MAC, source, lambda _: server.pause())
                assert time.monotonic() - began < 5  # 1 s of silence, 1 s for the abort
                await until(lambda: asyncio.all_tasks() == tasks)
            server.resume()
        assert_tells(failed.value, settings)
        async with outside(server) as client:
            assert await open_uploads(client) == []


async def test_an_upload_that_a_silent_store_keeps_is_aborted_though_the_next_offer_is_cancelled(
    executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with s3_server() as server:
        settings = server.settings(BUCKET, part_bytes=PART, read_seconds=1.0, abort_seconds=1.0)
        async with (
            Store(settings, executor) as store,
            dataset(tmp_path, content(5 * PART), executor) as source,
        ):
            with pytest.raises(StoreUnavailable):
                await store.offer(MAC, source, lambda _: server.pause())
            offer = asyncio.create_task(store.offer(MAC, source))
            await asyncio.sleep(0)
            offer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await offer
            server.resume()
        async with outside(server) as client:
            assert await open_uploads(client) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB, which takes root to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no full store: there is no mount")
    except subprocess.CalledProcessError as failed:
        pytest.skip(f"no full store: a tmpfs cannot be mounted here ({failed.stderr.strip()})")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


async def test_a_full_store_is_told_and_keeps_no_upload(
    small_disk: Path, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with s3_server(small_disk) as server:
        settings = server.settings(BUCKET, part_bytes=PART)
        error = await refused(settings, executor, tmp_path, Unavailable, size=12 * PART)
        assert isinstance(error, StoreRefused | StoreUnavailable)
        # MinIO says what it is, or that the upload is gone; SeaweedFS says InternalError, no more.
        told = ("no space left", "NoSuchUpload", "answered 500")
        assert any(one in error.message for one in told), error.message
        assert_tells(error, settings)
        async with outside(server) as client:
            assert await open_uploads(client) == []


async def test_a_store_that_restarts_at_the_end_of_a_silence_is_used_again(
    executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with s3_server() as server:
        settings = server.settings(BUCKET, read_seconds=1.0)
        async with Store(settings, executor) as store, dataset(tmp_path, b"x", executor) as source:
            server.pause()
            with pytest.raises(StoreUnavailable):
                await store.offer(MAC, source)
            server.resume()
            assert not (await store.offer(MAC, source)).reused


@pytest.mark.parametrize("which", ["access_key", "secret_key"])
@pytest.mark.parametrize("size", [1, 5 * PART])
async def test_wrong_keys_are_refused(
    which: str,
    size: int,
    settings: StoreSettings,
    executor: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    wrong: dict[str, Any] = {which: Secret("canary" + "0" * 14)}
    settings = replace(settings, **wrong)
    error = await refused(settings, executor, tmp_path, StoreRefused, size=size)
    assert_tells(error, settings)
    assert "TUNNELSYNC_STORE_ACCESS_KEY" in error.hint


async def test_no_keys_at_all_are_refused(
    settings: StoreSettings,
    executor: ThreadPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = replace(settings, access_key=Secret(""), secret_key=Secret(""))
    error = await refused(settings, executor, tmp_path, StoreRefused)
    assert "there are none" in error.message


async def test_a_missing_bucket_is_refused_and_not_made(
    client: Any, settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    settings = replace(settings, bucket="missing", create_bucket=False)
    error = await refused(settings, executor, tmp_path, StoreRefused)
    assert_tells(error, settings)
    assert "TUNNELSYNC_STORE_CREATE_BUCKET" in error.hint
    made = await client.list_buckets()
    assert "missing" not in [one["Name"] for one in made["Buckets"]]


async def test_a_bucket_is_made_where_it_may_be(
    client: Any, settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    settings = replace(settings, bucket="made-on-use", create_bucket=True)
    async with Store(settings, executor) as store, dataset(tmp_path, b"x", executor) as source:
        stored = await store.offer(MAC, source)
    assert (await get(stored.download_url))[0] == b"x"


async def refused(
    settings: StoreSettings,
    executor: ThreadPoolExecutor,
    folder: Path,
    kind: type[TunnelSyncError],
    progress: Callable[[int], None] | None = None,
    *,
    size: int = 5 * PART,
) -> TunnelSyncError:
    """Offer a dataset, and return the error with which that ends."""
    async with (
        Store(settings, executor) as store,
        dataset(folder, content(size), executor) as source,
    ):
        with pytest.raises(kind) as failed:
            await store.offer(MAC, source, progress)
    return failed.value


def assert_tells(error: TunnelSyncError, settings: StoreSettings) -> None:
    """The store is named, there is a next step, and nothing secret is in it."""
    said = f"{error.message} {error.hint} {error!r}"
    assert settings.endpoint in said
    assert settings.bucket in said
    assert error.hint
    for secret in (settings.access_key.reveal(), settings.secret_key.reveal(), "X-Amz"):
        assert secret not in said
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


async def test_addresses_are_not_printed(
    settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    async with Store(settings, executor) as store, dataset(tmp_path, b"x", executor) as source:
        stored = await store.offer(MAC, source)
    assert "X-Amz" in stored.download_url
    assert "X-Amz" not in repr(stored)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition."""
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.01)
    assert holds()


# --- without a server ---------------------------------------------------------------------


def test_importing_the_store_does_not_import_boto() -> None:
    code = "import sys, tunnelsync.store; print([m for m in sys.modules if 'boto' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "over", [{"endpoint": "ftp://x"}, {"public_endpoint": "x"}, {"prefix": "a/../b"}]
)
async def test_impossible_settings_are_told_at_once(
    over: dict[str, Any], executor: ThreadPoolExecutor
) -> None:
    with pytest.raises(BadSetting):
        Store(replace(StoreSettings(endpoint="http://127.0.0.1:9"), **over), executor)
