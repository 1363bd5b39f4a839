"""One clock for all: everybody is asked once in a turn, and never all at one moment."""

from contextlib import ExitStack

from tunnelsync.router.heartbeat import Heartbeat


class Told:
    """A peer that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def ping(self) -> None:
        self.said.append("ping")

    def check(self) -> None:
        self.said.append("check")


def test_each_is_pinged_once_in_a_turn_and_checked_half_a_turn_later() -> None:
    heartbeat = Heartbeat(1)
    peer = Told()
    with heartbeat.watching(peer):
        when = []
        for number in range(20):
            before = len(peer.said)
            heartbeat.tick(number)
            when += [(number, word) for word in peer.said[before:]]
    pings = [number for number, word in when if word == "ping"]
    checks = [number for number, word in when if word == "check"]
    assert pings == [0, 10]
    assert checks == [5, 15]


def test_those_who_come_at_one_moment_are_pinged_one_tick_after_the_other() -> None:
    heartbeat = Heartbeat(25)
    peers = [Told() for _ in range(1000)]
    with ExitStack() as stack:
        for peer in peers:
            stack.enter_context(heartbeat.watching(peer))
        pings: list[int] = []
        for number in range(250):
            heartbeat.tick(number)
            pings.append(sum(peer.said.count("ping") for peer in peers) - sum(pings))
    assert set(pings) == {4}


def test_who_left_is_asked_no_more() -> None:
    heartbeat = Heartbeat(1)
    peer = Told()
    with heartbeat.watching(peer):
        heartbeat.tick(0)
    for number in range(1, 20):
        heartbeat.tick(number)
    assert peer.said == ["ping"]


def test_a_peer_that_leaves_while_it_is_asked_disturbs_nobody() -> None:
    heartbeat = Heartbeat(0.2)

    class Leaving(Told):
        def ping(self) -> None:
            super().ping()
            watch.__exit__(None, None, None)

    leaving, staying = Leaving(), Told()
    watch = heartbeat.watching(leaving)
    watch.__enter__()
    with heartbeat.watching(Told()), heartbeat.watching(staying):
        for number in range(4):
            heartbeat.tick(number)
    assert leaving.said == ["ping"]
    assert staying.said.count("ping") == 2
