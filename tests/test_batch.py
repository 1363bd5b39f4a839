"""Several answers in one body: whole after the wire, and no bytes are more than a `BadRequest`."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync.batch import Item, pack, unpack
from tunnelsync.errors import BadRequest
from tunnelsync.protocol import Complete, Init

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(0, 2**62)
inits = st.builds(Init, texts, numbers, numbers, texts, numbers, numbers, numbers)
completes = st.builds(Complete, texts, st.none() | texts, numbers)
items = st.builds(Item, texts, st.none() | inits, st.none() | completes)
batches = st.lists(st.tuples(items, st.binary(max_size=100)), max_size=4)


@given(batches)
def test_what_is_packed_comes_out_again(batch: list[tuple[Item, bytes]]) -> None:
    assert list(unpack(b"".join(pack(item, body) for item, body in batch))) == batch


@given(st.binary() | batches.map(lambda batch: b"".join(pack(*one) for one in batch)), st.data())
def test_no_bytes_are_more_than_a_bad_request(data: bytes, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(data)))
    with suppress(BadRequest):
        list(unpack(data[:cut]))


def test_what_comes_before_a_cut_is_given() -> None:
    first, second = (pack(Item(name), name.encode()) for name in ("r1", "r2"))
    for cut in range(1, len(second)):
        found = unpack(first + second[:cut])
        assert next(found) == (Item("r1"), b"r1")
        with pytest.raises(BadRequest, match="ends within"):
            next(found)
