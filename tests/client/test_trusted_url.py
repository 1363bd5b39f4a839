"""Fault S1: a download address is the store's, or it is not followed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from tunnelsync.client.trusted import trusted_url
from tunnelsync.errors import StoreUntrusted

STORE = "https://store.example.org"


@pytest.mark.parametrize(
    ("url", "announced"),
    [
        (f"{STORE}/bucket/key?X-Amz-Signature=abc%2F", STORE),
        (f"{STORE}:443/bucket/key", STORE),
        ("http://127.0.0.1:9000/b/k", "http://127.0.0.1:9000"),
        ("http://[::1]:9000/b/k", "http://[::1]:9000"),
    ],
)
def test_the_announced_store_is_trusted(url: str, announced: str) -> None:
    assert trusted_url(url, [announced], "") == URL(url, encoded=True)


@pytest.mark.parametrize(
    "url",
    [
        *("", "file:///etc/passwd", "ftp://store.example.org/x", "//store.example.org/x"),
        *("http://store.example.org/x", "https://store.example.org:444/x"),
        *("https://evil.example.org/x", "https://store.example.org.evil.org/x"),
        *("https://store.example.org@evil.org/x", "https://user@store.example.org/x"),
        *("https://evil.org\\@store.example.org/x", "https://store.example.org\n.evil.org/"),
        "https://evil.org/#@store.example.org",
    ],
)
def test_another_place_is_refused(url: str) -> None:
    with pytest.raises(StoreUntrusted):
        trusted_url(url, [STORE], "")


@pytest.mark.parametrize(
    "origin",
    [
        *("http://169.254.169.254", "http://[fe80::1]", "http://0.0.0.0", "http://[::]"),
        *("http://[::ffff:169.254.169.254]", "http://2852039166", "http://0xa9fea9fe"),
        *("http://0", "http://0251.0376.0251.0376", "http://224.0.0.1", "http://169.254.1.1."),
    ],
)
def test_link_local_is_refused_even_if_announced(origin: str) -> None:
    with pytest.raises(StoreUntrusted):
        trusted_url(f"{origin}/x", [origin], origin)


def test_a_pin_wins_over_what_the_router_announces() -> None:
    with pytest.raises(StoreUntrusted):
        trusted_url(f"{STORE}/x", [STORE], "https://other.example.org")
    assert trusted_url("https://other.example.org/x", [STORE], "https://other.example.org")


def test_nothing_announced_is_nothing_trusted() -> None:
    with pytest.raises(StoreUntrusted):
        trusted_url(f"{STORE}/x", [], "")


def test_the_query_is_a_secret() -> None:
    with pytest.raises(StoreUntrusted) as caught:
        trusted_url("https://evil.org/x?X-Amz-Signature=geheim", [STORE], "")
    assert "geheim" not in caught.value.message


@given(st.text() | st.text().map((STORE + "{}").format), st.lists(st.just(STORE) | st.text()))
def test_any_text_is_at_an_announced_origin_or_refused(text: str, announced: list[str]) -> None:
    try:
        url = trusted_url(text, announced, "")
    except StoreUntrusted:
        return
    assert any(str(url.origin()) in one.lower() for one in announced)
