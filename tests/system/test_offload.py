"""Mode offload with a real S3 server: by the store or not at all, and never a wrong byte."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness import MAC, System, make_file, sha256
from s3 import S3Server, s3_server
from store_stage import (
    AUTO_BYTES,
    BUCKET,
    SECONDS,
    Shelf,
    dataset,
    environ,
    fetch,
    free_port,
    keys_in,
    offered,
    outside,
    running,
    shelf,
    stored,
    told,
)
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.settings import MIB

__all__ = ["outside", "shelf", "stored"]

SIZES = (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 40 * MIB)


# --- B9 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "sizes"), [("offload", SIZES), ("auto", (0, AUTO_BYTES - 1, AUTO_BYTES, 40 * MIB))]
)
def test_b9_sizes_around_a_block_arrive_whole_by_the_store(
    stored: System, tmp_path: Path, mode: str, sizes: tuple[int, ...]
) -> None:
    """In mode auto what is small is streamed."""
    for size in sizes:
        name = f"{mode} {size}"
        source, target = dataset(stored, name, size, seed=size), tmp_path / name
        done = fetch(stored, mode, target, name=name)
        assert done.code == 0, done.out
        by = "stream" if mode == "auto" and size < AUTO_BYTES else "offload"
        assert (done.json()["mode"], done.json()["mode_used"]) == (mode, by)
        assert target.stat().st_size == size
        assert sha256(target) == sha256(source)
        assert target.stat().st_mtime_ns == source.stat().st_mtime_ns


# --- S3: no store, or none that works -----------------------------------------------------------


@pytest.mark.parametrize("used", [True, False], ids=["that was used before", "from the start"])
def test_s3_with_the_store_down_offload_says_so_and_auto_streams(
    tmp_path: Path, store_server: S3Server, used: bool
) -> None:
    source = make_file(tmp_path / "datasets" / "d", 9 * MIB)
    with s3_server() if used else nullcontext() as own:
        endpoint = own.endpoint if own else f"http://127.0.0.1:{free_port()}"
        with running(tmp_path, environ(own or store_server, endpoint=endpoint)) as system:
            system.router()
            connector = system.connector(auto_offload_bytes=1)
            if own:
                assert fetch(system, "auto", tmp_path / "first").json()["mode_used"] == "offload"
                own.stop()
            done = fetch(system, "offload", tmp_path / "out")
            assert done.code == 5, done.out
            assert endpoint in told(done)
            assert "--mode stream" in told(done)
            assert not (tmp_path / "out").exists()
            done = fetch(system, "auto", tmp_path / "out")
            assert done.code == 0, done.out
            assert done.json()["mode_used"] == "stream"
            assert sha256(tmp_path / "out") == sha256(source)
            connector.wait_for_line("streamed instead")


def test_s3_a_store_that_only_the_connector_reaches(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    """The upload works, the download does not: auto asks again, for a stream alone."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    source = make_file(tmp_path / "datasets" / "d", 9 * MIB)
    store = environ(store_server, prefix=shelf.prefix, public_endpoint=nowhere)
    with running(tmp_path, store) as system:
        system.router()
        system.connector(auto_offload_bytes=1)
        done = fetch(system, "offload", tmp_path / "out")
        assert done.code == 5, done.out
        assert nowhere in told(done)
        assert "--mode stream" in told(done)
        assert "X-Amz" not in done.out + done.err
        assert not (tmp_path / "out").exists()
        done = fetch(system, "auto", tmp_path / "out")
        assert (done.code, done.json()["mode_used"]) == (0, "stream")
        assert sha256(tmp_path / "out") == sha256(source)


