"""The table of a transfer against a model of facts; framed bodies under every kind of damage."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from test_frames import body_of, cut
from tunnelsync import frames
from tunnelsync.errors import (
    BrokenOff,
    Conflict,
    DatasetChanged,
    ProtocolError,
    TunnelSyncError,
    VerificationFailed,
)
from tunnelsync.frames import Claimed, Decoder, End
from tunnelsync.transfer import Event, State, move


class Table(RuleBasedStateMachine):
    """Any events in any order. The model knows no states: only what has been accepted so far."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.SENT
        self.been: set[Event] = set()

    def legal(self, event: Event) -> bool:
        """Tell by the facts whether an event may happen now."""
        answered = bool(self.been & {Event.INIT, Event.RESULT})
        over = Event.END in self.been or Event.COMPLETE in self.been
        over |= self.been >= {Event.RESULT, Event.LAST_BYTE}
        match event:
            case Event.ACK | Event.END:
                return True
            case Event.INIT | Event.RESULT:
                return not answered and not over
            case Event.CHUNK:
                return Event.INIT in self.been and Event.LAST_BYTE not in self.been and not over
            case Event.LAST_BYTE:
                return answered and Event.LAST_BYTE not in self.been and not over
            case Event.COMPLETE:
                return self.been >= {Event.INIT, Event.LAST_BYTE} and not over

    def expected(self) -> State:
        """Return the state that the facts mean."""
        if Event.END in self.been or Event.COMPLETE in self.been:
            return State.ENDED
        if Event.RESULT in self.been:
            return State.ENDED if Event.LAST_BYTE in self.been else State.ANSWERED
        if Event.INIT in self.been:
            return State.RELAYED if Event.LAST_BYTE in self.been else State.FLOWING
        return State.ACCEPTED if Event.ACK in self.been else State.SENT

    @rule(event=st.sampled_from(Event))
    def happens(self, event: Event) -> None:
        try:
            after = move(self.state, event)
        except Conflict:
            assert not self.legal(event), (self.state, event)
        else:
            assert self.legal(event), (self.state, event)
            assert self.state is not State.ENDED or after is State.ENDED
            self.state = after
            self.been.add(event)

    @invariant()
    def the_state_is_what_the_facts_mean(self) -> None:
        assert self.state is self.expected()


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=200, stateful_step_count=20)

# --- frames -------------------------------------------------------------------------------------

Damage = Callable[[bytes], bytes]


def _cut_off(at: int) -> Damage:
    return lambda body: body[: at % (len(body) + 1)]


def _flipped(at: int) -> Damage:
    def damage(body: bytes) -> bytes:
        changed = bytearray(body)
        if changed:
            at_bit = at % (len(body) * 8)
            changed[at_bit // 8] ^= 1 << at_bit % 8
        return bytes(changed)

    return damage


def _doubled(start: int, end: int) -> Damage:
    def damage(body: bytes) -> bytes:
        first, last = sorted((start % (len(body) + 1), end % (len(body) + 1)))
        return body[:last] + body[first:]

    return damage


def _left_out(start: int, end: int) -> Damage:
    def damage(body: bytes) -> bytes:
        first, last = sorted((start % (len(body) + 1), end % (len(body) + 1)))
        return body[:first] + body[last:]

    return damage


def _swapped(one: int, two: int, three: int) -> Damage:
    def damage(body: bytes) -> bytes:
        a, b, c = sorted(at % (len(body) + 1) for at in (one, two, three))
        return body[:a] + body[b:c] + body[a:b] + body[c:]

    return damage


at = st.integers(0, 2**16)
damages = st.lists(
    st.one_of(
        st.builds(_cut_off, at),
        st.builds(_flipped, at),
        st.builds(_doubled, at, at),
        st.builds(_left_out, at, at),
        st.builds(_swapped, at, at, at),
    ),
    min_size=1,
    max_size=3,
)
blocks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def outcome(pieces: list[bytes]) -> tuple[list[bytes], End | TunnelSyncError]:
    """Return the blocks that verify, and the end or the error that came in its place."""
    decoder, proven = Decoder(), []
    end: End | None = None
    try:
        for piece in pieces:
            for event in decoder.feed(piece):
                if isinstance(event, Claimed):
                    proven.append(b"".join(event.verified()))
                else:
                    end = event
        decoder.finish()
    except TunnelSyncError as error:
        return proven, error
    assert end is not None
    return proven, end


@settings(max_examples=400)
@given(blocks, damages, st.lists(at, max_size=8))
def test_b6_a_damaged_body_is_right_or_an_error(
    sent: list[bytes], done: list[Damage], cuts: list[int]
) -> None:
    """Cut, flipped, doubled, left out or moved, up to three times, anywhere, in any pieces."""
    whole = body_of(sent)
    body = whole
    for damage in done:
        body = damage(body)
    proven, end = outcome(cut(body, cuts))
    assert set(proven) <= set(sent)  # every block that verifies is one that was sent
    if isinstance(end, End):
        assert proven == sent
        assert end == End(len(sent), frames.root(map(frames.digest, sent)))
        assert body == whole
    else:
        assert isinstance(end, BrokenOff | ProtocolError | VerificationFailed), end


frame_orders = st.lists(st.integers(0, 7), max_size=9)


@settings(max_examples=200)
@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=6), frame_orders)
def test_b6_whole_frames_in_another_order_are_never_a_clean_end(
    sent: list[bytes], order: list[int]
) -> None:
    """Each frame is right by itself: left out, twice, or elsewhere, it is found at the end."""
    pieces = [body_of([block])[: -frames.END.size] for block in sent]
    pieces.append(body_of(sent)[-frames.END.size :])
    pieces.append(frames.encode_failure(DatasetChanged("it changed")))
    picked = [pieces[number % len(pieces)] for number in order]
    proven, end = outcome(picked)
    assert set(proven) <= set(sent)
    if isinstance(end, End):
        assert proven == sent
    else:
        expected = BrokenOff | ProtocolError | VerificationFailed | DatasetChanged
        assert isinstance(end, expected), end
