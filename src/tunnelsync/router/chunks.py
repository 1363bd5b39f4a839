"""The chunk requests of one transfer: a bounded queue of uploads whose bodies are not read yet.

Offsets are in bytes of the transfer's body, and mean what was taken off an upload's socket.
What was taken belongs to the transfer: it is written to the client before more is read.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from tunnelsync.errors import BadRequest, TunnelSyncError, WrongOffset


@dataclass(slots=True, eq=False)
class Chunk:
    """One chunk request: its head is parsed, its body is not read yet.

    ``after`` is the offset of the chunk request that it follows, where the connector says so: the
    two come by connections of their own, and so this one may be here first. ``spliced`` says
    that its body did not pass through us, so its connection must end with it.
    """

    offset: int
    length: int | None
    content: StreamReader
    abort: Callable[[], None]
    done: asyncio.Future[None]
    protocol: BaseProtocol | None = None
    after: int | None = None
    detached: bool = False
    spliced: bool = False

    def finish(self, error: TunnelSyncError | None = None) -> None:
        """Let the chunk request be answered."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
            self.done.exception()  # its handler may be gone already

    def splice(self, cut: Callable[[], None]) -> None:
        """Let the body pass by the server; ``cut`` ends it then, for closing no longer does."""
        abort, self.spliced = self.abort, True

        def both() -> None:
            cut()
            abort()

        self.abort = both

    def detach(self) -> None:
        """Break it off: whoever reads it stops, and what it still had to say is not taken."""
        self.detached = True
        self.content.set_exception(ConnectionResetError("another chunk request goes on"))
        self.finish(WrongOffset("the transfer goes on with another chunk request"))
        self.abort()


@dataclass(slots=True)
class ChunkQueue:
    """The chunk requests in order: the one being relayed, and the one that starts where it ends.

    One that came before the one it follows waits for that. ``taken`` counts the bytes taken off
    the uploads so far.
    """

    limit: int
    taken: int = 0
    # A list and a future, for one queue is kept with each receipt: a deque, and an event with
    # another one in it, would be a third of what a receipt costs.
    _chunks: list[Chunk] = field(default_factory=list)
    _arrived: asyncio.Future[None] | None = None
    _last: tuple[int, TunnelSyncError] | None = None

    @property
    def next_offset(self) -> int:
        """Where the next chunk must start: behind the last one that goes on from ``taken``."""
        right = self.taken
        for chunk in self._chunks:
            if chunk.offset > right:
                break
            right = right if chunk.length is None else max(right, chunk.offset + chunk.length)
        return right

    @property
    def ready(self) -> bool:
        """Whether there is a chunk request that goes on where the transfer stands."""
        return bool(self._chunks) and self._chunks[0].offset <= self.taken

    def put(self, chunk: Chunk, body_bytes: int) -> None:
        """Queue a chunk request if it starts where it must, else raise `WrongOffset`."""
        self.check_offset(chunk)
        if chunk.length is not None and chunk.offset + chunk.length > body_bytes:
            raise BadRequest(f"the chunk goes past the length of {body_bytes} bytes")
        if self._chunks and chunk.offset < self._chunks[-1].offset:
            self._chunks.insert(len(self._chunks) - 1, chunk)
        else:
            self._chunks.append(chunk)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def check_offset(self, chunk: Chunk) -> None:
        """Raise `WrongOffset` unless a chunk starts where it must, and there is room for it."""
        right = self.next_offset
        early = chunk.after == right < chunk.offset and not self._early
        late = bool(self._early) and chunk.offset + (chunk.length or 0) != self._chunks[-1].offset
        unknown = bool(self._chunks) and self._chunks[-1].length is None
        wrong = chunk.offset != right and not early
        if wrong or late or unknown or len(self._chunks) >= self.limit:
            raise WrongOffset(f"the transfer stands at {right}, the chunk at {chunk.offset}")

    @property
    def _early(self) -> bool:
        """Whether the last one waits for the one that it follows."""
        return bool(self._chunks) and self._chunks[-1].offset > self.next_offset

    async def next(self) -> Chunk:
        """Wait for the chunk request that goes on where the transfer stands."""
        while not self.ready:
            self.check_stop()
            self._arrived = asyncio.get_running_loop().create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        return self._chunks[0]

    def drop(self, chunk: Chunk) -> None:
        """Take a chunk request off the queue, read or broken."""
        if chunk in self._chunks:
            self._chunks.remove(chunk)

    def detach(self) -> int:
        """Break off the chunk requests there are, and return the offset to go on from."""
        for chunk in self._chunks:
            chunk.detach()
        self._chunks.clear()
        return self.taken

    def stop_after(self, sent: int, error: TunnelSyncError) -> bool:
        """Let what was sent be relayed before the error; False if all of that is taken."""
        if sent <= self.taken or not self.ready:
            return False
        self._last = (sent, error)
        return True

    def check_stop(self) -> None:
        """Raise the error that the connector ended with, once all that it sent is taken."""
        if self._last is not None and (self.taken >= self._last[0] or not self.ready):
            raise self._last[1]

    def finish(self, error: TunnelSyncError | None = None) -> None:
        """Let every chunk request be answered, and forget them."""
        for chunk in self._chunks:
            chunk.finish(error)
        self._chunks.clear()
