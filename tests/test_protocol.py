"""Every message: whole after the wire, and no bytes are more than a `BadRequest`."""

import dataclasses
import types
import typing
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync import protocol, wire
from tunnelsync.errors import BY_CODE, BadName, BadRequest, Conflict, TunnelSyncError
from tunnelsync.protocol import (
    Cancel,
    Complete,
    DatasetRequest,
    Fault,
    GetDatasetAuto,
    Hello,
    Problem,
    Welcome,
    check_name,
    decode_from_connector,
    decode_from_router,
    encode,
    error_answer,
    printable,
    problem_in,
)

FROM_CONNECTOR = typing.get_args(protocol.FromConnector)
FROM_ROUTER = typing.get_args(protocol.FromRouter)
OVER_HTTP = (
    protocol.Init,
    protocol.Complete,
    protocol.BufferAnswer,
    protocol.OffloadAnswer,
    protocol.StatAnswer,
    protocol.ListAnswer,
    protocol.Receipt,
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a member's type, such as can travel."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return st.one_of(*map(values_of, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return st.lists(values_of(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return messages_of(hint)
    return {
        types.NoneType: st.none(),
        str: texts,
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }[hint]


def messages_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(kind)})


def members_of(kind: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that look like a message, with anything in its members."""
    names = [field.name for field in dataclasses.fields(kind)]
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, json_values))


@given(st.one_of(*map(messages_of, FROM_CONNECTOR)))
def test_what_a_connector_says_is_whole_after_the_wire(message: protocol.FromConnector) -> None:
    assert decode_from_connector(encode(message)) == message


@given(st.one_of(*map(messages_of, FROM_ROUTER)))
def test_what_the_router_says_is_whole_after_the_wire(message: protocol.FromRouter) -> None:
    assert decode_from_router(encode(message)) == message


@pytest.mark.parametrize("kind", OVER_HTTP)
def test_what_goes_over_http_is_whole_after_the_wire(kind: type[Any]) -> None:
    @given(messages_of(kind))
    def check(message: Any) -> None:
        assert wire.decode(kind, wire.loads(wire.dumps(message))) == message

    check()


@given(st.text() | json_values.map(repr))
def test_m2_any_text_on_the_socket_is_a_message_or_a_bad_request(text: str) -> None:
    for decode in (decode_from_connector, decode_from_router):
        with pytest.raises(BadRequest):
            decode(text)


@pytest.mark.parametrize("kind", [*FROM_CONNECTOR, *FROM_ROUTER], ids=lambda kind: kind.__name__)
def test_m2_a_message_with_anything_in_it_is_a_message_or_a_bad_request(kind: type[Any]) -> None:
    tag = "command" if hasattr(kind, "command") else "type"
    decode: Any = decode_from_connector if kind in FROM_CONNECTOR else decode_from_router

    @given(members_of(kind))
    def check(members: dict[str, Any]) -> None:
        try:
            text = orjson.dumps({**members, tag: getattr(kind, tag)}).decode()
        except TypeError:  # a number that JSON cannot hold here
            return
        with suppress(BadRequest):
            assert type(decode(text)) is kind

    check()


@pytest.mark.parametrize("kind", [*OVER_HTTP, DatasetRequest], ids=lambda kind: kind.__name__)
def test_m2_a_body_with_anything_in_it_is_a_message_or_a_bad_request(kind: type[Any]) -> None:
    @given(members_of(kind))
    def check(members: dict[str, Any]) -> None:
        with suppress(BadRequest):
            assert type(wire.decode(kind, members)) is kind

    check()


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"type":"helo"}',
        '{"type":null}',
        '{"type":["hello"]}',
        '{"type":{"hello":1}}',
        '{"command":["cancel"]}',
        '{"type":"hello"}',
        '{"type":"ack","request_id":3}',
        '{"type":"welcome","epoch":"1"}',
        '{"command":"get_dataset_stream","request_id":"x"}',
    ],
)
def test_m1_a_message_of_no_known_form_is_a_bad_request(text: str) -> None:
    for decode in (decode_from_connector, decode_from_router):
        with pytest.raises(BadRequest):
            decode(text)


def test_the_tags_are_those_of_the_flow() -> None:
    message = GetDatasetAuto("r1", "folder/name", accept=("stream",))
    sent = orjson.loads(encode(message))
    assert sent["command"] == "get_dataset_auto"
    assert (sent["request_id"], sent["dataset_name"]) == ("r1", "folder/name")
    assert orjson.loads(encode(Hello("m", "1", "i")))["type"] == "hello"
    assert orjson.loads(encode(Welcome(1)))["type"] == "welcome"
    assert orjson.loads(encode(Cancel("r")))["command"] == "cancel"
    assert orjson.loads(encode(Fault("c", "m")))["type"] == "error"


@pytest.mark.parametrize("kind", [*FROM_CONNECTOR, *FROM_ROUTER, *OVER_HTTP])
def test_messages_are_frozen(kind: type[Any]) -> None:
    assert kind.__dataclass_params__.frozen


@pytest.mark.parametrize(
    "name", ["a", "a/b/c.csv", " a ", "ä/☃", "a\nb", "...", "a..b", ".hidden", "a%2Fb", "x" * 4096]
)
def test_n3_what_can_be_a_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a/.", "a\0b", "x" * 4097, "\udcff"],
)
def test_n1_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(BadName):
        check_name(name)


@given(st.text(st.characters()))
def test_n1_any_text_is_a_name_or_a_bad_name(text: str) -> None:
    try:
        name = check_name(text)
    except BadName as exc:
        assert exc.message.isprintable()
        return
    assert name == text
    assert not {"", ".", ".."} & set(name.split("/"))


@given(st.text(st.characters()))
def test_n3_a_name_for_people_is_printable(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "\u202etxt.exe", "\0"])
def test_n3_what_moves_a_cursor_is_escaped(name: str) -> None:
    assert printable(name).isprintable()
    assert name not in printable(name)


@pytest.mark.parametrize(
    "members",
    [
        {"coding": "gzip"},
        {"offset": -1},
        {"length": -1},
        {"segments_from": -1},
        {"offset": "0"},
        {"accept": "stream"},
        {"mac": None},
    ],
)
def test_a_request_of_the_wrong_form_is_a_bad_request(members: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        wire.decode(DatasetRequest, {"mac": "m", "dataset": "d", **members})


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_an_error_answer_tells_of_its_error(code: str) -> None:
    sent = BY_CODE[code]("what happened")
    answer = wire.loads(wire.dumps(error_answer(sent)))
    assert answer["status"] == "error"
    got = problem_in(answer)
    assert type(got) is BY_CODE[code]
    assert got.to_wire() == sent.to_wire()
    assert Problem.of(sent).error().to_wire() == sent.to_wire()


def test_a_success_holds_no_problem() -> None:
    assert problem_in({"status": "success"}) is None


def test_a2_the_same_complete_is_equal_and_a_different_one_is_not() -> None:
    once = Complete("r", root="blake3-4m:00", count=1)
    assert once == Complete("r", root="blake3-4m:00", count=1)
    assert once != Complete("r", error=Problem.of(Conflict("no")))


@given(json_values)
def test_m2_whatever_stands_for_an_error_becomes_one(value: Any) -> None:
    problem = problem_in({"error": value})
    assert problem is None if value is None else isinstance(problem, TunnelSyncError)
