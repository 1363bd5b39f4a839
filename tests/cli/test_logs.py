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


def test_many_kinds_are_not_kept(readable: Readable) -> None:
    for n in range(10 * MOST_KINDS):
        assert readable.filter(record(f"a text of its own: {n}"))
    assert len(readable._kinds) <= MOST_KINDS
