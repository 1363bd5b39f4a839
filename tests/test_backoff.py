"""How long to wait: never at one moment, never for ever, and after a restart as the router asks."""

import random
from dataclasses import dataclass

import pytest

from tunnelsync.backoff import jittered, restarting, returning

TIMES = 2000


@dataclass(frozen=True)
class Settings:
    backoff_first_seconds: float = 0.5
    backoff_cap_seconds: float = 20.0


SETTINGS = Settings()


@pytest.fixture(autouse=True)
def same_chance() -> None:
    random.seed(1)


def test_pauses_double_up_to_the_cap() -> None:
    longest = [max(jittered(tries, SETTINGS) for _ in range(TIMES)) for tries in range(9)]
    for tries, bound in enumerate([0.5, 1, 2, 4, 8, 16, 20, 20, 20]):
        assert 0.9 * bound < longest[tries] <= bound


def test_whoever_tries_for_weeks_goes_on_trying() -> None:
    assert 0 <= jittered(1_000_000, SETTINGS) <= 20


def test_a_crowd_is_spread_evenly_over_what_the_router_asks_for() -> None:
    good_bye = restarting(5000, 500)
    pauses = [returning(0, good_bye, SETTINGS) for _ in range(TIMES)]
    in_a_second = [sum(second <= one < second + 1 for one in pauses) for second in range(10)]
    assert sum(in_a_second) == TIMES
    assert max(in_a_second) < 1.3 * TIMES / 10


@pytest.mark.parametrize(
    ("connectors", "per_second", "bound"),
    [(3, 500, 1.0), (0, 500, 0.5), (10_000, 0, 0.5), (10**6, 500, 20.0)],
)
def test_a_few_come_as_after_any_loss_and_nobody_waits_longer_than_the_cap(
    connectors: int, per_second: float, bound: float
) -> None:
    good_bye = restarting(connectors, per_second)
    longest = max(returning(0, good_bye, SETTINGS) for _ in range(TIMES))
    assert 0.9 * bound < longest <= bound


@pytest.mark.parametrize("said", ["", "the router is restarting", "; come back within soon s"])
def test_another_good_bye_asks_for_nothing(said: str) -> None:
    assert max(returning(0, said, SETTINGS) for _ in range(TIMES)) <= 0.5


def test_only_the_first_try_is_spread() -> None:
    good_bye = restarting(10_000, 500)
    assert max(returning(1, good_bye, SETTINGS) for _ in range(TIMES)) <= 1
