"""The plan of blocks: no block is brought by two, none is lost, and all are taken."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from tunnelsync import frames
from tunnelsync.client.plan import Plan, Span
from tunnelsync.frames import digest


def one(index: int) -> bytes:
    """Return a digest that no other block has."""
    return digest(index.to_bytes(8, "big"))


def plan_of(count: int, held: str = "", least: int = 2) -> Plan:
    """Return a plan; ``held`` has an ``x`` for each block that is held."""
    plan = Plan(least)
    plan.of(count)
    for index, there in enumerate(held):
        if there == "x":
            plan.hold(index, one(index))
    return plan


def ends(span: Span | None) -> tuple[int, int | None] | None:
    if span is None:
        return None
    assert span.next == span.start
    return span.start, span.end


def test_before_the_size_is_known_one_span_is_all_of_it() -> None:
    plan = Plan(2)
    first = plan.take()
    assert ends(first) == (0, None)
    assert plan.take() is None
    plan.of(9)
    assert first is not None
    assert first.end == 9


def test_given_back_before_the_size_is_known_it_can_be_taken_again() -> None:
    plan = Plan(2)
    first = plan.take()
    assert first is not None
    plan.release(first)
    assert ends(plan.take()) == (0, None)


@pytest.mark.parametrize(
    ("held", "runs"),
    [
        ("......", [(0, 6)]),
        ("xx....", [(2, 6)]),
        ("....xx", [(0, 4)]),
        (".xx.x.", [(0, 1), (3, 4), (5, 6)]),
        ("xxxxxx", []),
    ],
)
def test_runs_of_missing_blocks_are_taken_in_order(held: str, runs: list[tuple[int, int]]) -> None:
    plan = plan_of(6, held, least=100)
    assert [ends(plan.take()) for _ in range(len(runs) + 1)] == [*runs, None]


def test_when_all_is_taken_the_longest_is_halved_from_where_it_stands() -> None:
    plan = plan_of(20, ".........x..........", least=2)
    small, large = plan.take(), plan.take()
    assert small is not None
    assert large is not None
    large.next = 14
    assert ends(plan.take()) == (5, 9)
    assert small.end == 5
    assert ends(plan.take()) == (17, 20)
    assert large.end == 17


def test_what_is_too_short_for_two_is_not_halved() -> None:
    plan = plan_of(7, least=4)
    assert ends(plan.take()) == (0, 7)
    assert plan.take() is None


def test_a_block_that_came_wrong_is_free_at_once_though_its_stream_goes_on() -> None:
    plan = plan_of(9, least=100)
    first = plan.take()
    assert first is not None
    first.start, first.next = 4, 6
    for index in (0, 1, 2):
        plan.hold(index, one(index))
    assert ends(plan.take()) == (3, 4)
    assert plan.take() is None


def test_a_span_given_back_leaves_what_it_did_not_bring() -> None:
    plan = plan_of(6)
    first = plan.take()
    assert first is not None
    plan.hold(0, one(0))
    plan.hold(2, one(2))
    plan.release(first)
    assert ends(plan.take()) == (1, 2)
    assert ends(plan.take()) == (3, 6)


def test_an_empty_dataset_is_missing_its_end() -> None:
    plan = plan_of(0)
    first = plan.take()
    assert ends(first) == (0, 0)
    assert plan.take() is None
    assert first is not None
    plan.release(first)
    again = plan.take()
    assert ends(again) == (0, 0)
    plan.end()
    assert again is not None
    plan.release(again)
    assert plan.take() is None
    assert plan.root() == frames.root([])


def test_an_end_changes_nothing_where_blocks_are_missing() -> None:
    plan = plan_of(3, "x..")
    plan.end()
    assert ends(plan.take()) == (1, 3)


@pytest.mark.parametrize("index", [-1, 3, 99])
def test_what_is_no_block_is_not_held_and_cannot_be_dropped(index: int) -> None:
    plan = plan_of(3, "xxx")
    plan.drop(index)
    assert plan.missing == 0
    assert not plan.holds(index)
    assert [at for at, _ in plan.held()] == [0, 1, 2]


def test_a_block_is_repaired_once_it_is_held() -> None:
    plan = plan_of(3)
    assert [plan.flaw(1), plan.flaw(2), plan.flaw(1)] == [1, 1, 2]
    assert plan.repaired == 0
    plan.hold(1, one(1))
    assert plan.repaired == 1


def test_a_plan_forgotten_is_a_new_one() -> None:
    plan = plan_of(3, "xxx")
    plan.take()
    plan.flaw(1)
    plan.end()
    plan.forget()
    assert (plan.count, plan.missing, list(plan.held()), plan.repaired) == (None, 0, [], 0)
    assert plan.flaw(1) == 1
    assert ends(plan.take()) == (0, None)


@given(st.permutations(range(12)))
def test_the_root_is_that_of_the_blocks_in_order(order: list[int]) -> None:
    plan = plan_of(12)
    for index in order:
        plan.hold(index, digest(b"wrong at first"))
        plan.hold(index, one(index))
    assert plan.missing == 0
    assert plan.root() == frames.root(one(index) for index in range(12))
    assert list(plan.held()) == [(index, one(index)) for index in range(12)]


def test_the_blocks_of_a_long_dataset_are_listed_in_a_moment() -> None:
    """A copy of all that follows for each block would take minutes for these 2 TiB."""
    count = 2**19
    plan = Plan(2)
    plan.of(count)
    began = time.monotonic()
    for index in range(count):
        plan.hold(index, index.to_bytes(32, "big"))
    assert all(index == int.from_bytes(value, "big") for index, value in plan.held())
    assert time.monotonic() - began < 60


class Workers(RuleBasedStateMachine):
    """Any number of workers, in any order: each rule is what one of them can do next."""

    spans = Bundle("spans")

    def __init__(self) -> None:
        super().__init__()
        self.plan = Plan(2)
        self.held: set[int] = set()
        self.taken: list[Span] = []
        self.count: int | None = None

    @rule(count=st.integers(0, 30), before=st.sets(st.integers(0, 29)))
    def the_size_is_known(self, count: int, before: set[int]) -> None:
        if self.count is not None:
            return
        self.count = count
        self.plan.of(count)
        if not self.taken:  # else it is no resume
            for index in before:
                if index < count:
                    self.plan.hold(index, one(index))
                    self.held.add(index)

    @rule(target=spans)
    def take(self) -> Any:
        span = self.plan.take()
        if span is None:
            return multiple()
        assert span.start == span.next
        assert span.end is None or span.start < span.end or self.count == 0
        self.taken.append(span)
        return span

    @rule(span=spans, right=st.booleans())
    def a_block_comes(self, span: Span, right: bool) -> None:
        if span.end is None or span.next >= span.end:
            return
        index, span.next = span.next, span.next + 1
        span.start = span.next
        if right:
            self.plan.hold(index, one(index))
            self.held.add(index)
        else:
            self.plan.flaw(index)

    @rule(span=spans)
    def a_block_is_under_way(self, span: Span) -> None:
        if span.end is not None:
            span.next = min(span.next + 1, span.end)

    @rule(span=consumes(spans))
    def give_back(self, span: Span) -> None:
        self.taken.remove(span)
        self.plan.release(span)

    @rule(index=st.integers(-1, 31))
    def drop(self, index: int) -> None:
        self.plan.drop(index)
        self.held.discard(index)

    @invariant()
    def what_is_missing_is_counted_right(self) -> None:
        assert {index for index, _ in self.plan.held()} == self.held
        assert self.plan.missing == (self.count or 0) - len(self.held)

    @invariant()
    def no_block_is_brought_by_two(self) -> None:
        if self.count is None:
            assert len(self.taken) <= 1
            return
        covered = [
            index for span in self.taken for index in range(span.start, span.end or self.count)
        ]
        assert len(covered) == len(set(covered))
        assert all(0 <= index < self.count for index in covered)

    def teardown(self) -> None:
        """One worker that goes on brings all that is left, whatever came before."""
        for span in self.taken:
            self.plan.release(span)
        if self.count is None:
            self.plan.of(7)
        while (left := self.plan.take()) is not None:
            assert left.end is not None
            for index in range(left.start, left.end):
                assert not self.plan.holds(index)
                self.plan.hold(index, one(index))
            self.plan.end()
            self.plan.release(left)
        assert self.plan.missing == 0
        assert self.plan.root() == frames.root(one(index) for index in range(self.plan.count or 0))


TestWorkers = Workers.TestCase
