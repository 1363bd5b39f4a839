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
from aiohttp import content_disposition_filename, parse_content_disposition, web
from blake3 import blake3
from yarl import URL

from certificate import Certificate
from fault_proxy import fault_proxy
from played_router import content, digests_of, played
from s3 import S3Server, age_seconds, s3_server
from tunnelsync import frames
from tunnelsync.connector.source import Root, Source
from tunnelsync.errors import (
    BadSetting,
    DatasetChanged,
    ReadFailed,
    StoreRefused,
    StoreUnavailable,
    TransferGone,
    TunnelSyncError,
    Unavailable,
)
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.leftovers import Leftovers
from tunnelsync.multipart import MOST_LEFT, Multipart, Operations
from tunnelsync.objects import Stored, object_key, origin
from tunnelsync.settings import MIB, Secret, StoreSettings
from tunnelsync.store import Store
from tunnelsync.window import Reading, Window

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
    settings = replace(settings, object_lifetime_seconds=10**9)  # which is no bound here
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


async def test_bodies_have_a_number_at_once_whoever_sends_them(
    settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    now = most = 0

    async def slow(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        if request.method != "PUT":
            return web.Response(status=404 if request.path.count("/") > 1 else 200)
        is_body = request.path.endswith("/data")
        now, most = now + is_body, max(most, now + is_body)
        await request.read()
        await asyncio.sleep(0.05)
        now -= is_body
        return web.Response(headers={"ETag": '"e"'})

    async with played(slow) as url, AsyncExitStack() as stack:
        settings = replace(settings, endpoint=url, bodies_at_once=2)
        store = await stack.enter_async_context(Store(settings, executor))
        source = await stack.enter_async_context(dataset(tmp_path, b"x", executor))
        macs = [f"cc-28-aa-00-22-{number:02x}" for number in range(6)]
        await asyncio.gather(*(store.offer(mac, source) for mac in macs))
    assert most == 2


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


@asynccontextmanager
async def behind_tls(server: S3Server, certificate: Certificate) -> AsyncIterator[str]:
    """Put TLS before a store; yields the address."""
    where = URL(server.endpoint)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection(where.host, where.port)

        async def pass_on(of: asyncio.StreamReader, on: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await of.read(65536):
                    on.write(data)
                    await on.drain()
            on.close()

        await asyncio.gather(pass_on(reader, to), pass_on(there, writer))

    before = await asyncio.start_server(carry, "127.0.0.1", 0, ssl=certificate.context)
    async with before:
        yield f"https://127.0.0.1:{before.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "AWS_CA_BUNDLE"])
async def test_an_authority_of_ones_own_is_trusted_for_the_store_too(
    executor: ThreadPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: S3Server,
    variable: str,
) -> None:
    for name in ("SSL_CERT_FILE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    certificate = Certificate(tmp_path / "tls", "IP:127.0.0.1")
    async with (
        behind_tls(server, certificate) as endpoint,
        dataset(tmp_path, b"x", executor) as source,
    ):
        settings = server.settings(BUCKET, endpoint=endpoint, attempts=1)
        async with Store(settings, executor) as store:
            with pytest.raises(StoreUnavailable, match=r"TLS: self-signed certificate$"):
                await store.offer(MAC, source)
        monkeypatch.setenv(variable, str(certificate.cert))
        async with Store(settings, executor) as store:
            assert (await store.offer(MAC, source)).download_url.startswith(endpoint)


async def offered(store: Store, source: "Watched") -> Stored:
    """Offer a dataset as soon as a store that was silent is asked again."""
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreUnavailable):
                return await store.offer(MAC, source)
            await asyncio.sleep(0.05)


async def test_a_store_that_was_silent_is_not_waited_for_again_at_once(
    executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with s3_server() as server:
        settings = server.settings(BUCKET, read_seconds=2.0, abort_seconds=0.1)
        async with Store(settings, executor) as store:
            async with dataset(tmp_path, b"x", executor) as source:
                await store.offer(MAC, source)
            async with dataset(tmp_path, b"y", executor) as source:
                server.pause()
                with pytest.raises(StoreUnavailable, match="was silent for 2 s"):
                    await store.offer(MAC, source)
                with pytest.raises(StoreUnavailable, match=r"a moment ago; .* again in 1 s"):
                    await store.offer(MAC, source)
                server.resume()
                await offered(store, source)


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


async def test_what_goes_out_again_after_a_break_is_counted_once(
    server: S3Server, settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    data, told = content(PART - 1), list[int]()
    with fault_proxy(int(server.endpoint.rpartition(":")[2]), cut_after=4 * MIB, cuts=1) as proxy:
        settings = replace(settings, endpoint=proxy.url, public_endpoint=server.endpoint)
        async with (
            Store(settings, executor) as store,
            dataset(tmp_path, data, executor) as source,
        ):
            stored = await store.offer(MAC, source, told.append)
        assert proxy.cut == 1
    assert (await get(stored.download_url))[0] == data
    assert max(told) == told[-1] == len(data)


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
            assert not (await offered(store, source)).reused


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


async def test_keys_that_may_only_put_are_enough(
    settings: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """Who may not list is told 403 for what is missing."""
    put: list[str] = []

    async def strict(request: web.Request) -> web.StreamResponse:
        if request.method != "PUT":
            return web.Response(status=403)
        put.append(request.path.rpartition("/")[2])
        await request.read()
        return web.Response(headers={"ETag": '"e"'})

    async with played(strict) as url:
        settings = replace(settings, endpoint=url)
        async with Store(settings, executor) as store, dataset(tmp_path, b"x", executor) as source:
            assert not (await store.offer(MAC, source)).reused
            assert await store.pipeline(MAC, source, anew=False) is not None
    assert sorted(put) == ["blocks", "data"]


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


async def test_of_two_connectors_that_make_the_bucket_at_once_both_have_it(
    settings: StoreSettings,
    executor: ThreadPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(settings, bucket="made-by-two", create_bucket=True)
    ask, both = Store._ask, asyncio.Barrier(2)

    async def together(self: Store, operation: str, **parameters: Any) -> Any:
        found = await ask(self, operation, **parameters)
        if operation == "head_bucket" and found is None:
            await both.wait()
        return found

    monkeypatch.setattr(Store, "_ask", together)
    async with (
        asyncio.timeout(30),
        Store(settings, executor) as one,
        Store(settings, executor) as other,
        dataset(tmp_path, b"x", executor) as source,
    ):
        await asyncio.gather(one.offer(MAC, source), other.offer("cc-28-aa-00-11-23", source))


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


# --- life, and what is left over ----------------------------------------------------------------


async def old_enough(server: S3Server, key: str) -> None:
    """Wait until the store tells 3 s of an object or upload, when it is certainly over 1 s old:
    the present comes in whole seconds, and of an object the past too."""
    client = server.client()
    async with asyncio.timeout(30):
        while await asyncio.to_thread(age_seconds, client, BUCKET, key) < 3:
            await asyncio.sleep(0.05)


def since_now() -> Callable[[], float]:
    """Return the age of what was there a moment ago, and is not of what comes from now on.

    To be called when what is to be old is so, see `old_enough`.
    """
    moment = time.monotonic() - 1
    return lambda: time.monotonic() - moment


@pytest.fixture
def own(server: S3Server, settings: StoreSettings, request: pytest.FixtureRequest) -> StoreSettings:
    """Settings with a prefix of the test's own."""
    return replace(settings, prefix=f"own/{abs(hash(request.node.name)):x}")


async def test_in_the_second_half_of_its_life_a_version_is_uploaded_anew(
    server: S3Server, own: StoreSettings, client: Any, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    short = replace(own, object_lifetime_seconds=5)
    async with dataset(tmp_path, b"x", executor) as source:
        key = object_key(own.prefix, MAC, source.name, source.etag) + "/data"
        async with Store(own, executor) as store:
            await store.offer(MAC, source)
            await old_enough(server, key)
            assert (await store.offer(MAC, source)).reused
        before = await client.head_object(Bucket=BUCKET, Key=key)
        async with Store(short, executor) as store:
            assert not (await store.offer(MAC, source)).reused
        after = await client.head_object(Bucket=BUCKET, Key=key)
        assert after["LastModified"] > before["LastModified"]
        async with Store(own, executor) as store:
            assert (await store.offer(MAC, source)).reused
        assert (await client.head_object(Bucket=BUCKET, Key=key))["LastModified"] == after[
            "LastModified"
        ]


async def test_an_address_holds_no_longer_than_what_it_names(
    server: S3Server, own: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    own = replace(own, object_lifetime_seconds=1000)
    async with Store(own, executor) as store, dataset(tmp_path, b"x", executor) as source:
        assert (await store.offer(MAC, source)).expires_seconds == 1000
        await old_enough(server, object_key(own.prefix, MAC, source.name, source.etag) + "/data")
        again = await store.offer(MAC, source)
    assert again.reused
    assert 500 <= again.expires_seconds <= 997


async def test_s2_of_an_object_that_is_there_each_offer_gives_a_fresh_address(
    own: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    own = replace(own, url_lifetime_seconds=1)
    async with (
        Store(own, executor) as store,
        dataset(tmp_path, b"x", executor) as source,
        aiohttp.ClientSession() as session,
    ):
        first = await store.offer(MAC, source)
        assert first.expires_seconds == 1
        async with asyncio.timeout(30):
            while True:
                async with session.get(first.download_url) as answer:
                    if answer.status == 403:
                        break
                await asyncio.sleep(0.05)
        statuses = []
        async with asyncio.timeout(30):
            while 200 not in statuses:  # on a busy machine a second is soon over
                second = await store.offer(MAC, source)
                assert second.reused
                assert second.download_url != first.download_url
                async with session.get(second.download_url) as answer:
                    statuses.append(answer.status)


async def test_objects_that_are_old_are_removed_and_nothing_else(
    server: S3Server, own: StoreSettings, client: Any, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    others = [
        f"{own.prefix}/readme",
        f"{own.prefix}/{MAC}/notes",
        f"{own.prefix}/more/{MAC}/{'0' * 64}/data",
        f"{own.prefix}-more/{MAC}/{'0' * 64}/data",
        f"{MAC}/{'0' * 64}/data",
    ]
    async with Store(own, executor) as store:
        leftovers = await store.leftovers()
        for key in others:
            await client.put_object(Bucket=BUCKET, Key=key, Body=b"theirs")
        async with dataset(tmp_path, b"old", executor, name="old") as source:
            await store.offer(MAC, source)
        old = object_key(own.prefix, MAC, source.name, source.etag)
        await old_enough(server, old + "/data")
        age = since_now()
        async with dataset(tmp_path, b"young", executor, name="young") as source:
            await store.offer(MAC, source)
        young = object_key(own.prefix, MAC, source.name, source.etag)
        found = [one async for page in leftovers.objects(age) for one in page]
        assert [(one.version, one.size) for one in found] == [(old, 3 + 32)]
        assert await leftovers.remove(found, age) == found
        assert [page async for page in leftovers.objects(age)] == []
    left = await objects(client, own.prefix)
    assert sorted(left) == sorted([*others[:4], f"{young}/blocks", f"{young}/data"])
    await client.head_object(Bucket=BUCKET, Key=others[4])


async def test_what_was_renewed_after_it_was_found_old_stays(
    server: S3Server, own: StoreSettings, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    async with Store(own, executor) as store, dataset(tmp_path, b"x", executor) as source:
        await store.offer(MAC, source)
        await old_enough(server, object_key(own.prefix, MAC, source.name, source.etag) + "/data")
        age = since_now()
        leftovers = await store.leftovers()
        found = [one async for page in leftovers.objects(age) for one in page]
        assert len(found) == 1
        async with Store(replace(own, object_lifetime_seconds=0), executor) as renewing:
            assert not (await renewing.offer(MAC, source)).reused
        assert await leftovers.remove(found, age) == []
        assert (await store.offer(MAC, source)).reused


async def test_a_listing_of_several_pages_is_removed_whole(
    own: StoreSettings, client: Any, executor: ThreadPoolExecutor
) -> None:
    """The first object has no blocks, so that every page ends between the two keys of one."""
    async with Store(own, executor) as store:
        leftovers = await store.leftovers()
        keys = [f"{own.prefix}/{MAC}/{0:064x}/data"]
        keys += [
            f"{own.prefix}/{MAC}/{number:064x}/{end}"
            for number in range(1, 1001)
            for end in ("blocks", "data")
        ]
        for start in range(0, len(keys), 50):
            some = keys[start : start + 50]
            await asyncio.gather(
                *(client.put_object(Bucket=BUCKET, Key=key, Body=b"xy") for key in some)
            )
        pages = [page async for page in leftovers.objects(lambda: 0.0)]
        assert [len(page) for page in pages] == [500, 500, 1]
        assert sum(one.size for page in pages for one in page) == 2 * len(keys)
        async for page in leftovers.objects(lambda: 0.0):
            assert await leftovers.remove(page, lambda: 0.0)
    assert await objects(client, own.prefix) == []


async def test_s3_uploads_that_were_left_open_are_aborted_and_younger_or_others_are_not(
    server: S3Server, own: StoreSettings, client: Any, executor: ThreadPoolExecutor
) -> None:
    key = f"{own.prefix}/{MAC}/{1:064x}/data"
    other = f"{own.prefix}/cc-28-aa-00-11-23/{1:064x}/data"
    foreign = f"{own.prefix}/{MAC}/their file"

    async def begin(key: str) -> str:
        upload = await client.create_multipart_upload(Bucket=BUCKET, Key=key)
        return str(upload["UploadId"])

    async def still_open() -> set[tuple[str, str]]:
        answer = await client.list_multipart_uploads(Bucket=BUCKET)
        return {(one["Key"], one["UploadId"]) for one in answer.get("Uploads", [])}

    async with Store(own, executor) as store:
        leftovers = await store.leftovers()
        old, of_other, of_foreign = await begin(key), await begin(other), await begin(foreign)
        await old_enough(server, foreign)
        age = since_now()
        young = await begin(key)
        found = [one async for page in leftovers.uploads(age, MAC) for one in page]
        assert [(one.key, one.id) for one in found] == [(key, old)]
        await leftovers.abort(found)
        await leftovers.abort(found)  # what has ended meanwhile is no error
        assert await still_open() == {(key, young), (other, of_other), (foreign, of_foreign)}
        async for page in leftovers.uploads(lambda: 0.0):
            await leftovers.abort(page)
        assert await still_open() == {(foreign, of_foreign)}
        await client.abort_multipart_upload(Bucket=BUCKET, Key=foreign, UploadId=of_foreign)


async def test_s3_keys_that_may_list_the_prefix_alone_are_enough() -> None:
    """MinIO tells of no upload there, and refuses the rest of the bucket."""

    async def request(operation: str, **parameters: Any) -> dict[str, Any]:
        if "Prefix" not in parameters:
            raise StoreRefused("access denied")
        return {"Uploads": []}

    leftovers = Leftovers(StoreSettings(prefix="p"), request=request, ask=request)
    assert [page async for page in leftovers.uploads(lambda: 0.0)] == []


async def test_s3_uploads_of_several_pages_are_found(
    own: StoreSettings, client: Any, executor: ThreadPoolExecutor
) -> None:
    keys = [f"{own.prefix}/{MAC}/{number:064x}/data" for number in range(1100)]
    async with Store(own, executor) as store:
        leftovers = await store.leftovers()
        for start in range(0, len(keys), 50):
            some = keys[start : start + 50]
            await asyncio.gather(
                *(client.create_multipart_upload(Bucket=BUCKET, Key=key) for key in some)
            )
        found: list[str] = []
        async for page in leftovers.uploads(lambda: 0.0, MAC):
            found += [one.key for one in page]
            await leftovers.abort(page)
        assert sorted(found) == keys
        assert await open_uploads(client) == []


async def test_leftovers_of_a_store_that_is_down_or_refuses_are_told(
    own: StoreSettings, executor: ThreadPoolExecutor
) -> None:
    wrong = replace(own, secret_key=Secret("canary" + "0" * 14))
    async with Store(wrong, executor) as store:
        with pytest.raises(StoreRefused) as failed:
            leftovers = await store.leftovers()
            _ = [page async for page in leftovers.objects(lambda: 0.0)]
    assert_tells(failed.value, wrong)


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


async def test_what_is_to_be_removed_later_has_a_bound_and_the_oldest_is_told(
    settings: StoreSettings, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    async def ask(operation: str, **what: Any) -> None:
        asked.append(what["Key"])

    async def none(*_: Any, **__: Any) -> str:
        raise AssertionError

    multipart = Multipart(settings, Operations(none, ask, none, none, none))
    for number in range(MOST_LEFT + 2):
        multipart.remove_later(f"key {number}")
    told = [one.getMessage() for one in caplog.records]
    assert told == [f"an upload of key {n} stays in the store, for `store gc`" for n in range(2)]
    await multipart.close()
    assert asked == [f"key {number}" for number in range(2, MOST_LEFT + 2)]


async def test_a_slow_disk_is_not_a_silent_store(
    executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    def slow(_: int) -> None:
        time.sleep(0.5)

    async with (
        dataset(tmp_path, b"abc", executor, on_read=slow) as source,
        Reading(source, executor, None) as reading,
    ):
        window = Window(reading, 0, 3)
        async with window.deadline:
            window.begin(0.1)
            assert b"".join([bytes(piece) async for piece in window]) == b"abc"


async def test_an_upload_that_has_ended_reads_no_more(
    executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    async with dataset(tmp_path, b"abc", executor) as source:
        async with Reading(source, executor, None) as reading:
            assert await reading.read(0, 1, blake3()) == b"a"
        with pytest.raises(TransferGone):
            await reading.read(1, 1, blake3())
    assert source.reads == 1


# --- datasets that were just written ------------------------------------------------------------


class Written:
    """A dataset by its times alone."""

    name, size, etag = "d", 1, "e"

    def __init__(self, age_seconds: float) -> None:
        self.mtime_ns = self.ctime_ns = (time.time_ns() - int(age_seconds * 1e9)) | 1
        self.looked_at = 0

    def fileno(self) -> int:
        return -1

    async def unchanged(self) -> None:
        self.looked_at += 1


async def test_a_dataset_that_was_just_written_is_waited_for(executor: ThreadPoolExecutor) -> None:
    store = Store(StoreSettings("http://127.0.0.1:1", settle_seconds=1.2), executor)
    young = Written(0.1)
    await store.settle(young)
    assert time.time_ns() - young.mtime_ns >= 0.15e9
    assert young.looked_at == 1
    coarse = Written(0)
    coarse.mtime_ns = coarse.ctime_ns = coarse.mtime_ns // 10**9 * 10**9
    await store.settle(coarse)
    assert time.time_ns() - coarse.mtime_ns >= 1.2e9


@pytest.mark.parametrize("age_seconds", [4000, -4000])
async def test_one_that_is_old_or_of_the_future_is_not(
    executor: ThreadPoolExecutor, age_seconds: float
) -> None:
    store = Store(StoreSettings("http://127.0.0.1:1", settle_seconds=3600.0), executor)
    one = Written(age_seconds)
    async with asyncio.timeout(10):
        await store.settle(one)
    assert one.looked_at == 0
