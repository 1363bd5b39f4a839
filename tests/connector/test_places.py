"""Places shared fairly: who gets the next one, and that none is lost, whoever leaves and when."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync.connector.places import Places
from tunnelsync.errors import ConnectorBusy


def places(count: int, *, most_waiting: int = 1000) -> Places:
    return Places(count, most_waiting=most_waiting)


def filled(count: int, client: str = "a") -> Places:
    """Places that one client holds all of: jobs a1, a2 and so on."""
    made = places(count)
    assert all(made.enter(f"{client}{n}", client) for n in range(1, count + 1))
    return made


def test_one_client_alone_may_hold_every_place() -> None:
    assert not filled(4).enter("a5", "a")


def test_l7_of_one_client_the_next_is_the_first_in_line() -> None:
    line = filled(2)
    for job in ("a3", "a4", "a5"):
        assert not line.enter(job, "a")
    assert line.leave("a1") == "a3"
    assert line.leave("a2") == "a4"
    assert line.leave("a3") == "a5"
    assert line.leave("a4") is None
    assert line.enter("a6", "a")


def test_what_falls_free_goes_to_others_until_the_first_holds_half() -> None:
    line = filled(4)
    for job, client in (("a5", "a"), ("a6", "a"), ("b1", "b"), ("b2", "b"), ("b3", "b")):
        assert not line.enter(job, client)
    assert line.leave("a1") == "b1"
    assert line.leave("a2") == "b2"
    # Each has its half; both would have more. So it is the first that came.
    assert line.leave("a3") == "a5"
    assert line.leave("b1") == "b3"
    assert line.leave("b2") == "a6"


@pytest.mark.parametrize(("count", "half"), [(2, 1), (3, 1), (4, 2), (5, 2), (50, 25)])
def test_half_is_never_exceeded_while_another_waits_also_of_an_odd_number(
    count: int, half: int
) -> None:
    line = filled(count)
    for n in range(count):
        assert not line.enter(f"more{n}", "a")
    for n in range(count):
        assert not line.enter(f"b{n}", "b")
    followed = [line.leave(f"a{n}") for n in range(1, count + 1)]
    assert followed[: count - half] == [f"b{n}" for n in range(half)] + [
        "more0" for _ in range(count - 2 * half)
    ]


def test_of_one_place_the_order_is_that_of_arrival() -> None:
    line = filled(1)
    for job, client in (("a2", "a"), ("b1", "b"), ("a3", "a")):
        line.enter(job, client)
    assert [line.leave("a1"), line.leave("a2"), line.leave("b1")] == ["a2", "b1", "a3"]


def test_a_cancelled_one_leaves_the_line_and_takes_no_turn() -> None:
    line = filled(1)
    for job in ("a2", "a3"):
        line.enter(job, "a")
    assert (line.position("a2"), line.position("a3"), line.position("a1")) == (1, 2, 0)
    assert line.leave("a2") is None
    assert line.position("a3") == 1
    assert line.leave("a1") == "a3"


def test_one_that_was_just_given_a_place_leaves_it_to_the_next() -> None:
    """Whoever is cancelled at that moment does not know yet that it has one."""
    line = filled(1)
    for job in ("a2", "a3"):
        line.enter(job, "a")
    assert line.leave("a1") == "a2"
    assert line.leave("a2") == "a3"
    assert line.leave("a3") is None
    assert line.enter("a4", "a")


def test_leaving_twice_or_unknown_frees_nothing() -> None:
    line = filled(1)
    line.enter("a2", "a")
    assert line.leave("nobody") is None
    assert line.leave("a1") == "a2"
    assert line.leave("a1") is None
    assert not line.enter("a3", "a")


def test_the_line_is_bounded() -> None:
    line = places(1, most_waiting=1)
    assert line.enter("a1", "a")
    assert not line.enter("a2", "a")
    with pytest.raises(ConnectorBusy, match="1 commands wait"):
        line.enter("b1", "b")
    line.leave("a2")
    assert not line.enter("b1", "b")


COMES = st.tuples(st.just("comes"), st.sampled_from("abc"))
GOES = st.tuples(st.just("goes"), st.integers(0, 100))


@given(count=st.integers(1, 7), moves=st.lists(COMES | GOES, max_size=60))
def test_whoever_comes_and_goes_the_rules_hold(
    count: int, moves: list[tuple[str, str | int]]
) -> None:
    """Against a plain model: sets of who holds and a list of who waits, in order."""
    line = places(count)
    holding: dict[str, str] = {}
    waiting: list[tuple[str, str]] = []
    for number, (_, what) in enumerate(moves):
        if isinstance(what, str):
            job = f"job {number}"
            assert line.enter(job, what) == (len(holding) < count)
            if len(holding) < count:
                holding[job] = what
            else:
                waiting.append((job, what))
        elif there := [*holding, *(job for job, _ in waiting)]:
            job = there[what % len(there)]
            was_holding = holding.pop(job, None) is not None
            waiting = [one for one in waiting if one[0] != job]
            followed = line.leave(job)
            assert (followed is not None) == (was_holding and bool(waiting))
            if followed is not None:
                client = next(client for job, client in waiting if job == followed)
                at = waiting.index((followed, client))
                held = Counter(holding.values())
                fair = [(held[one] + 1) * 2 <= count for _, one in waiting]
                # The first that may; and nobody has more than half while one with less waits.
                assert at == (fair.index(True) if any(fair) else 0)
                waiting.pop(at)
                holding[followed] = client
        assert len(holding) <= count
        assert not waiting or len(holding) == count, "a place is free while somebody waits"
        assert [line.position(job) for job, _ in waiting] == [*range(1, len(waiting) + 1)]
    for job in [*holding, *(job for job, _ in waiting)]:
        line.leave(job)
    assert all(line.enter(f"after {n}", "a") for n in range(count)), "a place was lost"
    assert not line.enter("one more", "a")
