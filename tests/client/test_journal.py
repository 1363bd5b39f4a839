"""The journal: what it says is what was written, cut anywhere, or nothing at all."""

import errno
import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnelsync.client import journal
from tunnelsync.client.journal import (
    ENTRY,
    RECORD_BYTES,
    TAKEN_BACK,
    Journal,
    Kept,
    Origin,
    Version,
    decode,
    encode,
    encode_blocks,
    encode_seal,
)
from tunnelsync.frames import BLOCK_BYTES, digest

ORIGIN = Origin("http://127.0.0.1:8080/", "cc-28-aa-00-11-22", "a/d.csv")
COUNT = 9
VERSION = Version((COUNT - 1) * BLOCK_BYTES + 7, "17-18eb", 1_700_000_000_123_456_789)


def one(index: int) -> bytes:
    """Return a digest that no other block has."""
    return digest(index.to_bytes(8, "big"))


def kept(blocks: Mapping[int, bytes] | None = None, **changes: Any) -> Kept:
    return replace(Kept(ORIGIN, VERSION, blocks or {}), **changes)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, 2**63 - 1)
digests = st.binary(min_size=32, max_size=32).filter(any)


@given(
    st.builds(Origin, texts, texts, texts),
    st.builds(Version, numbers, texts, st.integers(-(2**63), 2**63 - 1)),
    st.dictionaries(st.integers(0, 20), digests),
)
def test_what_was_written_is_read_again(
    origin: Origin, version: Version, blocks: dict[int, bytes]
) -> None:
    count = -(-version.size // BLOCK_BYTES)
    within = {index: value for index, value in blocks.items() if index < count}
    written = Kept(origin, version, blocks)
    assert decode(encode(written)) == Kept(origin, version, within)


def test_a_seal_is_read_again_and_nothing_after_it() -> None:
    sealed = encode(kept({0: one(0)})) + encode_seal(1_700_000_000_123_456_789)
    said = kept({0: one(0)}, sealed_ns=1_700_000_000_123_456_789)
    assert decode(sealed) == said
    assert decode(sealed[:-1]) == kept({0: one(0)})
    assert decode(sealed + encode_blocks([(1, one(1))]) + encode_seal(1)) == said


def test_blocks_added_later_are_read_too_and_the_last_word_on_a_block_counts() -> None:
    data = encode(kept({0: one(0)}))
    data += (
        encode_blocks([(3, one(3)), (0, one(7))]) + encode_blocks([]) + encode_blocks([(1, one(1))])
    )
    assert decode(data) == kept({0: one(7), 3: one(3), 1: one(1)})


def test_a_block_that_was_taken_back_is_not_there_unless_it_came_again() -> None:
    data = encode(kept({0: one(0), 1: one(1)})) + encode_blocks([(0, TAKEN_BACK), (1, TAKEN_BACK)])
    assert decode(data) == kept({})
    assert decode(data + encode_blocks([(1, one(1))])) == kept({1: one(1)})


def test_more_blocks_than_a_record_holds_go_into_several() -> None:
    count = RECORD_BYTES // ENTRY.size + 5
    version = Version(count * BLOCK_BYTES, "v", 0)
    blocks = {index: (index + 1).to_bytes(32, "big") for index in range(count)}
    assert decode(encode(kept(blocks, version=version))) == kept(blocks, version=version)


@pytest.mark.parametrize("at", range(len(encode(kept({1: one(1)}))) + 1))
def test_b4_cut_anywhere_it_says_no_more_than_what_is_whole(at: int) -> None:
    head, first = len(encode(kept())), len(encode(kept({1: one(1)})))
    said = decode(encode(kept({1: one(1)}))[:at] + b"")
    assert said == (None if at < head else kept() if at < first else kept({1: one(1)}))


def test_b4_what_follows_a_record_that_is_cut_is_not_believed() -> None:
    whole = encode_blocks([(1, one(1))])
    data = encode(kept({0: one(0)})) + whole[:-1] + encode_blocks([(2, one(2))])
    assert decode(data) == kept({0: one(0)})


@given(st.data())
def test_b4_a_flipped_bit_never_makes_a_block_of_its_own(data: st.DataObject) -> None:
    blocks = {index: one(index) for index in range(COUNT)}
    whole = bytearray(encode(kept({0: one(0)})) + encode_blocks(list(blocks.items())[1:]))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    said = decode(bytes(whole))
    assert said is None or (said.origin, said.version) == (ORIGIN, VERSION)
    assert said is None or said.blocks.items() <= blocks.items()


def framed(payload: bytes) -> bytes:
    """Return a payload as a record with the right check."""
    return journal.LENGTH.pack(len(payload)) + payload + digest(payload)[: journal.CHECK_BYTES]


HEAD = orjson.loads(encode(kept())[4:-16])


@given(st.lists(st.one_of(st.binary(), st.binary().map(framed))).map(b"".join))
@example(b"")
@example(framed(b"[" * 100_000))
@example(framed(b"[]") + framed(b"null") + framed(b"1e999"))
@example(b"\xff" * 100)
def test_m2_any_bytes_are_nothing_or_a_value(data: bytes) -> None:
    assert decode(data) is None
    said = decode(encode(kept({1: one(1)})) + data)
    assert said is not None
    assert (said.origin, said.version) == (ORIGIN, VERSION)
    assert max(said.blocks) < COUNT


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(HEAD)), json)
def test_m2_a_head_of_wrong_types_is_nothing(name: str, value: object) -> None:
    said = decode(framed(orjson.dumps(HEAD | {name: value})))
    if said is not None:
        assert type(value) is type(HEAD[name])


