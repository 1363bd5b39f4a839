"""The table of a transfer's states: from any sequence of events."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync.errors import Conflict
from tunnelsync.transfer import MOVES, Event, State, move


def walk(events: list[Event]) -> list[tuple[State, Event, State]]:
    """The moves that a sequence of events makes; what is out of order changes nothing."""
    state, made = State.SENT, []
    for event in events:
        try:
            after = move(state, event)
        except Conflict:
            continue
        made.append((state, event, after))
        state = after
    return made


events = st.lists(st.sampled_from(Event), max_size=30)


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(MOVES) == set(State)


@given(events)
def test_ended_is_final(happened: list[Event]) -> None:
    for before, _, after in walk(happened):
        assert before is not State.ENDED or after is State.ENDED


@given(events)
def test_an_end_before_its_time_is_said_as_such(happened: list[Event]) -> None:
    """A transfer ends by the event END, or after its last byte: never in silence."""
    made = walk(happened)
    for index, (before, event, after) in enumerate(made):
        if after is State.ENDED and before is not State.ENDED and event is not Event.END:
            so_far = [one for _, one, _ in made[: index + 1]]
            assert Event.LAST_BYTE in so_far
            assert event is (Event.COMPLETE if Event.INIT in so_far else Event.LAST_BYTE)


@given(events)
def test_bytes_flow_only_after_init(happened: list[Event]) -> None:
    made = walk(happened)
    for index, (_, event, _) in enumerate(made):
        if event in (Event.CHUNK, Event.COMPLETE):
            assert Event.INIT in [one for _, one, _ in made[:index]]


@given(events)
def test_a_transfer_is_answered_once(happened: list[Event]) -> None:
    answers = [event for _, event, _ in walk(happened) if event in (Event.INIT, Event.RESULT)]
    assert len(answers) <= 1


@given(events)
def test_the_moves_join(happened: list[Event]) -> None:
    for (_, _, after), (before, _, _) in pairwise(walk(happened)):
        assert after is before


@pytest.mark.parametrize("state", State)
def test_from_every_state_there_is_an_end(state: State) -> None:
    assert move(state, Event.END) is State.ENDED


@pytest.mark.parametrize("state", State)
def test_an_acknowledgement_sent_again_is_no_step_back(state: State) -> None:
    after = move(state, Event.ACK)
    assert after is (State.ACCEPTED if state is State.SENT else state)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_what_is_not_in_the_table_is_a_conflict(state: State, event: Event) -> None:
    if event in MOVES[state]:
        assert move(state, event) is MOVES[state][event]
    else:
        with pytest.raises(Conflict, match="out of order"):
            move(state, event)
