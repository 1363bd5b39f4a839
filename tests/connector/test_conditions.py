"""Conditions and ranges as RFC 9110 has them."""

from dataclasses import replace
from email.utils import formatdate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnelsync.connector.conditions import Selection, block_range, select
from tunnelsync.errors import RangeNotSatisfiable
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Conditions

ETAG = "64-17a-17b"
MTIME = 784_111_777  # Sun, 06 Nov 1994 08:49:37 GMT, the example of the RFC
MTIME_NS = MTIME * 10**9 + 123_456_789
SAME, BEFORE, AFTER = (formatdate(MTIME + d, usegmt=True) for d in (0, -1, 1))
ALL, GONE_BY, UNMODIFIED, BEYOND = (
    Selection(200, 0, 100),
    Selection(412, 0, 0),
    Selection(304, 0, 0),
    Selection(416, 0, 0),
)
DAMAGED_DATES = ["", "yesterday", "Sun, 99 Nov 1994 08:49:37 GMT", "9" * 60, "9" * 5000, "0 0 0 0"]


def selected(size: int = 100, **headers: str) -> Selection:
    return select(Conditions(**headers), size=size, etag=ETAG, mtime_ns=MTIME_NS)


def test_without_conditions_everything_is_sent() -> None:
    assert selected() == ALL
    assert selected(size=0) == Selection(200, 0, 0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f'"{ETAG}"', ALL),
        ("*", ALL),
        (" * ", ALL),
        (f'"a,b", "{ETAG}"', ALL),
        (f',, "x" ,\t"{ETAG}" , ', ALL),
        (f'W/"{ETAG}"', GONE_BY),
        (f'w/"{ETAG}"', GONE_BY),
        (ETAG, GONE_BY),
        (f'"x" "{ETAG}"', GONE_BY),
        (f'"{ETAG}', GONE_BY),
        ('"x"', GONE_BY),
        ('""', GONE_BY),
        ("", GONE_BY),
    ],
)
def test_if_match_compares_strongly(value: str, expected: Selection) -> None:
    assert selected(if_match=value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f'"{ETAG}"', UNMODIFIED),
        (f'W/"{ETAG}"', UNMODIFIED),
        (f'"x", W/"{ETAG}"', UNMODIFIED),
        ("*", UNMODIFIED),
        ('"x"', ALL),
        (ETAG, ALL),
        ("", ALL),
    ],
)
def test_if_none_match_compares_weakly(value: str, expected: Selection) -> None:
    assert selected(if_none_match=value) == expected


def test_dates_are_compared_in_whole_seconds() -> None:
    assert selected(if_modified_since=BEFORE) == ALL
    assert selected(if_modified_since=SAME) == UNMODIFIED
    assert selected(if_modified_since=AFTER) == UNMODIFIED
    assert selected(if_unmodified_since=BEFORE) == GONE_BY
    assert selected(if_unmodified_since=SAME) == ALL
    assert selected(if_unmodified_since=AFTER) == ALL


@pytest.mark.parametrize("date", ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"])
def test_the_obsolete_forms_of_dates_are_read(date: str) -> None:
    assert selected(if_modified_since=date) == UNMODIFIED
    conditions = Conditions(if_range=date, range="bytes=0-0")
    whole, part = MTIME_NS // 10**9 * 10**9, Selection(206, 0, 1)
    assert select(conditions, size=100, etag=ETAG, mtime_ns=whole) == part
    # Another version may have come and gone within the second that a date can tell.
    assert select(conditions, size=100, etag=ETAG, mtime_ns=whole + 1) == ALL


@pytest.mark.parametrize("date", DAMAGED_DATES)
def test_dates_that_are_none_are_ignored(date: str) -> None:
    assert selected(if_modified_since=date) == ALL
    assert selected(if_unmodified_since=date) == ALL
    assert selected(if_range=date, range="bytes=0-0") == ALL


def test_conditions_are_evaluated_in_the_order_of_the_rfc() -> None:
    tag = f'"{ETAG}"'
    assert selected(if_match='"x"', if_none_match=tag, range="bytes=500-") == GONE_BY
    assert selected(if_match=tag, if_unmodified_since=BEFORE) == ALL
    assert selected(if_match=tag, if_none_match=tag) == UNMODIFIED
    assert selected(if_none_match='"x"', if_modified_since=SAME) == ALL
    assert selected(if_none_match=tag, range="bytes=500-") == UNMODIFIED
    assert selected(if_unmodified_since=SAME, if_modified_since=SAME) == UNMODIFIED


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0", Selection(206, 0, 1)),
        ("bytes=10-19", Selection(206, 10, 10)),
        ("Bytes= 10-19 ", Selection(206, 10, 10)),
        ("bytes=10-", Selection(206, 10, 90)),
        ("bytes=-10", Selection(206, 90, 10)),
        ("bytes=-1000", Selection(206, 0, 100)),
        ("bytes=99-1000", Selection(206, 99, 1)),
        ("bytes=0-" + "9" * 5000, Selection(206, 0, 100)),
        ("bytes=-" + "9" * 5000, Selection(206, 0, 100)),
        ("bytes=" + "0" * 5000 + "7-7", Selection(206, 7, 1)),
        ("bytes=5-4", ALL),
        ("bytes=0-1,5-6", ALL),
        ("bytes=0-1,", ALL),
        ("bytes=-", ALL),
        ("bytes=", ALL),
        ("bytes=a-b", ALL),
        ("bytes=+1-2", ALL),
        ("bytes=\N{ARABIC-INDIC DIGIT ONE}-", ALL),
        ("blocks=0-1", ALL),
        ("", ALL),
        ("bytes=-0", BEYOND),
    ],
)
def test_one_range_of_bytes_is_served_and_others_are_ignored(
    value: str, expected: Selection
) -> None:
    assert selected(range=value) == expected