@pytest.mark.parametrize("name", sorted(HEAD))
def test_a_head_without_a_member_is_nothing(name: str) -> None:
    assert decode(framed(orjson.dumps({k: v for k, v in HEAD.items() if k != name}))) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("format", 2), ("size", -1), ("size", 2**63), ("etag", None)],
)
def test_a_head_of_another_format_or_out_of_bounds_is_nothing(name: str, value: object) -> None:
    assert decode(framed(orjson.dumps(HEAD | {name: value}))) is None


def test_members_that_are_not_known_are_ignored() -> None:
    assert decode(framed(orjson.dumps(HEAD | {"colour": "red"}))) == kept()


def test_a_record_longer_than_any_is_not_believed() -> None:
    long = framed(ENTRY.pack(1, one(1)) * (RECORD_BYTES // ENTRY.size + 1))
    assert decode(encode(kept()) + long) == kept()


def test_blocks_that_the_dataset_does_not_have_are_left_out() -> None:
    data = encode(kept()) + encode_blocks([(COUNT, one(0)), (2**64 - 1, one(1)), (2, one(2))])
    assert decode(data) == kept({2: one(2)})


def test_the_largest_size_there_is_costs_no_memory() -> None:
    huge = Version(2**63 - 1, "v", 0)
    assert decode(encode(kept({7: one(7)}, version=huge))) == kept({7: one(7)}, version=huge)


def same(**changes: Any) -> bool:
    first = Version(10, "v1", 5)
    return first.same(replace(first, **changes))


def test_b3_blocks_stand_together_by_size_and_etag() -> None:
    assert same()
    assert same(modified_ns=6)
    assert not same(size=11)
    assert not same(etag="v2")


def test_b3_without_an_etag_no_two_answers_are_one_version() -> None:
    assert not Version(10, "", 5).same(Version(10, "", 5))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.tunnelsync.journal"


def test_a_file_begun_and_added_to_is_read_by_another(path: Path) -> None:
    ours = Journal(path, 1 << 20)
    ours.begin(kept({0: one(0)}))
    ours.append([(1, one(1))])
    assert Journal(path, 1 << 20).read() == kept({0: one(0), 1: one(1)})
    ours.begin(kept({5: one(5)}))
    ours.append([(6, one(6))])
    ours.close()
    ours.close()
    assert Journal(path, 1 << 20).read() == kept({5: one(5), 6: one(6)})
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_file_over_the_limit_is_not_read(path: Path) -> None:
    size = len(encode(kept()))
    path.write_bytes(encode(kept()))
    assert Journal(path, size).read() == kept()
    assert Journal(path, size - 1).read() is None


def make_link(path: Path) -> None:
    (path.parent / "far").write_bytes(encode(kept()))
    path.symlink_to("far")


@pytest.mark.parametrize("make", [make_link, os.mkfifo, os.mkdir, lambda path: None])
def test_what_is_no_file_says_nothing_and_blocks_nobody(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    assert Journal(path, 1 << 20).read() is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_with_a_writer_says_nothing_either(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    try:
        assert Journal(path, 1 << 20).read() is None
    finally:
        os.close(reader)
        os.close(writer)


def test_without_a_descriptor_left_nothing_is_taken_for_no_journal(path: Path) -> None:
    path.write_bytes(encode(kept()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Journal(path, 1 << 20).read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("code", [errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_of_what_a_system_in_trouble_does_not_read_nothing_is_known(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def troubled(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    path.write_bytes(encode(kept()))
    monkeypatch.setattr(journal, "_unblocking", troubled)
    with pytest.raises(OSError, match=os.strerror(code)):
        Journal(path, 1 << 20).read()


def test_removing_tells_whether_there_was_one(path: Path) -> None:
    ours = Journal(path, 1 << 20)
    assert not ours.remove()
    ours.begin(kept())
    path.with_suffix(".new").write_bytes(b"left by a run that was killed")
    assert ours.remove()
    assert list(path.parent.iterdir()) == []


def test_b10_the_journal_of_the_next_process_is_not_removed(path: Path) -> None:
    ours, theirs = Journal(path, 1 << 20), Journal(path, 1 << 20)
    ours.begin(kept())
    theirs.begin(kept({1: one(1)}))
    assert not ours.remove()
    theirs.append([(2, one(2))])
    assert Journal(path, 1 << 20).read() == kept({1: one(1), 2: one(2)})


def test_a_link_that_was_planted_beside_it_is_not_written_through(path: Path) -> None:
    theirs = path.with_name("far")
    theirs.write_bytes(b"precious")
    path.with_suffix(".new").symlink_to("far")
    with pytest.raises(OSError, match="symbolic links"):
        Journal(path, 1 << 20).begin(kept())
    assert theirs.read_bytes() == b"precious"


def test_one_that_cannot_be_begun_leaves_nothing_beside_it(path: Path) -> None:
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        Journal(path, 1 << 20).begin(kept())
    assert list(path.parent.iterdir()) == [path]


def test_b8_an_append_that_fails_leaves_it_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Journal(path, 1 << 20)
    ours.begin(kept({0: one(0)}))
    write = os.write
    room = [10]

    def full(descriptor: int, data: bytes) -> int:
        count = write(descriptor, bytes(data)[: room[0]])
        room[0] -= count
        if not count:
            raise OSError(28, "No space left on device")
        return count

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        ours.append([(1, one(1))])
    monkeypatch.setattr(os, "write", write)
    ours.append([(2, one(2))])
    ours.close()
    assert Journal(path, 1 << 20).read() == kept({0: one(0), 2: one(2)})


def test_what_is_added_is_synced_before_it_counts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Journal(path, 1 << 20)
    ours.begin(kept())
    synced: list[int] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size)
    )
    ours.append([(1, one(1))])
    assert synced == [path.stat().st_size]
