"""The chunk requests of one transfer: a bounded queue of uploads whose bodies are not read yet.

Offsets are in bytes of the transfer's body, and mean what was taken off an upload's socket.
What was taken belongs to the transfer: it is written to the client before more is read.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from tunnelsync.errors import BadRequest, TunnelSyncError, WrongOffset


@dataclass(slots=True, eq=False)
class Chunk:
    """One chunk request: its head is parsed, its body is not read yet.

    ``spliced`` says that its body did not pass through us, so its connection must end with it.
    """

    offset: int
    length: int | None
    content: StreamReader
    abort: Callable[[], None]
    done: asyncio.Future[None]
    protocol: BaseProtocol | None = None
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

    ``taken`` counts the bytes taken off the uploads so far.
    """

    limit: int
    taken: int = 0
    _chunks: deque[Chunk] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _last: tuple[int, TunnelSyncError] | None = None

    @property
    def next_offset(self) -> int:
        """Where the next chunk must start: behind the last one in the queue."""
        if not self._chunks:
            return self.taken
        last = self._chunks[-1]
        return self.taken if last.length is None else last.offset + last.length

    def put(self, chunk: Chunk, body_bytes: int) -> None:
        """Queue a chunk request if it starts where it must, else raise `WrongOffset`."""
        self.check_offset(chunk)
        if chunk.length is not None and chunk.offset + chunk.length > body_bytes:
            raise BadRequest(f"the chunk goes past the length of {body_bytes} bytes")
        self._chunks.append(chunk)
        self._arrived.set()

    def check_offset(self, chunk: Chunk) -> None:
        """Raise `WrongOffset` unless a chunk starts where it must, and there is room for it."""
        right = self.next_offset
        unknown = bool(self._chunks) and self._chunks[-1].length is None
        if chunk.offset != right or unknown or len(self._chunks) >= self.limit:
            raise WrongOffset(f"the transfer stands at {right}, the chunk at {chunk.offset}")

    async def next(self) -> Chunk:
        """Wait for the chunk request that goes on where the transfer stands."""
        while not self._chunks:
            self.check_stop()
            self._arrived.clear()
            await self._arrived.wait()
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
        if sent <= self.taken or not self._chunks:
            return False
        self._last = (sent, error)
        return True

    def check_stop(self) -> None:
        """Raise the error that the connector ended with, once all that it sent is taken."""
        if self._last is not None and (self.taken >= self._last[0] or not self._chunks):
            raise self._last[1]

    def finish(self, error: TunnelSyncError | None = None) -> None:
        """Let every chunk request be answered, and forget them."""
        for chunk in self._chunks:
            chunk.finish(error)
        self._chunks.clear()
