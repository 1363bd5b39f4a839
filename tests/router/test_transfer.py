"""What is left of a transfer that has ended: its receipt, and no more than that."""

import asyncio
import gc
import logging
import tracemalloc
import weakref

import pytest

from tunnelsync.identity import mac_address
from tunnelsync.protocol import Complete, GetDatasetStream, Init
from tunnelsync.router.transfer import Transfer
from tunnelsync.router.transfers import Transfers
from tunnelsync.settings import KIB, RouterSettings
from tunnelsync.transfer import Outcome, State

MAC = mac_address("cc-28-aa-00-11-22")
SETTINGS = RouterSettings()
MANY = 1000
RECEIPT_BYTES = 2.5 * KIB
"""What ``receipts`` in the settings says that each costs, with some room."""


def streamed(transfers: Transfers, number: int) -> Transfer:
    """Return a transfer that was streamed to its end."""
    request_id = f"{number:032x}"
    command = GetDatasetStream(request_id, f"dataset {number}")
    transfer = Transfer(command, MAC, command.dataset_name, "stream", SETTINGS, transfers.retire)
    transfers.add(transfer, 0)
    transfer.on_ack()
    transfer.on_init(Init(request_id, 200, 10, f"10-{number}-{number}", 10))
    transfer.wrote(10)
    transfer.last_byte()
    transfer.on_complete(Complete(request_id, f"blake3-4m:{number:064x}", 1))
    assert transfer.state is State.ENDED
    return transfer


async def test_no_timer_holds_a_transfer_that_has_ended() -> None:
    transfers = Transfers(SETTINGS)
    ended = weakref.ref(streamed(transfers, 1))
    assert ended() is not None
    transfers.past.clear()
    gc.collect()
    assert ended() is None


async def test_a_receipt_that_is_kept_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the test runner captures of the log is not the router's.
    monkeypatch.setattr(logging.getLogger("tunnelsync.router"), "disabled", True)
    transfers = Transfers(SETTINGS)
    streamed(transfers, 0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1, MANY + 1):
            streamed(transfers, number)
        await asyncio.sleep(0)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(transfers.past) == MANY + 1
    assert (after - before) / MANY < RECEIPT_BYTES


async def test_who_asks_for_the_end_of_an_ended_transfer_need_not_wait() -> None:
    transfer = streamed(Transfers(SETTINGS), 1)
    async with asyncio.timeout(0):
        await transfer.ended.wait()


async def test_who_waits_for_the_end_is_woken_by_it() -> None:
    transfers = Transfers(SETTINGS)
    command = GetDatasetStream("0" * 32, "dataset")
    transfer = Transfer(command, MAC, "dataset", "stream", SETTINGS, transfers.retire)
    waiting = asyncio.create_task(transfer.ended.wait())
    await asyncio.sleep(0)
    with pytest.raises(asyncio.InvalidStateError):
        waiting.result()
    transfer.end(Outcome.CANCELLED)
    assert await waiting
