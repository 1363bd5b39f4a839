"""Small answers on their way to the router, in one request where several are ready.

Few requests are open at a time, and what becomes ready meanwhile goes with the next one: so an
answer that is alone leaves at once, and under load one request carries many. What is not taken
this way for any reason is given by itself, as a large answer is.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tunnelsync.batch import Item, pack

log = logging.getLogger("tunnelsync.connector")

OPEN_REQUESTS = 2
"""On a long line, half a round trip is the most that an answer waits for another one."""
LEAST_ITEMS = 4
"""A batch has room for so many: a longer answer would keep the others waiting, and goes alone."""
GONE = frozenset({404, 410})
"""Statuses that mean that nobody waits for this request any more."""

_Waiting = tuple[str, bytes, asyncio.Future[bool]]
"""The request id of an item, its bytes, and what hears whether they were taken."""
Refused = Mapping[str, int]
Post = Callable[[Sequence[bytes]], Awaitable[Refused | None]]
"""Sends a batch; returns the statuses of the items that are refused, or None if all are."""


class Batch:
    """The answers that wait; ``limit_bytes`` is what the router takes in one body, 0 for none."""

    def __init__(self, post: Post) -> None:
        self.limit_bytes = 0
        self._post = post
        self._waiting: deque[_Waiting] = deque()
        self._requests: set[asyncio.Task[None]] = set()

    def has_room(self, size_bytes: int) -> bool:
        """Tell whether an answer of this size may go together with others."""
        return self.limit_bytes > 0 and size_bytes * LEAST_ITEMS <= self.limit_bytes

    async def give(self, item: Item, body: bytes) -> bool:
        """Give an answer; False if the router did not take it, so that it must go by itself."""
        given: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((item.request_id, pack(item, body), given))
        if len(self._requests) < OPEN_REQUESTS:
            task = asyncio.create_task(self._send())
            self._requests.add(task)
        return await given

    def stop(self) -> None:
        """The router takes none: give none until it says otherwise, nor what waits."""
        self.limit_bytes = 0
        while self._waiting:
            _, _, given = self._waiting.popleft()
            if not given.done():
                given.set_result(False)

    async def close(self) -> None:
        """Send no more; what waits is not taken."""
        tasks = tuple(self._requests)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self) -> None:
        """Send what waits, one batch after the other, until nothing does."""
        try:
            while batch := self._next():
                await self._send_one(batch)
        finally:
            # Now, not when the task is seen to be done: what is given in between needs another.
            self._requests = {one for one in self._requests if one is not asyncio.current_task()}

    async def _send_one(self, batch: Sequence[_Waiting]) -> None:
        refused: Refused | None = None
        try:
            refused = await self._post([data for _, data, _ in batch])
        except Exception:
            log.exception("a defect in the connector: a batch is given one by one")
        finally:
            for request_id, _, given in batch:
                if not given.done():
                    status = None if refused is None else refused.get(request_id, 200)
                    given.set_result(status == 200 or status in GONE)

    def _next(self) -> list[_Waiting]:
        """Take what goes into one body: the first ones that wait."""
        batch: list[_Waiting] = []
        size = 0
        while self._waiting:
            _, data, given = self._waiting[0]
            if batch and size + len(data) > self.limit_bytes:
                break
            one = self._waiting.popleft()
            if not given.done():  # else its command was cancelled
                batch.append(one)
                size += len(data)
        return batch
