"""What a client's conditions and ranges mean for a dataset, by RFC 9110; no I/O.

The connector evaluates them on the version that it has open, so that the answer's status, its
range and its bytes are all of one version.
"""

import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from tunnelsync.errors import RangeNotSatisfiable
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Conditions

NANOSECONDS = 1_000_000_000
DATE_CHARACTERS = 64  # the longest HTTP-date has 33
BEYOND = 2**63  # more than any dataset has

TAG = re.compile(r'[ \t]*(?:(W/)?"([!\x23-\x7e\x80-\xff]*)"[ \t]*)?(?:,|\Z)')
RANGE = re.compile(r"[ \t]*bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a dataset answers: ``status`` is 200, 206, 304, 412 or 416.

    ``offset`` and ``length`` in bytes; both are 0 unless the status is 200 or 206.
    """

    status: int
    offset: int
    length: int


def select(conditions: Conditions, *, size: int, etag: str, mtime_ns: int) -> Selection:
    """Evaluate the conditions in the order of RFC 9110, 13.2.2, then the range (14.2).

    ``etag`` is the dataset's, strong and without quotes; ``size`` is in bytes. Never raises: a
    header that cannot be read is ignored where the RFC says so, and else does not match.
    """
    modified = mtime_ns // NANOSECONDS
    if conditions.if_match is not None:
        if not _names_strongly(conditions.if_match, etag):
            return Selection(412, 0, 0)
    elif (since := _seconds(conditions.if_unmodified_since)) is not None and modified > since:
        return Selection(412, 0, 0)
    if conditions.if_none_match is not None:
        if _names_weakly(conditions.if_none_match, etag):
            return Selection(304, 0, 0)
    elif (since := _seconds(conditions.if_modified_since)) is not None and modified <= since:
        return Selection(304, 0, 0)
    if conditions.range is None or not _same(conditions.if_range, etag, mtime_ns):
        return Selection(200, 0, size)
    return _ranged(conditions.range, size)


def block_range(offset: int, length: int | None, size: int) -> tuple[int, int]:
    """Return offset and length in bytes of a part for the coding ``blocks``.

    Both must be whole blocks, except that a part may end where the dataset does; a length
    beyond that, or None, means the end. Raises `RangeNotSatisfiable`, which names the size.
    """
    if not 0 <= offset <= size:
        raise RangeNotSatisfiable(f"offset {offset} is outside the dataset of {size} bytes")
    if offset % BLOCK_BYTES:
        message = f"offset {offset} is not a multiple of {BLOCK_BYTES} (size: {size} bytes)"
        raise RangeNotSatisfiable(message)
    left = size - offset
    if length is None or length >= left:
        return offset, left
    if length < 0 or length % BLOCK_BYTES:
        message = (
            f"length {length} is neither a multiple of {BLOCK_BYTES} nor reaches the end of the "
            f"dataset (size: {size} bytes)"
        )
        raise RangeNotSatisfiable(message)
    return offset, length


def _tags(value: str) -> tuple[tuple[str, bool], ...]:
    """Parse a list of entity tags (8.8.3) into their text and whether each is weak.

    A list that is malformed has none, and so matches nothing.
    """
    tags, at = [], 0
    while at < len(value):
        found = TAG.match(value, at)
        if found is None:
            return ()
        if found[2] is not None:
            tags.append((found[2], found[1] is not None))
        at = found.end()
    return tuple(tags)


def _names_strongly(value: str, etag: str) -> bool:
    """Tell whether ``If-Match`` holds (13.1.1): a weak tag never does."""
    return value.strip() == "*" or (etag, False) in _tags(value)


def _names_weakly(value: str, etag: str) -> bool:
    """Tell whether ``If-None-Match`` names the dataset (13.1.2): weak tags count."""
    return value.strip() == "*" or any(text == etag for text, _ in _tags(value))


def _same(if_range: str | None, etag: str, mtime_ns: int) -> bool:
    """Tell whether ``If-Range`` (13.1.5) allows a part: one strong tag, or the exact date.

    A date names no fraction of a second, and is no strong validator (8.8.2.2) of a version that
    has one: another may have come and gone within the same second.
    """
    if if_range is None or _tags(if_range) == ((etag, False),):
        return True
    seconds = _seconds(if_range)
    return seconds is not None and seconds * NANOSECONDS == mtime_ns


def _seconds(date: str | None) -> int | None:
    """Return the Unix time of an HTTP-date in whole seconds, or None for what is no date."""
    if date is None or len(date) > DATE_CHARACTERS:
        return None
    try:
        parsed = parsedate_to_datetime(date)
        if parsed.tzinfo is None:  # the asctime form of 5.6.7 has no zone, and means UTC
            parsed = parsed.replace(tzinfo=UTC)
        return int(parsed.timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _ranged(value: str, size: int) -> Selection:
    """Evaluate ``Range``: one range of bytes is served, and everything else is ignored (14.2)."""
    found = RANGE.fullmatch(value)
    if found is None or not (found[1] or found[2]):
        return Selection(200, 0, size)
    if not found[1]:
        return _suffix(_number(found[2]), size)
    first, last = _number(found[1]), _number(found[2]) if found[2] else BEYOND
    if last < first:  # 14.1.1: such a range is invalid, not unsatisfiable
        return Selection(200, 0, size)
    if first >= size:
        return Selection(416, 0, 0)
    return Selection(206, first, min(last + 1, size) - first)


def _suffix(wanted: int, size: int) -> Selection:
    # 14.1.2 calls a suffix of an empty representation satisfiable, if it is not "-0". But
    # Content-Range (14.4) cannot say "no bytes of 0", so no 206 could describe the answer.
    if wanted == 0 or size == 0:
        return Selection(416, 0, 0)
    length = min(wanted, size)
    return Selection(206, size - length, length)


def _number(digits: str) -> int:
    """Return a number of any count of digits; Python refuses to convert over 4300 of them."""
    digits = digits.lstrip("0")
    return min(int(digits or "0"), BEYOND) if len(digits) <= len(str(BEYOND)) else BEYOND
