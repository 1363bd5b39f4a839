"""The segments of a dataset: they cover it exactly, are few, and what is wanted comes first."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from played_router import content, digests_of
from tunnelsync import frames, wire
from tunnelsync.errors import BadRequest, ProtocolError
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES
from tunnelsync.segments import (
    Cut,
    Segment,
    SegmentsAnswer,
    Shelf,
    cut,
    digests_in,
    proof_of,
    segment,
    segment_size,
)
from tunnelsync.settings import GIB, MIB, StoreSettings

PART = StoreSettings().part_bytes
LEAST_COPIED = 5 * MIB  # what S3 takes for a part that is copied, unless it is the last
FIRST = 8 * MIB

sizes = st.integers(1, 16 * 1024 * GIB)
parts = st.sampled_from([0, FIRST, PART, 64 * MIB])


@given(sizes, parts)
def test_segments_cover_a_dataset_exactly_and_are_few(size: int, part: int) -> None:
    cuts = cut(size, segment_size(size, part))
    assert cuts[0] == Cut(0, min(FIRST, size))
    assert [one.offset for one in cuts[1:]] == [one.end for one in cuts[:-1]]
    assert cuts[-1].end == size
    assert all(one.offset % BLOCK_BYTES == 0 for one in cuts)
    assert all(one.length >= LEAST_COPIED for one in cuts[:-1])
    assert len(cuts) < 1000


def test_segments_grow_from_the_first_to_their_size() -> None:
    lengths = [one.length // MIB for one in cut(200 * MIB, 64 * MIB)]
    assert lengths == [8, 16, 32, 64, 64, 16]
    assert segment_size(200 * MIB, PART) == FIRST
    assert segment_size(GIB, PART) == PART
    assert segment_size(1024 * GIB, PART) > 1024 * MIB
    assert cut(0, PART) == ()


def shelf_of(blocks: int) -> Shelf:
    """A shelf of so many segments of 8 MiB."""
    return Shelf(blocks * FIRST, FIRST, bytes(range(2 * blocks)) * DIGEST_BYTES)


def test_what_is_wanted_comes_first_and_then_what_follows_it() -> None:
    shelf = shelf_of(6)
    offsets = []
    for wanted in ([3 * FIRST + 5], [3 * FIRST], [0, 3 * FIRST], [3 * FIRST], [], [6 * FIRST]):
        one = shelf.take(wanted)
        assert one is not None
        offsets.append(one.offset // FIRST)
    assert offsets == [3, 4, 0, 5, 1, 2]
    assert shelf.take([0]) is None


@given(st.integers(1, 12), st.randoms(use_true_random=False), st.integers(1, 5))
def test_every_segment_is_brought_once_whoever_wants_what(
    count: int, chance: Random, most: int
) -> None:
    shelf = shelf_of(count)
    brought = []
    while (one := shelf.take([chance.randrange(count * FIRST + 2)])) is not None:
        assert not shelf.whole
        shelf.put(one)
        brought.append(one)
        run = shelf.run(one.offset, most=most, digests_bytes=MIB)
        assert run[0] == one
        assert len(run) <= most
        assert set(run) <= set(brought)
        assert all(a.end == b.offset for a, b in pairwise(run))
    assert sorted(brought, key=lambda one: one.offset) == list(shelf.cuts)
    assert shelf.whole
    assert set(shelf.begun) == set(brought)


def test_a_run_ends_where_one_is_missing_and_at_the_bounds_of_an_answer() -> None:
    shelf = shelf_of(6)
    for index in (0, 1, 2, 4):
        shelf.put(shelf.cuts[index])
    assert shelf.run(0, most=9, digests_bytes=MIB) == list(shelf.cuts[:3])
    assert shelf.run(FIRST + 1, most=9, digests_bytes=MIB) == list(shelf.cuts[1:3])
    assert shelf.run(3 * FIRST, most=9, digests_bytes=MIB) == []
    assert shelf.run(6 * FIRST, most=9, digests_bytes=MIB) == []
    assert shelf.run(0, most=2, digests_bytes=MIB) == list(shelf.cuts[:2])
    assert shelf.run(0, most=9, digests_bytes=4 * DIGEST_BYTES) == list(shelf.cuts[:2])
    assert shelf.run(0, most=0, digests_bytes=0) == list(shelf.cuts[:1])
    shelf.fill()
    assert shelf.whole
    assert shelf.run(0, most=9, digests_bytes=MIB) == list(shelf.cuts)


@given(st.integers(1, 40 * MIB))
def test_a_segment_says_its_digests(size: int) -> None:
    packed = bytes(n % 251 for n in range(frames.block_count(size) * DIGEST_BYTES))
    told = [segment(one, packed, "http://store/x") for one in cut(size, PART)]
    assert b"".join(proof_of(one, size) for one in told) == packed
    answer = SegmentsAnswer(tuple(told), "d", size, "v1", 1, 60)
    assert wire.decode(SegmentsAnswer, wire.loads(wire.dumps(answer))) == answer


def test_the_digests_of_a_segment_are_those_of_its_blocks() -> None:
    data = content(3 * BLOCK_BYTES + 9)
    packed = b"".join(digests_of(data))
    last = cut(len(data), FIRST)[-1]
    assert digests_in(packed, last) == b"".join(digests_of(data[FIRST:]))


RIGHT = segment(Cut(FIRST, FIRST), bytes(8 * DIGEST_BYTES), "http://store/x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": -FIRST},
        {"offset": FIRST + 1},
        {"offset": 3 * FIRST},
        {"length": 0},
        {"length": -1},
        {"length": FIRST - 1},
        {"length": 2**62},
        {"blocks": ""},
        {"blocks": "????"},
        {"blocks": "é"},
        {"blocks": RIGHT.blocks[:-4]},
        {"blocks": RIGHT.blocks + "AAAA"},
    ],
)
def test_a_segment_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    assert proof_of(RIGHT, 2 * FIRST) == bytes(2 * DIGEST_BYTES)
    with pytest.raises(ProtocolError):
        proof_of(replace(RIGHT, **wrong), 2 * FIRST)  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(["offset", "length", "download_url", "blocks"]), st.text()))
def test_what_is_no_segment_is_told_apart(value: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        wire.decode(Segment, value)
