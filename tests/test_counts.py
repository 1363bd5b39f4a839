"""The comparison of counts with their baselines, and how a log of strace is counted."""

from pathlib import Path

import pytest

import counting
import counts
import strace

HERE = "python 3.11, aiohttp 3.14"
CALLS, COPIED = "router, calls for each request", "router, bytes copied for each byte"


def baselines() -> counts.Baselines:
    return counts.Baselines(
        {
            "tolerances": {
                "calls for each request": {"share": 0.1, "least": 0},
                "bytes copied for each byte": {"share": 0.02, "least": 0.05},
            },
            "baselines": {HERE: {CALLS: 2000, COPIED: 0}, "another": {CALLS: 1}},
        }
    )


@pytest.mark.parametrize(
    ("name", "count", "grew", "shrank"),
    [
        (CALLS, 2000, False, False),
        (CALLS, 2199, False, False),
        (CALLS, 2201, True, False),
        (CALLS, 1801, False, False),
        (CALLS, 1799, False, True),
        (COPIED, 0.04, False, False),
        (COPIED, 2.0, True, False),  # as with zero_copy off
        (COPIED, -0.01, False, False),
    ],
)
def test_a_count_may_differ_by_its_tolerance(
    name: str, count: float, grew: bool, shrank: bool
) -> None:
    (one,) = baselines().compare(HERE, {name: count})
    assert (one.grew, one.shrank) == (grew, shrank)
    assert bool(counts.verdict([one])) == grew
    assert bool(counts.good_news([one])) == shrank


def test_what_grew_is_told_with_how_much_and_what_to_do() -> None:
    found = counts.verdict(baselines().compare(HERE, {CALLS: 2400, COPIED: 0}))
    assert "router, calls for each request: 2000 -> 2400 (+20%), tolerance 200" in found
    assert counts.RENEW in found
    assert "bytes" not in found


def test_a_role_has_its_own_tolerance_or_that_of_all() -> None:
    document = {
        "tolerances": {"calls": {"share": 0.1}, "router, calls": {"share": 0.5}},
        "baselines": {},
    }
    found = counts.Baselines(document)
    assert found.tolerance("router, calls").share == 0.5
    assert found.tolerance("client, calls").share == 0.1


def test_versions_without_baselines_are_told_apart() -> None:
    assert baselines().knows(HERE)
    assert baselines().knows(HERE, {CALLS: 5})
    assert not baselines().knows("another", {CALLS: 5, COPIED: 0})
    assert not baselines().knows("python 3.99, aiohttp 3.14")


def test_a_renewal_keeps_what_was_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    baselines().renew(HERE, {CALLS: 1234.567}, path)
    again = counts.Baselines.read(path)
    (calls, copied) = again.compare(HERE, {CALLS: 1235, COPIED: 0})
    assert (calls.baseline, copied.baseline) == (1235, 0)
    assert again.tolerance(CALLS) == counts.Tolerance(0.1, 0)
    assert again.knows("another")


def test_every_baseline_has_a_tolerance() -> None:
    found = counts.Baselines.read()
    for versions, names in found.all().items():
        for name in names:
            assert found.tolerance(name).share > 0, (versions, name)


def test_start_up_cancels_out() -> None:
    few, many = {"calls": {"router": 5100.0}}, {"calls": {"router": 105100.0}}
    assert counting.for_each(few, many, 100, "request") == {CALLS: 1000.0}


def test_a_log_of_strace_is_counted() -> None:
    log = """\
11 epoll_wait(4, [{events=EPOLLIN, data={u32=9}}], 3, 1000) = 1
11 recvfrom(9, ""..., 262144, 0, NULL, NULL) = 1000
12 futex(0x7f, FUTEX_WAIT_BITSET_PRIVATE, 0, NULL, FUTEX_BITSET_MATCH_ANY <unfinished ...>
11 recvfrom(9, 0x5581, 262144, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)
11 sendto(9, ""..., 300, 0, NULL, 0 <unfinished ...>
12 <... futex resumed>)            = 0
11 <... sendto resumed>)           = 300
11 splice(9, NULL, 7, NULL, 1048576, SPLICE_F_MOVE|SPLICE_F_NONBLOCK) = 65536
11 pread64(8, ""..., 50, 0) = 50
11 --- SIGUSR1 {si_signo=SIGUSR1, si_code=SI_USER} ---
11 epoll_wait(4,  <detached ...>
"""
    assert strace.counted(log.splitlines()) == strace.SystemCalls(7, 1350)
