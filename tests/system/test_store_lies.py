"""S4: what is in the store is not what it should be."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from claims import DATA, DIGESTS, at_store, claim, exit_code
from harness import MAC, System, sha256
from played_connector import played, wanting
from store_stage import (
    BUCKET,
    MACS,
    Shelf,
    altered,
    dataset,
    fetch,
    keys_in,
    offered,
    outside,
    shelf,
    stored,
    told,
)
from tunnelsync.client import TunnelSync
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode
from tunnelsync.settings import MIB

__all__ = ["at_store", "outside", "shelf", "stored"]


async def test_s4_what_is_not_whole_is_uploaded_again(
    stored: System, tmp_path: Path, outside: Any
) -> None:
    shelf, target = Shelf(outside, ""), tmp_path / "out"
    source = dataset(stored, "not whole", 5 * MIB)
    for key in keys_in(offered(stored, "not whole")):
        whole = shelf.get(key)
        for fault in (None, whole[:-32], whole + bytes(32)):
            if fault is None:
                shelf.client.delete_object(Bucket=BUCKET, Key=key)
            else:
                shelf.put(key, fault)
            async with TunnelSync(stored.url) as client:
                await client.fetch(MAC, "not whole", target, mode=Mode.OFFLOAD, force=True)
            assert sha256(target) == sha256(source)
            assert shelf.get(key) == whole
        assert offered(stored, "not whole")["reused"]


def test_s4_one_altered_byte_is_found_before_the_target_changes(
    stored: System, tmp_path: Path, outside: Any
) -> None:
    shelf = Shelf(outside, "")
    dataset(stored, "altered", 9 * MIB)
    keys = keys_in(offered(stored, "altered"))
    (tmp_path / "old").write_bytes(b"what was there before")
    for key, target in zip(keys, (tmp_path / "out", tmp_path / "old"), strict=True):
        whole = shelf.get(key)
        shelf.put(key, altered(whole))
        done = fetch(stored, "offload", target, "--force", name="altered")
        assert done.code == 7, done.out
        assert re.search(r"block \d came wrong 4 times", told(done))
        shelf.put(key, whole)
    assert (tmp_path / "old").read_bytes() == b"what was there before"
    assert not (tmp_path / "out").exists()
    assert fetch(stored, "offload", tmp_path / "old", "--force", name="altered").code == 0


@pytest.mark.parametrize(
    ("data", "blocks", "code"),
    [
        (DATA, DIGESTS, 0),
        (None, DIGESTS, 5),
        (DATA[:-1], DIGESTS, 5),
        (DATA[:BLOCK_BYTES], DIGESTS, 5),
        (DATA[:1], DIGESTS, 5),
        (DATA + b"x", DIGESTS, 5),
        (altered(DATA), DIGESTS, 7),
        (DATA[:-1] + b"\0", DIGESTS, 7),
        (DATA, altered(DIGESTS), 7),
        (DATA, DIGESTS[:-32], 7),
        (DATA, DIGESTS[:-1], 7),
        (DATA, DIGESTS + bytes(32), 7),
        (DATA, DIGESTS[32:] + DIGESTS[:32], 7),
    ],
    ids=[
        "right",
        "absent",
        "a byte short",
        "two blocks short",
        "one byte",
        "a byte long",
        "altered in the middle",
        "altered at the end",
        "digests altered",
        "a digest short",
        "half a digest short",
        "a digest long",
        "digests in another order",
    ],
)
async def test_s4_a_claim_that_does_not_hold_is_found_before_the_target_changes(
    at_store: System, shelf: Shelf, data: bytes | None, blocks: bytes, code: int
) -> None:
    target = at_store.tmp_path / "out"
    async with played(at_store.url, next(MACS)) as connector:
        assert await exit_code(connector, claim(shelf, data, blocks), target) == code
    assert target.exists() == (code == 0)
    if target.exists():
        assert target.read_bytes() == DATA
        target.unlink()
    assert [one.name for one in at_store.tmp_path.iterdir()] == []


async def test_s3_auto_asks_for_a_stream_when_the_object_is_not_there(
    at_store: System, shelf: Shelf
) -> None:
    target = at_store.tmp_path / "out"
    async with played(at_store.url, next(MACS)) as connector:
        doing = asyncio.create_task(
            asyncio.to_thread(fetch, at_store, "auto", target, mac=connector.mac)
        )
        first = await connector.command("get_dataset_auto")
        await connector.result(first, claim(shelf, None, DIGESTS))
        again = await connector.hear()
        assert again["accept"] == ["stream"]
        failed = {"code": "read_failed", "message": "so far, so good"}
        await connector.result(again["request_id"], {"status": "error", "error": failed})
        done = await doing
    assert done.code == 7
    assert "so far, so good" in told(done)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": -1},
        {"count": 2},
        {"count": 10**9},
        {"size": 2**62, "count": 2**40},
        {"root": "blake3-4m:" + "0" * 64},
    ],
)
async def test_s4_an_answer_that_cannot_be_is_refused(
    at_store: System, shelf: Shelf, wrong: dict[str, Any]
) -> None:
    async with played(at_store.url, next(MACS)) as connector:
        answer = replace(claim(shelf, DATA, DIGESTS), **wrong)
        assert await exit_code(connector, answer, at_store.tmp_path / "out") == 7
    assert list(at_store.tmp_path.iterdir()) == []


async def test_an_answer_that_is_no_offload_is_refused(at_store: System) -> None:
    async with played(at_store.url, next(MACS)) as connector:
        for wrong in (
            b"{}",
            b"[]",
            b"{",
            b'{"download_url":1}',
            orjson.dumps({"status": "success"}),
        ):
            client = wanting(at_store.url, connector.mac, "offload")
            request_id = await connector.command("get_dataset_offload")
            reply = await connector.result(request_id, wrong)
            if reply.status != 200:
                assert (reply.status, reply.code) == (400, "bad_request")
                await connector.result(request_id, {})
            answer = await client
            assert (answer.status, answer.code) == (502, "protocol_error"), wrong
