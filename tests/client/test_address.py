"""Which texts are a router's address, and when plain http is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync.address import router_url
from tunnelsync.errors import BadSetting, PlaintextRefused


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/"),
        ("http://127.9.9.9:8080/", "http://127.9.9.9:8080/"),
        ("http://localhost", "http://localhost/"),
        ("http://LOCALHOST:1", "http://localhost:1/"),
        ("http://[::1]:8080", "http://[::1]:8080/"),
        ("https://router.example.org", "https://router.example.org/"),
        ("https://router.example.org:8443/", "https://router.example.org:8443/"),
    ],
)
def test_an_address_is_taken(text: str, url: str) -> None:
    assert str(router_url(text, allow_plaintext=False)) == url


@pytest.mark.parametrize(
    "text",
    [
        *("", "router.example.org", "localhost:8080", "//host", "ftp://host", "file:///etc/passwd"),
        *("http://", "http://:80", "http://host:0", "http://host:99999", "http://host:x"),
        *("http://host/path", "http://host/?q", "http://host?", "http://host#f", "https://a b"),
        *(
            "https://user:pass@host",
            "https://user@host",
            "https://h\n",
            "https://h\\@x",
            "https://é",
        ),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadSetting):
        router_url(text, allow_plaintext=True)


def test_a_password_in_the_address_is_not_repeated() -> None:
    with pytest.raises(BadSetting) as caught:
        router_url("https://user:geheim@host", allow_plaintext=True)
    assert "geheim" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "host",
    ["router.example.org", "10.0.0.1", "localhost.example.org", "2130706433", "128.0.0.1", "[::2]"],
)
def test_http_to_another_host_needs_leave(host: str) -> None:
    with pytest.raises(PlaintextRefused):
        router_url(f"http://{host}", allow_plaintext=False)
    assert router_url(f"http://{host}", allow_plaintext=True).scheme == "http"


@given(st.text() | st.text().map("http://{}".format))
def test_any_text_is_an_address_or_one_of_two_errors(text: str) -> None:
    try:
        url = router_url(text, allow_plaintext=False)
    except (BadSetting, PlaintextRefused):
        return
    assert url.scheme in ("http", "https")
    assert url.raw_path == "/"
    assert url.user is None
