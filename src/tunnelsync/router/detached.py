"""A transfer that outlives its request: answered 202, and kept for a client that comes again.

Its deadlines go on as if the request were waiting. It ends like one whose client left when
nobody asks for it, or comes for the answer, within its time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from tunnelsync.errors import Cancelled
from tunnelsync.router.said import Reply
from tunnelsync.router.switchboard import ending
from tunnelsync.router.transfer import Transfer

Deliver = Callable[[web.Request, Transfer, Reply], Awaitable[web.StreamResponse]]
"""Answers a request with what a connector has replied, as the mode of the transfer wants it."""


class Detached:
    """A transfer whose client asks again; ``settled`` once its answer is ready, or it ended."""

    def __init__(self, transfer: Transfer, deliver: Deliver, seconds: float) -> None:
        self.settled = asyncio.Event()
        self.result: str | None = None
        self._transfer = transfer
        self._deliver = deliver
        self._seconds = seconds
        self._asking = 0
        self._attached = asyncio.Event()
        self._forgotten = self._soon()
        transfer.at_end(self._end)
        self._keeper = asyncio.create_task(self._keep())
        self._keeper.add_done_callback(_seen)

    @contextmanager
    def asked_for(self) -> Iterator[None]:
        """Keep it while somebody asks. A ready answer is not kept longer by that."""
        self._asking += 1
        self._forgotten.cancel()
        try:
            yield
        finally:
            self._asking -= 1
            waits = not self.settled.is_set() and not self._attached.is_set()
            if waits and not self._asking:
                self._forgotten = self._soon()

    async def attach(self, request: web.Request) -> web.StreamResponse:
        """Answer a request with it, or its error; from now on it ends with that request."""
        self._forgotten.cancel()
        self._attached.set()
        with ending(self._transfer):
            return await self._deliver(request, self._transfer, await self._keeper)

    async def _keep(self) -> Reply:
        """Wait for the reply, and then for the request that attaches."""
        transfer = self._transfer
        with ending(transfer):
            # Not kept here: an error's frames would hold it for as long as the receipt lives.
            await transfer.reply()
            self.result = f"/transfers/{transfer.request_id}/result"
            self._forgotten.cancel()
            self.settled.set()
            try:
                async with transfer.deadline.within(self._seconds, "its client"):
                    await self._attached.wait()
            except TimeoutError:
                raise Cancelled(f"nobody came for the answer within {self._seconds:g} s") from None
            return await transfer.reply()

    def _soon(self) -> asyncio.TimerHandle:
        left = Cancelled(f"nobody asked for the transfer for {self._seconds:g} s")
        loop = asyncio.get_running_loop()
        return loop.call_later(self._seconds, self._transfer.deadline.fail, left)

    def _end(self) -> None:
        self._forgotten.cancel()
        self.settled.set()


def _seen(keeper: "asyncio.Task[Reply]") -> None:
    if not keeper.cancelled():
        keeper.exception()  # told by the receipt, if nobody attaches
