"""The pure side of the store: keys, parts, addresses, and what a refusal means."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync.errors import BadSetting, StoreRefused, StoreUnavailable, TunnelSyncError
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.objects import (
    Kept,
    age_seconds,
    answered,
    kept,
    object_key,
    open_uploads,
    origin,
    part_size,
    refusal,
    segment_key,
    unsettled_seconds,
    version_of,
)
from tunnelsync.settings import MIB

MAC = "cc-28-aa-00-11-22"


@pytest.mark.parametrize("prefix", ["", "/", "a/b", "/a//b/"])
def test_keys_have_no_empty_component(prefix: str) -> None:
    key = object_key(prefix, MAC, "a/b.csv", "1-2-3")
    assert key.endswith(f"{MAC}/{key[-64:]}")
    assert "" not in key.split("/")


@given(st.text(max_size=20), st.text(max_size=20))
def test_each_version_of_each_name_has_its_own_key(name: str, etag: str) -> None:
    assert object_key("p", MAC, name, etag) != object_key("p", MAC, name, etag + "0")
    assert object_key("p", MAC, name, etag) != object_key("p", MAC, name + "0", etag)


@given(st.integers(0, 5 * 1024**4), st.integers(0, 1024**3))
def test_parts_are_whole_blocks_and_few_enough(size: int, least: int) -> None:
    part = part_size(size, least)
    assert part % BLOCK_BYTES == 0
    assert part >= max(least, 5 * MIB)
    assert -(-size // part) <= 10_000


def test_parts_are_16_mib_up_to_140_gib() -> None:
    assert part_size(140 * 1024**3, 16 * MIB) == 16 * MIB
    assert part_size(150 * 1024**3, 16 * MIB) == 20 * MIB


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("HTTPS://S3.Example.COM:443/bucket/key?X-Amz-Signature=1#f", "https://s3.example.com"),
        ("http://example.com:80", "http://example.com"),
        ("https://example.com:80/", "https://example.com:80"),
        ("http://[::1]:9000/a", "http://[::1]:9000"),
    ],
)
def test_an_origin_is_written_in_one_way(url: str, expected: str) -> None:
    assert origin(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com:9000",
        "//example.com",
        "ftp://example.com",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://user:canary@example.com",
        "http://example.com:0",
        "http://example.com:99999",
        "http://exa mple.com",
        "http://example.com\\@evil.com",
        "http://example.com\n",
        "https://[::1",
    ],
)
def test_what_is_no_http_address_is_a_bad_setting(url: str) -> None:
    with pytest.raises(BadSetting) as failed:
        origin(url)
    assert "canary" not in failed.value.message


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        (404, "NoSuchBucket", StoreRefused, "no such bucket"),
        (507, "XMinioStorageFull", StoreRefused, "no space left"),
        (403, "QuotaExceeded", StoreRefused, "no space left"),
        (403, "RequestTimeTooSkewed", StoreRefused, "another time"),
        (403, "AccessDenied", StoreRefused, "refused the keys"),
        (400, "MalformedXML", StoreRefused, "refused with 400"),
        (500, "InternalError", StoreUnavailable, "answered 500"),
        (503, "SlowDown", StoreUnavailable, "answered 503"),
        (429, "TooManyRequests", StoreUnavailable, "answered 429"),
    ],
)
def test_a_refusal_says_what_it_was_and_what_to_do(
    status: int, code: str, kind: type[TunnelSyncError], said: str
) -> None:
    error = refusal("the store", status, code)
    assert type(error) is kind
    assert error.message.startswith("the store ")
    assert said in error.message
    assert error.hint


def test_of_a_code_only_letters_and_digits_are_believed() -> None:
    response = {"ResponseMetadata": {"HTTPStatusCode": 403}, "Error": {"Code": "\x1b[1mNo\né"}}
    assert answered(response) == (403, "1mNo")
    assert answered({}) == (0, "no code")


# --- what is ours, and how old it is ------------------------------------------------------------

HASH = "0" * 63 + "a"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize("prefix", ["", "datasets", "/a//b/", "a.b+c"])
@pytest.mark.parametrize("end", ["/data", "/blocks"])
def test_a_key_that_we_write_is_known_as_ours(prefix: str, end: str) -> None:
    version = object_key(prefix, MAC, "name", "etag")
    assert version_of(version + end, prefix) == version


@pytest.mark.parametrize("prefix", ["", "datasets", "/a//b/", "a.b+c"])
def test_a_segment_is_of_its_set(prefix: str) -> None:
    version, one_set = object_key(prefix, MAC, "name", "etag"), "0123456789abcdef"
    key = segment_key(version, one_set, 5 * 2**40)
    assert key == f"{version}/segments/{one_set}/0000050000000000"
    assert version_of(key, prefix) == f"{version}/segments/{one_set}"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "datasets",
        "datasets/",
        f"datasets/{MAC}/{HASH}",
        f"datasets/{MAC}/{HASH}/",
        f"datasets/{MAC}/{HASH}/data/",
        f"datasets/{MAC}/{HASH}/data/blocks",
        f"datasets/{MAC}/{HASH}/data\n",
        f"datasets/{MAC}/{HASH}/DATA",
        f"datasets/{MAC}/{HASH}/notes",
        f"datasets/{MAC}/{HASH}/segments/{HASH[:16]}",
        f"datasets/{MAC}/{HASH}/segments/{HASH[:16]}/data",
        f"datasets/{MAC}/{HASH}/segments/{HASH[:16]}/{HASH[:15]}",
        f"datasets/{MAC}/{HASH}/segments/{HASH[:15]}/{HASH[:16]}",
        f"datasets/{MAC}/{HASH}/{HASH[:16]}",
        f"datasets/{MAC}/{HASH[1:]}/data",
        f"datasets/{MAC}/{HASH}0/data",
        f"datasets/{MAC.upper()}/{HASH}/data",
        f"datasets/{MAC[:-3]}/{HASH}/data",
        f"datasets//{MAC}/{HASH}/data",
        f"datasets/more/{MAC}/{HASH}/data",
        f"datasets2/{MAC}/{HASH}/data",
        f"my/datasets/{MAC}/{HASH}/data",
        f"/datasets/{MAC}/{HASH}/data",
        f"{MAC}/{HASH}/data",
    ],
)
def test_any_other_key_is_not(key: str) -> None:
    assert version_of(key, "datasets") is None


def row(number: int, end: str, *, hours: int = 0) -> Mapping[str, Any]:
    key = f"datasets/{MAC}/{number:064x}/{end}"
    return {"Key": key, "Size": number + 1, "LastModified": NOON + timedelta(hours=hours)}


@pytest.mark.parametrize(
    ("mtime_seconds", "ctime_seconds", "left_seconds"),
    [
        (1000, 1000, 2.0),
        (500.5, 1000, 2.0),
        (1000, 999.25, 0.25),  # a time that a user gave says nothing of how fine they are
        (500, 999.75, 0.0),
        (500, 998, 0.0),
        (1001, 998, 3.0),
        (0, 0, -998.0),
        (0, 1000.25, 0.5),
    ],
)
def test_a_file_of_whole_seconds_hides_an_edit_longest(
    mtime_seconds: float, ctime_seconds: float, left_seconds: float
) -> None:
    mtime_ns, ctime_ns = int(mtime_seconds * 10**9), int(ctime_seconds * 10**9)
    assert unsettled_seconds(mtime_ns, ctime_ns, 1000 * 10**9, 2.0) == left_seconds


def test_each_set_of_segments_is_one_object_as_old_as_its_youngest() -> None:
    first, second = (f"segments/{number:016x}" for number in (1, 2))
    rows = [
        row(1, "blocks", hours=3),
        row(1, f"{first}/{0:016x}"),
        row(1, f"{first}/{8:016x}", hours=2),
        row(1, f"{second}/{0:016x}", hours=1),
    ]
    whole, last = kept(rows, "datasets", None)
    version = f"datasets/{MAC}/{1:064x}"
    assert last is not None
    found = [(one.version, len(one.keys), one.size, one.at) for one in (*whole, last)]
    assert found == [
        (version, 1, 2, NOON + timedelta(hours=3)),
        (f"{version}/{first}", 2, 4, NOON + timedelta(hours=2)),
        (f"{version}/{second}", 1, 2, NOON + timedelta(hours=1)),
    ]


def test_data_and_blocks_are_one_object_as_old_as_the_younger() -> None:
    rows = [row(1, "blocks", hours=2), row(1, "data"), {"Key": "datasets/readme"}, row(2, "data")]
    whole, last = kept(rows, "datasets", None)
    version = f"datasets/{MAC}/{1:064x}"
    keys = f"{version}/blocks", f"{version}/data"
    assert whole == [Kept(version, keys, 4, NOON + timedelta(hours=2))]
    assert last is not None
    assert last.keys == (row(2, "data")["Key"],)


@given(st.lists(st.sampled_from(["blocks", "data", "both"]), max_size=12), st.integers(1, 5))
def test_where_a_page_ends_makes_no_difference(there: list[str], page_rows: int) -> None:
    ends = {"both": ("blocks", "data")}
    rows = [row(number, end) for number, one in enumerate(there) for end in ends.get(one, (one,))]
    found, last = [], None
    for start in range(0, len(rows), page_rows):
        whole, last = kept(rows[start : start + page_rows], "datasets", last)
        found += whole
    found += [last] if last else []
    assert [len(one.keys) for one in found] == [len(ends.get(one, (one,))) for one in there]
    assert [key for one in found for key in one.keys] == [one["Key"] for one in rows]


def test_uploads_are_those_of_one_connector_or_of_all_of_ours() -> None:
    macs = MAC, "cc-28-aa-00-11-23"
    keys = [f"datasets/{mac}/{HASH}/data" for mac in macs] + ["datasets/other"]
    rows = [{"Key": key, "UploadId": "1", "Initiated": NOON} for key in keys]
    assert [one.key for one in open_uploads(rows, "datasets")] == keys[:2]
    assert [one.key for one in open_uploads(rows, "datasets", MAC)] == keys[:1]
    assert open_uploads(rows, "") == []


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("Tue, 24 Nov 2026 12:00:07 GMT", 7.0), ("Tue, 24 Nov 2026 11:59:59 GMT", 0.0)],
)
def test_an_age_is_by_the_clock_of_the_store(said: str, seconds: float) -> None:
    answer = {"ResponseMetadata": {"HTTPHeaders": {"date": said}}}
    assert age_seconds(answer, NOON) == seconds


@pytest.mark.parametrize("answer", [{}, {"ResponseMetadata": {"HTTPHeaders": {"date": "soon"}}}])
def test_without_it_by_ours(answer: Mapping[str, Any]) -> None:
    assert 3590 < age_seconds(answer, datetime.now(UTC) - timedelta(hours=1)) < 3700
