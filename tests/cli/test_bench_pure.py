"""The pure part of ``tunnelsync bench``: what is chosen, concluded and drawn."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelsync.cli.bench_figures import (
    Figures,
    Latency,
    Runs,
    advice,
    duration,
    members,
    percentile,
    size,
)
from tunnelsync.cli.bench_plan import (
    SIZES,
    STREAMS,
    Dataset,
    Piece,
    nearest,
    parse_bytes,
    pieces,
    side_by_side,
)
from tunnelsync.cli.bench_report import bar, lines
from tunnelsync.cli.output import rate
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode
from tunnelsync.settings import GIB, MIB

sizes = st.lists(st.integers(0, 2**45), max_size=30)
seconds = st.floats(1e-5, 500)


def named(*each: int) -> list[Dataset]:
    return [Dataset(f"d{number}", one) for number, one in enumerate(each)]


def runs(mode: Mode, size_bytes: int, took: float, streams: int = 1) -> Runs:
    return Runs(mode, Piece(Dataset("d", size_bytes)), streams, True, [took])


def test_of_many_datasets_those_near_to_the_sizes_are_chosen() -> None:
    there = named(7, 990, 1100, 5000, 10**6, 3 * 10**6, 90 * MIB, 300 * MIB, 5 * GIB)
    assert [one.size_bytes for one in nearest(there, 256 * MIB)] == [
        *(990, 1000 * 1000, 3 * 10**6, 90 * MIB, 5 * GIB)
    ]


def test_one_dataset_is_enough_and_an_empty_one_is_none() -> None:
    assert nearest(named(0, 0), 256 * MIB) == []
    (only,) = nearest(named(0, 5 * GIB), 256 * MIB)
    assert [one.size_bytes for one in pieces([only], 256 * MIB)] == [
        *(4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
    ]
    assert [one.size_bytes for one in pieces(named(23), 256 * MIB)] == [23]


def test_a_beginning_is_left_out_where_a_whole_dataset_is_as_long() -> None:
    found = pieces(named(10**6, 20 * MIB, GIB), 256 * MIB)
    shown = [(one.dataset.name, one.blocks) for one in found]
    assert shown == [("d0", None), ("d2", 1), ("d1", None), ("d2", 16), ("d2", 64)]


@given(sizes, st.integers(1, 2**40))
def test_no_piece_is_longer_than_allowed_or_than_its_dataset(each: list[int], most: int) -> None:
    chosen = nearest(named(*each), most)
    assert bool(chosen) == any(each)
    assert len(chosen) <= len(SIZES) + 1
    if chosen:
        found = pieces(chosen, most)
        assert [one.size_bytes for one in found] == sorted(one.size_bytes for one in found)
        assert len({(one.dataset, one.blocks) for one in found}) == len(found)
        for one in found:
            assert 0 < one.size_bytes <= min(most, one.dataset.size_bytes)


@given(st.integers(0, 2**45), st.floats(0, 1e11), st.floats(0, 1e4), st.integers(0, 2**45))
def test_streams_that_are_compared_fit_time_bytes_and_dataset(
    size_bytes: int, rate: float, time: float, left: int
) -> None:
    counts, blocks = side_by_side(size_bytes, rate, time, left)
    assert counts == STREAMS[: len(counts)]
    assert len(counts) != 1
    if counts:
        run = blocks * BLOCK_BYTES
        assert blocks >= counts[-1]
        assert blocks % counts[-1] == 0
        assert run <= size_bytes
        assert len(counts) * run <= min(left, rate * time) * 1.001
    else:
        assert min(size_bytes, rate * time / 2, left / 2) < 2 * BLOCK_BYTES * 1.001


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000", 1000), ("500MB", 5 * 10**8), ("2GiB", 2 * GIB), ("1.5 gb", 15 * 10**8), ("7k", 7000)],
)
def test_bytes_are_read_with_their_units(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@given(st.text(max_size=8))
def test_what_is_no_number_of_bytes_is_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_bytes(text) >= 0


@given(st.lists(seconds, min_size=1, max_size=300), st.sampled_from([50, 95, 99]))
def test_a_percentile_is_a_sample_with_so_many_at_or_below_it(
    samples: list[float], percent: int
) -> None:
    found = percentile(samples, percent)
    if found is None:
        assert len(samples) * (100 - percent) < 100
        return
    assert found in samples
    assert sum(one <= found for one in samples) * 100 >= percent * len(samples)
    assert sum(one >= found for one in samples) >= 1


def test_the_first_run_counts_only_where_it_is_alone_or_warm() -> None:
    row = Runs(Mode.STREAM, Piece(Dataset("d", 100)), samples_seconds=[9.0])
    assert row.median_seconds == 9.0
    row.samples_seconds += [1.0, 3.0]
    assert (row.median_seconds, row.bytes_per_second) == (2.0, 50.0)
    row.warm = True
    assert row.median_seconds == 3.0


def said(*rows: Runs) -> str:
    by_size = [row for row in rows if row.streams == 1]
    return "\n".join(advice(Figures(by_size=by_size, by_streams=list(rows))))


def test_advice_names_the_fewest_streams_that_are_nearly_the_best() -> None:
    took = {1: 10.0, 2: 5.0, 4: 4.0, 8: 3.9}
    rows = [runs(Mode.STREAM, 64 * MIB, one, count) for count, one in took.items()]
    assert "4 streams are 2.5 times as fast as one: use --parallel 4" in said(*rows)


@pytest.mark.parametrize(
    ("took", "words"),
    [
        ({1: 10.0, 2: 9.5, 4: 10.5}, "leave --parallel alone"),
        ({1: 10.0, 2: 9.0, 4: 20.0}, "leave --parallel alone"),
        ({1: 10.0, 2: 11.0, 4: 20.0}, "2.0 times as fast as 4: use --parallel 1"),
    ],
)
def test_advice_sees_no_gain_where_there_is_none(took: dict[int, float], words: str) -> None:
    rows = [runs(Mode.STREAM, 64 * MIB, one, count) for count, one in took.items()]
    assert words in said(*rows)


def test_advice_from_few_runs_says_so() -> None:
    rows = [runs(Mode.STREAM, 64 * MIB, one, count) for count, one in {1: 10.0, 2: 5.0}.items()]
    assert "use --parallel 2 for large datasets. These were few runs" in said(*rows)
    for row in rows:
        row.samples_seconds *= 3
    assert "few runs" not in said(*rows)


def test_advice_compares_modes_by_what_both_have_brought() -> None:
    rows = [
        runs(Mode.STREAM, 10**6, 1.0),
        runs(Mode.STREAM, 10**8, 10.0),
        runs(Mode.OFFLOAD, 10**6, 4.0),
    ]
    assert "1 MB comes in mode offload at 0.25 times the rate of mode stream" in said(*rows)


def test_runs_that_differ_are_told() -> None:
    row = Runs(Mode.STREAM, Piece(Dataset("d", MIB)), 1, True, [1.0, 1.1, 3.5])
    assert "3.5 times as long as the fastest" in said(row)


figures_drawn = st.builds(
    Figures,
    st.lists(
        st.builds(
            Latency,
            st.sampled_from(["router", "stat"]),
            st.none(),
            st.lists(seconds, max_size=21),
        ),
        max_size=2,
    ),
    *[
        st.lists(
            st.builds(
                Runs,
                st.sampled_from(Mode),
                st.builds(Piece, st.builds(Dataset, st.text(max_size=20), st.integers(1, 2**45))),
                st.sampled_from(STREAMS),
                st.booleans(),
                st.lists(seconds, max_size=5),
            ),
            max_size=5,
        )
    ]
    * 2,
    st.lists(st.text(max_size=200), max_size=2),
)


@settings(max_examples=40)
@given(figures_drawn, st.integers(50, 200), st.booleans())
def test_every_line_of_a_report_fits_the_width(
    figures: Figures, width: int, ascii_only: bool
) -> None:
    for line in lines(figures, width, ascii_only=ascii_only):
        assert len(line) <= width
    members(figures.measured())


def test_a_report_in_ascii_is_ascii() -> None:
    figures = Figures(by_size=[runs(Mode.STREAM, 10**6, 1.0), runs(Mode.STREAM, 10**7, 2.0)])
    text = "\n".join(lines(figures, 80, ascii_only=True))
    assert text.isascii()
    assert "####" in text
    assert "█" in "\n".join(lines(figures, 80, ascii_only=False))


@given(st.floats(0, 1), st.integers(-5, 200))
def test_a_bar_is_as_long_as_its_part(part: float, width: int) -> None:
    for ascii_only in (True, False):
        cells = len(bar(part, width, ascii_only=ascii_only))
        assert cells <= max(0, width)
        assert abs(cells - part * max(0, width)) < 1.01
        assert (cells > 0) == (part > 0 and width > 0)


def test_figures_for_people() -> None:
    assert [duration(one) for one in (0.0012, 0.2, 1.234, 12.34)] == [
        *("1.2 ms", "200 ms", "1.23 s", "12.3 s")
    ]
    assert [size(one) for one in (7, 1500, 10**6, 64 * MIB, 123_456_789)] == [
        *("7 B", "1.5 KB", "1 MB", "64 MiB", "123 MB")
    ]
    assert [rate(one) for one in (1234e6, 123.4e6, 12.34e6, 1.234e6)] == [
        *("1,234", "123", "12.3", "1.23")
    ]
