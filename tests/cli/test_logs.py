"""What a role writes to its log, and how much of it."""

import logging

import pytest

from tunnelsync.cli.logs import BURST_LINES, EVERY_SECONDS, MOST_KINDS, Readable
from tunnelsync.transfer import EACH


def record(
    msg: str, *args: object, at: float = 0.0, level: int = logging.WARNING
) -> logging.LogRecord:
    made = logging.LogRecord("tunnelsync.router", level, "", 0, msg, args, None)
    made.created = at
    return made


@pytest.fixture
def readable() -> Readable:
    """A filter that has let as many lines of one kind through as it does at once."""
    made = Readable()
    assert all(made.filter(record("refused %s", n)) for n in range(BURST_LINES))
    return made


def test_warnings_of_one_kind_are_left_out_and_counted(readable: Readable) -> None:
    assert not any(readable.filter(record("refused %s", n)) for n in range(1000))
    later = record("refused %s", "x", at=1.01 * EVERY_SECONDS)
    assert readable.filter(later)
    assert later.getMessage() == "refused x (1000 more of these were left out)"
    assert not readable.filter(record("refused %s", "y", at=1.01 * EVERY_SECONDS))


def test_what_is_of_another_kind_or_no_warning_is_written(readable: Readable) -> None:
    assert not readable.filter(record("refused %s", "x"))
    assert readable.filter(record("silent %s", "x"))
    assert all(readable.filter(record("refused %s", n, level=logging.INFO)) for n in range(1000))
    each = record("refused %s", "x")
    each.kind = EACH
    assert all(readable.filter(each) for _ in range(1000))


def test_a_long_silence_gives_no_more_than_one_burst(readable: Readable) -> None:
    later = [readable.filter(record("refused %s", n, at=1e6)) for n in range(1000)]
    assert sum(later) == BURST_LINES


def test_what_is_of_more_kinds_than_are_kept_is_of_one_kind(readable: Readable) -> None:
    def lines(first: int, at: float) -> int:
        texts = range(first, first + 10 * MOST_KINDS)
        return sum(readable.filter(record(f"a text of its own: {n}", at=at)) for n in texts)

    assert lines(0, 0) == MOST_KINDS - 1 + BURST_LINES
    assert len(readable._kinds) == MOST_KINDS + 1
    assert lines(10**6, 0) == 0
    later = 1.01 * BURST_LINES * EVERY_SECONDS
    assert lines(2 * 10**6, later) == MOST_KINDS + BURST_LINES
    assert len(readable._kinds) == MOST_KINDS + 1