@pytest.mark.parametrize("value", ["bytes=100-", "bytes=100-200", "bytes=" + "9" * 5000 + "-"])
def test_B5_a_range_past_the_end_is_416(value: str) -> None:
    assert selected(range=value) == BEYOND


@pytest.mark.parametrize("value", ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0"])
def test_B5_any_range_of_an_empty_dataset_is_416(value: str) -> None:
    assert selected(size=0, range=value) == BEYOND


@pytest.mark.parametrize("value", [f'"{ETAG}"', f' "{ETAG}" '])
def test_if_range_that_matches_gives_the_part(value: str) -> None:
    assert selected(range="bytes=1-2", if_range=value) == Selection(206, 1, 2)


@pytest.mark.parametrize(
    "value", [f'W/"{ETAG}"', '"x"', f'"{ETAG}", "x"', ETAG, "*", BEFORE, AFTER, ""]
)
def test_B3_if_range_that_does_not_match_gives_everything(value: str) -> None:
    assert selected(range="bytes=1-2", if_range=value) == ALL
    assert selected(range="bytes=500-", if_range=value) == ALL


HEADERS = st.one_of(
    st.none(),
    st.text(),
    st.sampled_from(["*", f'"{ETAG}"', f'W/"{ETAG}"', SAME, BEFORE, AFTER, *DAMAGED_DATES]),
    st.text(alphabet='bytes=0123456789-, W/"*', max_size=40),
    st.from_regex(r"bytes=[0-9]{0,25}-[0-9]{0,25}", fullmatch=True),
    st.dates().map(lambda d: d.strftime("%a, %d %b %Y 00:00:00 GMT")),
)


@given(
    st.builds(Conditions, HEADERS, HEADERS, HEADERS, HEADERS, HEADERS, HEADERS),
    st.integers(0, 2**62),
    st.integers(-(2**62), 2**62),
)
@example(Conditions(if_modified_since="Sun, 06 Nov 0000 08:49:37 +9999"), 1, 0)
def test_M2_no_header_makes_it_raise_or_leave_the_dataset(
    conditions: Conditions, size: int, mtime_ns: int
) -> None:
    got = select(conditions, size=size, etag=ETAG, mtime_ns=mtime_ns)
    assert got.status in (200, 206, 304, 412, 416)
    assert 0 <= got.offset <= got.offset + got.length <= size
    if got.status == 200:
        assert (got.offset, got.length) == (0, size)
    elif got.status == 206:
        assert got.length > 0
        assert conditions.range is not None
    else:
        assert (got.offset, got.length) == (0, 0)
    assert got == select(replace(conditions), size=size, etag=ETAG, mtime_ns=mtime_ns)


small, any_size = st.integers(0, 200), st.integers(0, 2**63 - 1)


@given(small | any_size, small | any_size, small | any_size)
@example(10**9, 10**9, 10**10)
@example(2**62, 2**62, 2**63 - 1)
def test_a_range_is_what_a_slice_would_be(first: int, more: int, size: int) -> None:
    data = range(size)
    for wanted, part in (
        (f"{first}-{first + more}", data[first : first + more + 1]),
        (f"{first}-", data[first:]),
        (f"-{first}", data[max(0, size - first) :]),
    ):
        got = selected(size=size, range=f"bytes={wanted}")
        assert (got.status == 206) == bool(part)
        assert data[got.offset : got.offset + got.length] == part


SIZE = 2 * BLOCK_BYTES + 5


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, None, (0, SIZE)),
        (0, BLOCK_BYTES, (0, BLOCK_BYTES)),
        (0, SIZE, (0, SIZE)),
        (0, 0, (0, 0)),
        (BLOCK_BYTES, None, (BLOCK_BYTES, BLOCK_BYTES + 5)),
        (2 * BLOCK_BYTES, 5, (2 * BLOCK_BYTES, 5)),
        (2 * BLOCK_BYTES, 2**80, (2 * BLOCK_BYTES, 5)),
    ],
)
def test_whole_blocks_and_the_end_are_parts(
    offset: int, length: int | None, expected: tuple[int, int]
) -> None:
    assert block_range(offset, length, SIZE) == expected


def test_an_empty_dataset_has_an_empty_part() -> None:
    assert block_range(0, None, 0) == (0, 0)
    assert block_range(BLOCK_BYTES, None, BLOCK_BYTES) == (BLOCK_BYTES, 0)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (1, None),
        (-BLOCK_BYTES, None),
        (3 * BLOCK_BYTES, None),
        (SIZE, None),
        (0, 1),
        (0, -1),
        (0, -BLOCK_BYTES),
        (0, SIZE - 1),
    ],
)
def test_B5_a_part_that_is_not_of_whole_blocks_is_refused_naming_the_size(
    offset: int, length: int | None
) -> None:
    with pytest.raises(RangeNotSatisfiable, match=str(SIZE)):
        block_range(offset, length, SIZE)


@given(st.integers(), st.none() | st.integers(), st.integers(0))
def test_a_part_never_leaves_the_dataset(offset: int, length: int | None, size: int) -> None:
    try:
        start, count = block_range(offset, length, size)
    except RangeNotSatisfiable:
        return
    assert start == offset
    assert 0 <= start <= start + count <= size
    assert count % BLOCK_BYTES == 0 or start + count == size
