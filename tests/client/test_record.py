"""The receipt of a fetch: bounded, and right about what it does not list."""

from played_router import MAC
from tunnelsync.client.incoming import Part
from tunnelsync.client.record import TRANSFERS, Asked, Record
from tunnelsync.frames import Claimed
from tunnelsync.identity import mac_address
from tunnelsync.protocol import Mode


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