def test_s3_a_silent_store_has_a_deadline(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    make_file(tmp_path / "datasets" / "d", 1 * MIB)
    store = environ(store_server, prefix=shelf.prefix, read_seconds=0.5)
    with running(tmp_path, store) as system:
        system.router()
        system.connector(auto_offload_bytes=1)
        store_server.pause()
        try:
            done = fetch(system, "offload", tmp_path / "out")
            fallen_back = fetch(system, "auto", tmp_path / "out")
        finally:
            store_server.resume()
        assert done.code == 5, done.out
        assert "silent for 0.5 s" in told(done)
        assert store_server.endpoint in told(done)
        assert (fallen_back.code, fallen_back.json()["mode_used"]) == (0, "stream")


@pytest.mark.parametrize("who", ["router", "connector"])
def test_s3_without_a_store_offload_is_refused_and_auto_streams(
    system: System, tmp_path: Path, store_server: S3Server, shelf: Shelf, who: str
) -> None:
    """It is ``who`` that has none; the other one has."""
    store: dict[str, Any] = {**environ(store_server, prefix=shelf.prefix)}
    none: dict[str, Any] = {}
    system.router(**(none if who == "router" else store))
    system.connector(auto_offload_bytes=1, **(none if who == "connector" else store))
    make_file(tmp_path / "datasets" / "d", 1000)
    done = fetch(system, "offload", tmp_path / "out")
    assert done.code == 4, done.out
    assert f"this {who} has no store" in told(done)
    assert "TUNNELSYNC_STORE_ENDPOINT" in told(done)
    assert "--mode stream" in told(done)
    assert not (tmp_path / "out").exists()
    done = fetch(system, "auto", tmp_path / "out")
    assert (done.code, done.json()["mode_used"]) == (0, "stream")
    assert shelf.keys() == []


def test_s3_a_bucket_that_is_missing_is_told_and_not_made(
    tmp_path: Path, store_server: S3Server, outside: Any
) -> None:
    make_file(tmp_path / "datasets" / "d", 1000)
    store = environ(store_server, bucket="not-here", create_bucket=False)
    with running(tmp_path, store) as system:
        system.router()
        system.connector(auto_offload_bytes=1)
        done = fetch(system, "offload", tmp_path / "out")
        assert done.code == 5, done.out
        assert "'not-here'" in told(done)
        assert "no such bucket" in told(done)
        assert "TUNNELSYNC_STORE_CREATE_BUCKET" in told(done)
        assert not (tmp_path / "out").exists()
        assert fetch(system, "auto", tmp_path / "out").json()["mode_used"] == "stream"
    assert "not-here" not in [one["Name"] for one in outside.list_buckets()["Buckets"]]


# --- S5: one upload -----------------------------------------------------------------------------


def test_s5_the_same_version_twice_is_one_upload(
    stored: System, tmp_path: Path, outside: Any
) -> None:
    shelf = Shelf(outside, "")
    source = dataset(stored, "twice", 20 * MIB)
    first, second = offered(stored, "twice"), offered(stored, "twice")
    assert (first["reused"], second["reused"]) == (False, True)
    assert first["root"] == second["root"]
    assert fetch(stored, "offload", tmp_path / "out", name="twice").code == 0
    assert sha256(tmp_path / "out") == sha256(source)
    assert [shelf.put_count(key) for key in keys_in(first)] == [1, 1]
    dataset(stored, "twice", 20 * MIB, seed=1)
    third = offered(stored, "twice")
    assert not third["reused"]
    assert third["root"] != first["root"]
    assert fetch(stored, "offload", tmp_path / "other", name="twice").code == 0
    assert sha256(tmp_path / "other") == sha256(source)
    assert [shelf.put_count(key) for key in keys_in(third)] == [1, 1]
    assert [shelf.put_count(key) for key in keys_in(first)] == [1, 1]


def test_s5_many_clients_at_once_and_later_are_one_upload(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    """Also after the connector has started again: what is known of it is in the store."""
    store = environ(store_server, prefix=shelf.prefix)
    with running(tmp_path, store) as system:
        system.router()
        connector = system.connector()
        source = dataset(system, "d", 20 * MIB)

        def fetched_by(names: str) -> list[bool]:
            """Fetch by so many clients at once; tell of each whether it got the dataset."""
            flags = ("fetch", "--mode", "offload", "-q", MAC, "d", "-o")
            clients = [system.start(*flags, str(tmp_path / name)) for name in names]
            assert [client.wait(SECONDS) for client in clients] == [0] * len(names)
            return [sha256(tmp_path / name) == sha256(source) for name in names]

        assert all(fetched_by("abcde"))
        assert shelf.put_count("/data") == 1
        blocks, key = shelf.keys()
        assert (blocks[-7:], key[-5:]) == ("/blocks", "/data")
        written = shelf.client.head_object(Bucket=BUCKET, Key=key)["LastModified"]
        assert all(fetched_by("fg"))
        assert connector.stop() == 0
        system.connector()
        assert all(fetched_by("hi"))
        assert shelf.put_count("/data") == shelf.put_count("/blocks") == 1
        assert shelf.client.head_object(Bucket=BUCKET, Key=key)["LastModified"] == written
        assert shelf.uploads() == []
