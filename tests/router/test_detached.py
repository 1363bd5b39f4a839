"""An answer that nobody comes for: it is let go of, and only its receipt stays."""

import asyncio
import gc

from aiohttp import web

from tunnelsync import protocol
from tunnelsync.identity import mac_address
from tunnelsync.router.detached import Detached
from tunnelsync.router.said import Reply, ResultBody
from tunnelsync.router.transfer import Transfer
from tunnelsync.settings import RouterSettings
from tunnelsync.transfer import Outcome

MAC = mac_address("cc-28-aa-00-11-22")


async def deliver(_: web.Request, __: Transfer, ___: Reply) -> web.StreamResponse:
    raise AssertionError


async def test_an_answer_that_nobody_fetches_is_not_kept_with_its_receipt() -> None:
    receipts: list[Transfer] = []
    command = protocol.GetDataset("r", "d")
    transfer = Transfer(command, MAC, "d", "buffer", RouterSettings(), receipts.append)
    kept = Detached(transfer, deliver, 0.05)
    transfer.on_result(ResultBody.of([data := b"x" * 1000]), None)
    await asyncio.wait_for(transfer.ended.wait(), 20)
    assert kept.settled.is_set()
    del kept
    await asyncio.sleep(0)
    gc.collect()
    assert receipts == [transfer]
    assert transfer.outcome is Outcome.CANCELLED
    held = [one for one in gc.get_objects() if isinstance(one, ResultBody)]
    assert data not in [one.joined() for one in held]


async def test_as_long_as_anybody_asks_for_it_it_is_kept() -> None:
    command, seconds = protocol.GetDataset("r", "d"), 0.05
    transfer = Transfer(command, MAC, "d", "buffer", RouterSettings(), lambda _: None)
    kept = Detached(transfer, deliver, seconds)
    with kept.asked_for():
        with kept.asked_for():
            pass
        await asyncio.sleep(4 * seconds)
        assert not transfer.ended.is_set()
    await asyncio.wait_for(transfer.ended.wait(), 20)
    assert transfer.outcome is Outcome.CANCELLED
