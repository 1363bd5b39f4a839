"""Every error: unique on the wire, whole after it, and with something to do next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync import errors
from tunnelsync.errors import BrokenOff, ProtocolError, TunnelSyncError

EVERY = list(errors.BY_CODE.values())
EXIT_CODES = {2, 3, 4, 5, 6, 7, 130}
CATEGORIES = {kind for kind in EVERY if kind.__subclasses__()}


def classes() -> list[type[TunnelSyncError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, TunnelSyncError)
    ]


def by_name(kind: type[TunnelSyncError]) -> str:
    return kind.__name__


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in classes()}) == len(classes()) == len(EVERY)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    for kind in EVERY:
        assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize("kind", EVERY, ids=by_name)
def test_status_and_exit_code_are_of_those_that_are_promised(kind: type[TunnelSyncError]) -> None:
    assert 400 <= kind.status <= 599
    assert kind.exit_code in EXIT_CODES
    assert kind.code.isascii()
    assert kind.code == kind.code.lower()


@pytest.mark.parametrize("kind", EVERY, ids=by_name)
def test_a_kind_shares_the_exit_code_of_its_category(kind: type[TunnelSyncError]) -> None:
    parent = kind.__mro__[1]
    if issubclass(parent, TunnelSyncError) and parent is not TunnelSyncError:
        assert kind.exit_code == parent.exit_code


@pytest.mark.parametrize("kind", EVERY, ids=by_name)
def test_every_error_says_what_to_do_next(kind: type[TunnelSyncError]) -> None:
    """A category has no hint of its own where those below it have: it is raised with one."""
    if kind not in CATEGORIES:
        assert kind.next_step
    assert not kind.next_step or kind.next_step.endswith(".")


@pytest.mark.parametrize("kind", EVERY, ids=by_name)
def test_an_error_is_whole_after_the_wire(kind: type[TunnelSyncError]) -> None:
    sent = kind("what happened", hint="what to do")
    got = TunnelSyncError.from_wire(sent.to_wire())
    assert type(got) is kind
    assert (got.message, got.hint, str(got)) == ("what happened", "what to do", "what happened")


def test_the_hint_is_that_of_the_kind_unless_one_is_given() -> None:
    assert errors.BadMac("x").hint == errors.BadMac.next_step
    assert errors.BadMac("x", hint="").hint == ""


def test_an_unknown_code_is_kept_in_the_message() -> None:
    got = TunnelSyncError.from_wire({"code": "from_the_future", "message": "hm"})
    assert type(got) is BrokenOff
    assert "from_the_future" in got.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
codes = st.sampled_from(sorted(errors.BY_CODE))
members = st.sampled_from(["code", "message", "hint"])


@given(json_values | st.dictionaries(members, json_values | codes))
def test_m2_whatever_an_error_answer_holds_it_becomes_an_error(value: object) -> None:
    got = TunnelSyncError.from_wire(value)
    assert isinstance(got, TunnelSyncError)
    assert isinstance(got.message, str)
    assert isinstance(got.hint, str)


@pytest.mark.parametrize("value", [None, 3, "no", [], b"x"])
def test_m1_an_error_that_is_no_object_is_a_protocol_error(value: object) -> None:
    assert type(TunnelSyncError.from_wire(value)) is ProtocolError
