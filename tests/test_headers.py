"""What `content_disposition` makes of names."""

from urllib.parse import unquote

import pytest
from aiohttp import content_disposition_filename, parse_content_disposition
from hypothesis import example, given
from hypothesis import strategies as st

from tunnelsync.headers import content_disposition

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
AWKWARD = 'sub/a"b\\c;d\r\nSet-Cookie: x\0\x1b[31m\u202e%22é漢.csv'


def split(value: str) -> tuple[str, str]:
    """Take a value apart as RFC 6266 says, by its grammar and not by our code."""
    kind, plain, exact = value.split('"')[0], value.split('"')[1], value.split('"')[2]
    assert kind == "attachment; filename="
    assert exact.startswith("; filename*=UTF-8''")
    return plain, exact.removeprefix("; filename*=UTF-8''")


@given(NAMES)
@example(AWKWARD)
def test_only_printable_ascii_comes_out(name: str) -> None:
    value = content_disposition(name)
    assert value.isascii()
    assert value.isprintable()


@given(NAMES)
@example(AWKWARD)
def test_it_decodes_back_to_the_base_name(name: str) -> None:
    _, exact = split(content_disposition(name))
    assert unquote(exact) == name.split("/")[-1]


@given(NAMES)
@example(AWKWARD)
def test_no_name_breaks_out_of_its_quotes(name: str) -> None:
    value = content_disposition(name)
    assert value.count('"') == 2
    assert "\\" not in value
    _, exact = split(value)
    assert not set(exact) & set(" ;,'\"()<>@:/[]?={}*\\")


def test_another_parser_reads_the_same_name() -> None:
    kind, params = parse_content_disposition(content_disposition("ménage 漢/été 1;2.csv"))
    assert kind == "attachment"
    assert content_disposition_filename(params) == "été 1;2.csv"


@pytest.mark.parametrize("name", ["data.csv", "a/b/data.csv"])
def test_a_plain_name_is_written_plainly(name: str) -> None:
    assert content_disposition(name) == (
        "attachment; filename=\"data.csv\"; filename*=UTF-8''data.csv"
    )


def test_a_lone_surrogate_does_not_raise() -> None:
    assert content_disposition("a\udc80").isascii()
