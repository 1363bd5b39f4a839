"""MAC and name out of the raw path of a request, and its conditions; no socket."""

from urllib.parse import quote

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tunnelsync.errors import BadMac, BadName, BadRequest, TunnelSyncError
from tunnelsync.protocol import Conditions, check_name
from tunnelsync.router.asking import CONDITIONS_BYTES, conditions_of, path_of

MAC = "cc-28-aa-00-11-22"


def found(path: str) -> tuple[str, str]:
    return path_of(make_mocked_request("GET", path))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/datasets/{MAC}/a", "a"),
        (f"/datasets/{MAC}/", ""),
        (f"/datasets/{MAC}/a/", "a/"),
        (f"/datasets/{MAC}/a%2Fb", "a/b"),
        (f"/datasets/{MAC}/a+b%20c", "a+b c"),
        (f"/datasets/{MAC}/a%3Fb?c/d", "a?b"),
        (f"/datasets/{MAC}/%2541", "%41"),
        (f"/datasets/{MAC}/datasets/x", "datasets/x"),
        (f"/datasets/{MAC}/c%C3%B1", "cñ"),
        ("/datasets/CC28.AA00.1122/a", "a"),
        ("/datasets/cc%3a28%3Aaa:00:11:22/a", "a"),
        (f"http://router.test:1/datasets/{MAC}/a", "a"),
        (f"http://datasets/datasets/{MAC}/a", "a"),
        (f"https://[::1]/datasets/{MAC}/http://x", "http://x"),
    ],
)
def test_the_name_is_what_the_path_encodes(path: str, name: str) -> None:
    assert found(path) == (MAC, name)


@pytest.mark.parametrize("path", ["..", "%2e%2e/a", "a/../b", "./a", "%00", "a//b", "/a", "a/%2e"])
def test_n1_what_is_decoded_is_left_for_the_check_of_names(path: str) -> None:
    """Nothing is normalised on the way, so what climbs out is seen as it came."""
    _, name = found(f"/datasets/{MAC}/{path}")
    with pytest.raises(BadName):
        check_name(name)


@pytest.mark.parametrize("name", ["%FF", "%c0%af", "%ED%A0%80", "%", "a%2", "a%ZZ", "%%41", "%+1"])
def test_n3_what_is_no_text_is_no_name(name: str) -> None:
    with pytest.raises(BadName):
        found(f"/datasets/{MAC}/{name}")


@pytest.mark.parametrize("path", [f"/datasets/{MAC}", "/datasets/", "/datasets", "/", "/x/y", "*"])
def test_a_path_without_a_mac_or_a_name(path: str) -> None:
    with pytest.raises(BadRequest):
        found(path)


@pytest.mark.parametrize("mac", ["", "x", "..", "cc-28-aa-00-11-2", "cc28aa001122cc", "%00", "%0a"])
def test_what_is_no_mac(mac: str) -> None:
    with pytest.raises(BadMac):
        found(f"/datasets/{mac}/a")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@example("\0")
@example("a\r\nb")
def test_n3_each_name_comes_back_from_its_encoding(name: str) -> None:
    assert found(f"/datasets/{MAC}/{quote(name, safe='')}") == (MAC, name)


@given(st.text(st.characters(codec="ascii", exclude_characters="\r\n"), max_size=60))
def test_m2_any_path_has_a_name_or_the_one_error(path: str) -> None:
    try:
        _, name = found(f"/datasets/{path}")
    except TunnelSyncError:
        return
    name.encode()


def conditions(*headers: tuple[str, str]) -> Conditions:
    return conditions_of(make_mocked_request("GET", "/", headers=CIMultiDict(headers)))


def test_conditions_are_taken_as_they_came() -> None:
    assert conditions() == Conditions()
    several = conditions(("if-match", '"a"'), ("IF-MATCH", '"b"'), ("Range", "bytes=0-9"))
    assert several == Conditions(range="bytes=0-9", if_match='"a", "b"')
    everything = conditions(
        ("If-None-Match", "*"),
        ("If-Range", '"v"'),
        ("If-Modified-Since", "x"),
        ("If-Unmodified-Since", "y"),
    )
    assert everything == Conditions(
        if_none_match="*", if_range='"v"', if_modified_since="x", if_unmodified_since="y"
    )


def test_conditions_have_a_bound_and_are_ascii() -> None:
    half = "x" * (CONDITIONS_BYTES // 2)
    assert conditions(("If-Match", half), ("If-Range", half)).if_match == half
    with pytest.raises(BadRequest):
        conditions(("If-Match", half), ("If-Range", half), ("Range", "b"))
    with pytest.raises(BadRequest):
        conditions(("If-Match", '"ñ"'))
