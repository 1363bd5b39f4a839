"""What is known of a proxy: found once, told once, and forgotten after its time."""

import pytest

from tunnelsync.connector.proxies import FASTER, Proxies
from tunnelsync.settings import GIB, MIB


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def proxies(clock: Clock) -> Proxies:
    return Proxies(clock, memory_seconds=100, held_chunk_bytes=4 * MIB)


def test_without_a_proxy_a_body_goes_in_one(proxies: Proxies) -> None:
    assert (proxies.body_bytes, proxies.holds, proxies.chunk_bytes) == (None, None, None)
    proxies.seen(holds=False)
    assert (proxies.holds, proxies.chunk_bytes) == (False, None)


def test_a_refused_body_is_made_smaller_until_there_is_none(proxies: Proxies) -> None:
    for size, then in ((GIB, 64 * MIB), (64 * MIB, 8 * MIB), (8 * MIB, MIB)):
        assert proxies.refused(size)
        assert proxies.chunk_bytes == then
    assert not proxies.refused(MIB)
    assert not proxies.refused(1000)
    assert proxies.chunk_bytes == MIB


def test_a_refusal_that_comes_late_does_not_raise_the_limit(proxies: Proxies) -> None:
    assert proxies.refused(3 * MIB)
    assert proxies.refused(GIB)
    assert proxies.body_bytes == MIB


def test_the_smaller_of_two_limits_holds(proxies: Proxies) -> None:
    proxies.seen(holds=True)
    assert proxies.chunk_bytes == 4 * MIB
    assert proxies.body_bytes is None
    proxies.refused(GIB)
    assert proxies.chunk_bytes == 4 * MIB
    proxies.refused(4 * MIB)
    assert proxies.chunk_bytes == MIB


def test_it_is_forgotten_after_its_time(proxies: Proxies, clock: Clock) -> None:
    proxies.refused(2 * MIB)
    clock.now += 60
    proxies.seen(holds=True)
    clock.now += 60
    assert (proxies.body_bytes, proxies.holds) == (None, True)
    clock.now += 60
    assert (proxies.holds, proxies.chunk_bytes) == (None, None)


def test_it_is_told_once(proxies: Proxies, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    proxies.refused(GIB)
    proxies.refused(64 * MIB)
    proxies.seen(holds=True)
    clock.now += 1000
    proxies.refused(GIB)
    assert caplog.text.count(FASTER) == 1
