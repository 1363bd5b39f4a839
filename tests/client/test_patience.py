"""Which errors are tried again, how long, and that a block that comes renews it all."""

from dataclasses import dataclass

import pytest

from tunnelsync.client.patience import Patience
from tunnelsync.errors import (
    BY_CODE,
    BrokenOff,
    ConnectorUnknown,
    DatasetChanged,
    RouterBusy,
    RouterUnreachable,
    TunnelSyncError,
)

HEALS = {
    "broken_off",
    "connector_busy",
    "connector_offline",
    "connector_replaced",
    "draining",
    "queue_timed_out",
    "router_busy",
    "router_unreachable",
    "stalled",
    "store_unavailable",
    "timed_out",
    "unavailable",
    "verification_failed",
}


@dataclass(frozen=True)
class Limits:
    retry_for_seconds: float = 60.0
    backoff_first_seconds: float = 1.0
    backoff_cap_seconds: float = 10.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_only_what_can_heal_is_tried_again(clock: Clock, code: str) -> None:
    pause = Patience(Limits(), clock).pause(BY_CODE[code]("it happened"))
    assert (pause is not None) == (code in HEALS)


def test_each_pause_has_a_bound_that_doubles_up_to_the_cap(clock: Clock) -> None:
    seen: list[list[float]] = [[] for _ in range(8)]
    for _ in range(300):
        patience = Patience(Limits(retry_for_seconds=1e9), clock)
        for tries in range(8):
            pause = patience.pause(BrokenOff("it broke"))
            assert pause is not None
            seen[tries].append(pause)
    for tries, bound in enumerate([1, 2, 4, 8, 10, 10, 10, 10]):
        assert 0 <= min(seen[tries]) < bound / 4
        assert bound * 3 / 4 < max(seen[tries]) <= bound


def test_it_ends_so_long_after_the_first_error(clock: Clock) -> None:
    patience = Patience(Limits(), clock)
    clock.now += 500  # all went well so long
    assert patience.pause(BrokenOff("it broke")) is not None
    clock.now += 59.9
    last = patience.pause(BrokenOff("it broke"))
    assert last is not None
    assert last <= 0.1 + 1e-6
    clock.now += 0.1 + 1e-6
    assert patience.pause(BrokenOff("it broke")) is None


def test_a_block_renews_it(clock: Clock) -> None:
    patience = Patience(Limits(), clock)
    for _ in range(100):
        assert patience.pause(BrokenOff("it broke")) is not None
        clock.now += 59
        patience.renew()


def test_a_block_makes_the_pauses_short_again(clock: Clock) -> None:
    patience = Patience(Limits(), clock)
    for _ in range(50):
        pause = patience.pause(BrokenOff("it broke"))
        assert pause is not None
        assert pause <= 1
        patience.renew()


def test_no_time_means_no_second_try(clock: Clock) -> None:
    patience = Patience(Limits(retry_for_seconds=0), clock)
    assert patience.pause(BrokenOff("it broke")) is None


def test_what_cannot_heal_starts_no_clock(clock: Clock) -> None:
    patience = Patience(Limits(), clock)
    assert patience.pause(DatasetChanged("it changed")) is None
    clock.now += 61
    assert patience.pause(BrokenOff("it broke")) is not None


def test_a_pause_that_is_told_is_kept_but_not_beyond_the_end(clock: Clock) -> None:
    patience = Patience(Limits(), clock)
    for left in (60, 30, 7):
        clock.now = 1060.0 - left
        error = RouterBusy("full")
        error.retry_after_seconds = 20
        pause = patience.pause(error)
        assert pause is not None
        assert min(left, 20) <= pause <= min(left, 30)


def test_a_connector_that_nobody_knows_is_not_waited_for(clock: Clock) -> None:
    assert Patience(Limits(), clock).pause(ConnectorUnknown("no such connector")) is None


@pytest.mark.parametrize("first", [RouterUnreachable("it is away"), None])
def test_one_that_a_restarted_router_does_not_know_yet_is(
    clock: Clock, first: TunnelSyncError | None
) -> None:
    patience = Patience(Limits(), clock)
    if first is None:
        patience.renew()  # a block has come from it
    else:
        patience.pause(first)
    assert patience.pause(ConnectorUnknown("no such connector")) is not None
    clock.now += 60.1
    assert patience.pause(ConnectorUnknown("no such connector")) is None
