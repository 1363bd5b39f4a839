"""JSON to dataclasses: strictly typed, or a `BadRequest`; never another error."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync import wire
from tunnelsync.errors import BadRequest
from tunnelsync.identity import Mac


@dataclass(frozen=True, slots=True)
class Inner:
    number: int
    share: float = 0.5


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    mac: Mac
    flag: bool = False
    maybe: str | None = None
    inner: Inner | None = None
    items: tuple[Inner, ...] = ()
    words: tuple[str, ...] = ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
whole = st.integers(-(2**63), 2**63 - 1)
inners = st.builds(Inner, number=whole, share=st.floats(allow_nan=False, allow_infinity=False))
outers = st.builds(
    Outer,
    name=texts,
    mac=texts.map(Mac),
    flag=st.booleans(),
    maybe=st.none() | texts,
    inner=st.none() | inners,
    items=st.lists(inners, max_size=3).map(tuple),
    words=st.lists(texts, max_size=3).map(tuple),
)


@given(outers)
def test_a_message_is_whole_after_the_wire(message: Outer) -> None:
    assert wire.decode(Outer, wire.loads(wire.dumps(message))) == message


def test_members_that_are_none_are_not_sent() -> None:
    assert wire.loads(wire.dumps(Outer("n", Mac("m")))) == {
        "name": "n",
        "mac": "m",
        "flag": False,
        "items": [],
        "words": [],
    }


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_m2_any_bytes_are_an_object_or_a_bad_request(data: bytes) -> None:
    try:
        value = wire.loads(data)
    except BadRequest:
        return
    assert isinstance(value, dict)


@given(st.text())
def test_m2_any_text_is_an_object_or_a_bad_request(text: str) -> None:
    try:
        value = wire.loads(text)
    except BadRequest:
        return
    assert isinstance(value, dict)


fields = st.fixed_dictionaries(
    {}, optional={field.name: json_values for field in dataclasses.fields(Outer)}
)


@given(st.dictionaries(st.text(), json_values) | fields)
def test_m2_any_object_is_a_message_or_a_bad_request(value: dict[str, Any]) -> None:
    try:
        message = wire.decode(Outer, value)
    except BadRequest:
        return
    assert type(message.name) is str
    assert type(message.flag) is bool
    assert all(type(one.number) is int and type(one.share) is float for one in message.items)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"3",
        b"[]",
        b'"x"',
        b"{",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"\xff{}",
        b'{"a":' * 100_000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b'{"a":"\\ud800"}',
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda data: repr(data[:16]),
)
def test_m1_what_is_no_json_object_is_a_bad_request(data: bytes) -> None:
    with pytest.raises(BadRequest):
        wire.loads(data)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": None},
        {"name": 3},
        {"name": ["n"]},
        {"flag": 1},
        {"flag": "true"},
        {"inner": []},
        {"inner": {}},
        {"inner": {"number": "1"}},
        {"inner": {"number": 1.0}},
        {"inner": {"number": True}},
        {"inner": {"number": 2**63}},
        {"inner": {"number": 1e400}},
        {"inner": {"number": 1, "share": "half"}},
        {"items": {}},
        {"items": "x"},
        {"items": [1]},
        {"words": [None]},
        {"maybe": 0},
    ],
    ids=repr,
)
def test_m1_a_member_of_the_wrong_type_is_a_bad_request(changed: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        wire.decode(Outer, {"name": "n", "mac": "m", **changed})


def test_m1_a_huge_number_is_a_bad_request() -> None:
    text = b'{"number":' + b"9" * 400 + b"}"
    with pytest.raises(BadRequest):
        wire.decode(Inner, wire.loads(text))


def test_members_of_a_later_version_are_ignored() -> None:
    assert wire.decode(Inner, {"number": 1, "color": "red"}) == Inner(1)


def test_a_whole_number_is_taken_for_a_float() -> None:
    decoded = wire.decode(Inner, {"number": 1, "share": 1})
    assert decoded == Inner(1, 1.0)
    assert type(decoded.share) is float


def test_m1_the_last_of_duplicate_keys_counts() -> None:
    assert wire.loads(b'{"a":1,"a":2}') == {"a": 2}


@given(st.dictionaries(texts, texts | whole | st.lists(texts)))
def test_plain_objects_are_dumped_as_they_are(value: dict[str, Any]) -> None:
    assert orjson.loads(wire.dumps(value)) == value
