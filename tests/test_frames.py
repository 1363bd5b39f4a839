"""Frames: cut anywhere, altered anywhere, ended anywhere."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync import frames
from tunnelsync.errors import (
    BrokenOff,
    DatasetChanged,
    ProtocolError,
    TunnelSyncError,
    VerificationFailed,
)
from tunnelsync.frames import BLOCK_BYTES, Claimed, Decoder, End

payloads = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def body_of(blocks: Iterable[bytes]) -> bytes:
    """The whole framed body of blocks, whatever their sizes."""
    blocks = list(blocks)
    digests = [frames.digest(block) for block in blocks]
    framed = [
        frames.encode_head(len(block)) + block + one
        for block, one in zip(blocks, digests, strict=True)
    ]
    return b"".join(framed) + frames.encode_end(len(blocks), frames.root(digests))


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    """The body in pieces, cut at these places (some may be empty)."""
    ends = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[start:end] for start, end in pairwise(ends)]


def decoded(pieces: Iterable[bytes], first_block: int = 0) -> list[Claimed | End]:
    decoder = Decoder(first_block)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    decoder.finish()
    return events


def verified(events: Iterable[Claimed | End]) -> list[bytes]:
    return [b"".join(event.verified()) for event in events if isinstance(event, Claimed)]


@given(payloads, st.lists(st.integers(min_value=0), max_size=20))
def test_a_body_cut_anywhere_gives_the_same_blocks(blocks: list[bytes], cuts: list[int]) -> None:
    events = decoded(cut(body_of(blocks), cuts))
    assert verified(events) == blocks
    assert events[-1] == End(len(blocks), frames.root(map(frames.digest, blocks)))


@given(payloads)
def test_a_body_in_single_bytes_gives_the_same_blocks(blocks: list[bytes]) -> None:
    body = body_of(blocks)
    assert verified(decoded(body[i : i + 1] for i in range(len(body)))) == blocks


@given(payloads, st.data())
def test_b1_a_body_that_stops_early_is_never_a_clean_end(
    blocks: list[bytes], data: st.DataObject
) -> None:
    body = body_of(blocks)
    stop = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(BrokenOff):
        decoded([body[:stop]])


@given(payloads, st.data())
def test_b6_a_flipped_bit_anywhere_is_found(blocks: list[bytes], data: st.DataObject) -> None:
    """In a payload, a digest, a length, the count or the root: an error, or no clean end."""
    body = bytearray(body_of(blocks))
    bit = data.draw(st.integers(0, len(body) * 8 - 1))
    body[bit // 8] ^= 1 << bit % 8
    with pytest.raises((VerificationFailed, ProtocolError, BrokenOff)):
        verified(decoded([bytes(body)]))


@given(st.binary(max_size=200), st.lists(st.integers(min_value=0), max_size=5))
def test_m2_any_bytes_are_frames_or_a_known_error(data: bytes, cuts: list[int]) -> None:
    with pytest.raises(TunnelSyncError):
        verified(decoded(cut(data, cuts)))


@given(st.binary(max_size=100))
def test_m2_any_payload_of_a_failure_is_an_error(payload: bytes) -> None:
    body = frames.HEAD.pack(frames.FAILURE) + frames.HEAD.pack(len(payload)) + payload
    with pytest.raises(TunnelSyncError):
        decoded([body])


@given(payloads, st.lists(st.integers(min_value=0), max_size=9))
def test_a_failure_frame_raises_the_senders_error(blocks: list[bytes], cuts: list[int]) -> None:
    digests = [frames.digest(block) for block in blocks]
    body = body_of(blocks)[: -frames.END.size]
    body += frames.encode_failure(DatasetChanged("the dataset changed", hint="again"))
    decoder = Decoder()
    got: list[bytes] = []
    with pytest.raises(DatasetChanged, match="the dataset changed") as caught:
        for piece in cut(body, cuts):
            got.extend(event.digest for event in decoder.feed(piece) if isinstance(event, Claimed))
    assert caught.value.hint == "again"
    assert got == digests


def test_a_failure_as_long_as_can_be_still_ends_the_body() -> None:
    body = frames.encode_failure(DatasetChanged("x" * 100_000))
    with pytest.raises(TunnelSyncError):
        decoded([body])


@given(payloads, st.binary(min_size=1, max_size=50))
def test_bytes_after_the_end_are_a_protocol_error(blocks: list[bytes], more: bytes) -> None:
    with pytest.raises(ProtocolError):
        decoded([body_of(blocks) + more])
    with pytest.raises(ProtocolError):
        decoded([body_of(blocks), more])


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=2, max_size=5, unique=True), st.data())
def test_blocks_left_out_or_swapped_are_found_at_the_end(
    blocks: list[bytes], data: st.DataObject
) -> None:
    end = body_of(blocks)[-frames.END.size :]
    other = data.draw(st.permutations(blocks).filter(lambda some: some != blocks))
    for changed in (other, blocks[:-1], blocks + blocks[:1]):
        body = body_of(changed)[: -frames.END.size] + end
        with pytest.raises(VerificationFailed):
            decoded([body])


@pytest.mark.parametrize("length", [BLOCK_BYTES + 1, 2**31, frames.FAILURE - 1])
def test_a_frame_longer_than_a_block_is_refused_at_its_head(length: int) -> None:
    with pytest.raises(ProtocolError, match="longer than a block"):
        decoded([frames.encode_head(length)])


@pytest.mark.parametrize("length", [0, frames.FAILURE_BYTES + 1, 2**32 - 1])
def test_a_failure_of_an_impossible_length_is_refused_at_its_head(length: int) -> None:
    with pytest.raises(ProtocolError, match="impossible"):
        decoded([frames.HEAD.pack(frames.FAILURE) + frames.HEAD.pack(length)])


@pytest.mark.parametrize(
    "size",
    [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES],
    ids=["0", "1", "block-1", "block", "block+1", "2 blocks"],
)
def test_b9_real_blocks_of_every_kind_of_size(size: int) -> None:
    data = blake3(b"data").digest(length=size) if size else b""
    blocks = [data[i : i + BLOCK_BYTES] for i in range(0, size, BLOCK_BYTES)]
    body = body_of(blocks)
    assert len(body) == frames.framed_length(size)
    assert len(blocks) == frames.block_count(size)
    pieces = [body[i : i + 65_521] for i in range(0, len(body), 65_521)]
    assert b"".join(verified(decoded(pieces))) == data


@given(st.integers(0, 2**40))
def test_the_length_of_a_body_is_known_before(size: int) -> None:
    count = frames.block_count(size)
    assert (count - 1) * BLOCK_BYTES < size <= count * BLOCK_BYTES or size == count == 0
    assert frames.framed_length(size) == size + count * (4 + 32) + 4 + 8 + 32


@given(st.integers(0, 2**20))
def test_a_frame_begins_where_the_one_before_it_ends(count: int) -> None:
    begin = frames.framed_length(count * BLOCK_BYTES) - frames.framed_length(0)
    assert frames.between_frames(begin)
    assert not frames.between_frames(begin + 1)
    assert not frames.between_frames(begin + BLOCK_BYTES)


@given(payloads, st.integers(0, 2**32))
def test_blocks_are_counted_from_the_first_one(blocks: list[bytes], first: int) -> None:
    events = decoded([body_of(blocks)], first)
    indices = [event.index for event in events if isinstance(event, Claimed)]
    assert indices == list(range(first, first + len(blocks)))


def test_a_digest_is_blake3_and_the_root_that_of_the_digests() -> None:
    assert frames.digest(b"abc") == blake3(b"abc").digest()
    two = [frames.digest(b"a"), frames.digest(b"b")]
    assert frames.root(two) == "blake3-4m:" + blake3(two[0] + two[1]).hexdigest()
    assert frames.root([]) == "blake3-4m:" + blake3(b"").hexdigest()


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5))
def test_packed_digests_are_split_as_they_were(digests: list[bytes]) -> None:
    assert frames.split_digests(b"".join(digests)) == digests


@pytest.mark.parametrize("length", [1, 31, 33])
def test_packed_digests_of_an_odd_length_are_a_protocol_error(length: int) -> None:
    with pytest.raises(ProtocolError):
        frames.split_digests(bytes(length))
