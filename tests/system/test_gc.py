"""What is old is removed from the store, and nothing else."""

import re
from pathlib import Path

import orjson

from harness import MAC, cli, sha256
from s3 import S3Server
from store_stage import (
    BUCKET,
    Shelf,
    collected,
    dataset,
    environ,
    fetch,
    free_port,
    outside,
    running,
    shelf,
    told,
)
from tunnelsync.settings import MIB, StoreSettings

__all__ = ["outside", "shelf"]


def test_gc_removes_what_is_old_and_says_so(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    theirs = f"{shelf.prefix}/readme"
    shelf.client.put_object(Bucket=BUCKET, Key=theirs, Body=b"theirs")
    version = f"{shelf.prefix}/{MAC}/{0:064x}"
    with running(tmp_path, environ(store_server, prefix=shelf.prefix)) as system:
        system.router()
        system.connector()
        # Not before: a connector that starts aborts what is older than itself.
        shelf.client.create_multipart_upload(Bucket=BUCKET, Key=f"{version}/data")
        source = dataset(system, "d", 5 * MIB)
        assert fetch(system, "offload", tmp_path / "o").code == 0
        whole = shelf.keys()
        assert len(whole) == 3
        size = 5 * MIB + 2 * 32

        done = collected(store_server, shelf.prefix)
        assert (done.code, done.err) == (0, "")
        nothing = "removed 0 objects of 0 bytes, and aborted 0 uploads, 604800 s old or older\n"
        assert done.out == nothing
        done = collected(store_server, shelf.prefix, "--older-than", "0", "--dry-run")
        would = f"would remove 1 object of {size} bytes, and abort 1 upload, 0 s old or older\n"
        assert (done.code, done.out) == (0, would)
        assert shelf.keys() == whole
        assert shelf.uploads() == [f"{version}/data"]

        life = {"TUNNELSYNC_STORE_OBJECT_LIFETIME_SECONDS": "0"}
        done = collected(store_server, shelf.prefix, "--json", **life)
        assert (done.code, done.json()) == (
            0,
            {
                "status": "success",
                "dry_run": False,
                "older_than_seconds": 0,
                "objects": 1,
                "bytes": size,
                "uploads": 1,
            },
        )
        assert shelf.keys() == [theirs]
        assert shelf.uploads() == []
        assert fetch(system, "offload", tmp_path / "o", "--force").code == 0
        assert sha256(tmp_path / "o") == sha256(source)


def test_the_rule_in_the_docs_is_one_that_stores_take(store_server: S3Server, shelf: Shelf) -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    blocks = (orjson.loads(one) for one in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    (rule,) = (one for one in blocks if "Rules" in one)
    shelf.client.create_bucket(Bucket="with-a-rule")
    with_rule = {"Bucket": "with-a-rule", "LifecycleConfiguration": rule}
    shelf.client.put_bucket_lifecycle_configuration(**with_rule)
    (kept,) = shelf.client.get_bucket_lifecycle_configuration(Bucket="with-a-rule")["Rules"]
    (given,) = rule["Rules"]
    assert (kept["Filter"], kept["Expiration"]) == (given["Filter"], given["Expiration"])
    assert kept["Filter"] == {"Prefix": f"{StoreSettings().prefix}/"}
    days = kept["Expiration"]["Days"]
    assert days * 24 * 3600 >= StoreSettings().object_lifetime_seconds
    if store_server.kind != "minio":  # which ends uploads by itself
        name = "AbortIncompleteMultipartUpload"
        assert kept[name] == given[name]


def test_gc_without_a_store_or_with_one_that_is_away_says_so(
    store_server: S3Server, tmp_path: Path
) -> None:
    done = cli("store", "gc", "--json")
    assert (done.code, done.json()["error"]["code"]) == (4, "store_not_configured")
    assert "TUNNELSYNC_STORE_ENDPOINT" in told(done)
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = collected(store_server, "p", "--store-endpoint", nowhere)
    assert done.code == 5
    assert nowhere in done.err
    (tmp_path / "ts.toml").write_text(f'[store]\nendpoint = "{nowhere}"\n')
    done = cli("store", "gc", "--config", tmp_path / "ts.toml")
    assert (done.code, nowhere in done.err) == (5, True)
    done = collected(store_server, "p", "--store-bucket", "not-made-by-gc")
    assert done.code == 5
    assert "no such bucket" in done.err
    assert collected(store_server, "p", "--older-than", "-1").code == 2
