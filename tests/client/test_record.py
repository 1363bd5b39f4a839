"""The receipt of a fetch: bounded, and right about what it does not list."""

import time

import pytest

from played_router import MAC
from tunnelsync.client.incoming import Part
from tunnelsync.client.record import TRANSFERS, Asked, Record
from tunnelsync.errors import DatasetChanged
from tunnelsync.frames import Claimed
from tunnelsync.identity import mac_address
from tunnelsync.protocol import Mode
from tunnelsync.transfer import Outcome


def test_of_many_transfers_the_last_are_listed_and_all_are_counted() -> None:
    record = Record()
    record.ask(Asked("http://127.0.0.1:8080/", mac_address(MAC), "d", Mode.STREAM))
    for number in range(TRANSFERS + 7):
        with record.transfer(Part(first=number)) as one:
            one.count(Claimed(number, (b"abc", b"de"), bytes(32)))
        record.note(f"note {number}")
    receipt = record.receipt()
    assert [one.first_block for one in receipt.transfers] == list(range(7, TRANSFERS + 7))
    assert receipt.notes == tuple(f"note {number}" for number in range(7, TRANSFERS + 7))
    assert receipt.received_bytes == 5 * (TRANSFERS + 7)


def test_the_first_byte_of_several_streams_is_the_earliest() -> None:
    record, now = Record(), time.perf_counter()
    for at in (None, now + 2, now + 1, None):
        with record.transfer(Part()) as one:
            record.first_byte(one, at)
    assert record.first_byte_seconds == record.transfers[2].first_byte_seconds


@pytest.mark.parametrize(("blocks", "outcome"), [(0, Outcome.REFUSED), (1, Outcome.BROKEN)])
def test_what_ends_before_its_first_block_is_refused_and_after_it_broken(
    blocks: int, outcome: Outcome
) -> None:
    record = Record()
    with pytest.raises(DatasetChanged), record.transfer(Part()) as one:
        for number in range(blocks):
            one.count(Claimed(number, (b"abc",), bytes(32)))
        raise DatasetChanged("it changed")
    assert [one.outcome for one in record.transfers] == [outcome]
