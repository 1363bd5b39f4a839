"""The pure side of the store: keys, parts, addresses, and what a refusal means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync.errors import BadSetting, StoreRefused, StoreUnavailable, TunnelSyncError
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.objects import answered, object_key, origin, part_size, refusal
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
