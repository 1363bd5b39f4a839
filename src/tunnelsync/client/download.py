"""Blocks from any mode into a sink: proven, written, and never kept when something is wrong.

One thread of its own proves and writes, while the loop goes on receiving; so many blocks wait
between the two as ``blocks_in_hand`` says.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeVar

from tunnelsync.client.incoming import Incoming, Proof
from tunnelsync.client.target import Sink
from tunnelsync.frames import Claimed

Result = TypeVar("Result")
Progress = Callable[[int, int | None], None]
"""Called on the loop with the bytes that are proven and written, and the size, in bytes."""


class FileThread:
    """One thread for one file: what is called in it runs in the order of the calls."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tunnelsync-file")

    def call(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run a function in the thread."""
        return asyncio.get_running_loop().run_in_executor(self._pool, function)

    def close(self) -> None:
        """Let the thread end; does not wait for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def download(
    opened: AbstractAsyncContextManager[Incoming],
    sink: Sink,
    *,
    blocks_in_hand: int,
    progress: Progress | None,
) -> tuple[Incoming, str]:
    """Bring a dataset into a sink, and return what came and its root.

    The sink is opened before the request is sent, and holds nothing after an error or a
    cancellation. Raises what the mode, the proof or the sink raises.
    """
    thread = FileThread()
    try:
        await thread.call(sink.open)
        async with opened as incoming:
            root = await _receive(incoming, sink, thread, blocks_in_hand, progress)
            await thread.call(partial(sink.publish, incoming.modified_ns))
        return incoming, root
    finally:
        if sink.leaves_traces:
            await asyncio.shield(thread.call(sink.discard))
        thread.close()


async def _receive(
    incoming: Incoming,
    sink: Sink,
    thread: FileThread,
    blocks_in_hand: int,
    progress: Progress | None,
) -> str:
    writer = _Writer(incoming.size, sink)
    in_hand: deque[asyncio.Future[int]] = deque()

    async def oldest() -> None:
        done = await in_hand.popleft()
        if progress:
            progress(done, incoming.size)

    try:
        async for claim in incoming.claims:
            in_hand.append(thread.call(partial(writer.take, claim)))
            while len(in_hand) >= max(1, blocks_in_hand):
                await oldest()
        while in_hand:
            await oldest()
    finally:
        for future in in_hand:
            if not future.cancel() and not future.cancelled():
                future.exception()  # the first error is the one that is told
    return writer.proof.finish()


class _Writer:
    """Proves and writes in the thread; after one failure nothing more is written."""

    def __init__(self, size_bytes: int, sink: Sink) -> None:
        self.proof = Proof(size_bytes)
        self._sink = sink
        self._stopped = False

    def take(self, claim: Claimed) -> int:
        """Prove and write a block, and return the bytes written so far."""
        if not self._stopped:
            self._stopped = True
            self._sink.write(self.proof.take(claim))
            self._stopped = False
        return self.proof.bytes
