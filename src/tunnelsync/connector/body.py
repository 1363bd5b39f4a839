"""The body of a stream, which can be sent from any of its bytes: blocks as frames, or plain.

A block is read whole, and its digest made, before a byte of it is sent: so reading fails between
frames, never within one. One block is read ahead while another is being sent.
"""

import asyncio
from collections.abc import AsyncGenerator

from tunnelsync import frames
from tunnelsync.connector.outgoing import PIECE_BYTES, Piece, Span, between, slices
from tunnelsync.connector.source import Block, Source, Spanned
from tunnelsync.frames import BLOCK_BYTES, DIGEST_BYTES, FRAME_OVERHEAD_BYTES
from tunnelsync.protocol import Coding, Complete


class Body:
    """A part of a dataset as it is sent; offset and length are those in the dataset, in bytes.

    ``length`` is the body's, ``count`` its number of blocks. With ``from_file`` the kernel sends
    what frames carry: an edit in the moment between reading and sending shows in the digest,
    which plain bytes do not have. Call `close` when done with it.
    """

    def __init__(
        self,
        source: Source,
        offset: int,
        length: int,
        coding: Coding,
        *,
        from_file: bool = False,
    ) -> None:
        self.count = frames.block_count(length)
        self._source = source
        self._offset = offset
        self._data_length = length
        self._framed = coding is Coding.BLOCKS
        self._from_file = from_file and self._framed
        self.length = frames.framed_length(length) if self._framed else length
        self._step = BLOCK_BYTES + (FRAME_OVERHEAD_BYTES if self._framed else 0)
        self._digests = bytearray()
        self._reads: dict[int, asyncio.Task[Block | Spanned]] = {}

    async def prepare(self) -> None:
        """Read the first block, so that what fails at once fails before anything is sent."""
        if self.count:
            self._note(0, await self._block(0))

    def closing(self, request_id: str) -> Complete | None:
        """Return the closing word, or None while there are blocks to read."""
        if len(self._digests) < self.count * DIGEST_BYTES:
            return None
        if self._framed or self._data_length == self._source.size:
            return Complete(request_id, self._root(), self.count)
        return Complete(request_id)

    async def whole(self) -> bytes | None:
        """Return all of the body if that takes no reading, else None."""
        if not self.length:
            return b""
        if self.count and not self._source.held(self._offset, self._data_length):
            return None
        return b"".join(piece for piece in await self._frame(0) if not isinstance(piece, Span))

    async def pieces(self, start: int, end: int) -> AsyncGenerator[Piece, None]:
        """Yield the bytes of the body from ``start`` to ``end``.

        Raises `DatasetChanged` or `ReadFailed`; the dataset is seen to be unchanged before each
        block is yielded, and so before the last one.
        """
        # What follows the last block belongs to its frame, however short that block is.
        index = min(start // self._step, max(0, self.count - 1))
        skip = start - index * self._step
        left = end - start
        while left > 0:
            for piece in slices(await self._frame(index)):
                size = len(piece)
                if skip >= size:
                    skip -= size
                    continue
                if skip or left < size - skip:
                    piece = between(piece, skip, skip + left)
                    skip = 0
                left -= len(piece)
                if len(piece):
                    try:
                        yield piece
                    except GeneratorExit:
                        if isinstance(piece, Span):
                            self._reads.pop(index, None)  # the file may have been cut short
                        raise
            index += 1

    async def close(self) -> None:
        """Stop reading."""
        for task in self._reads.values():
            task.cancel()
        await asyncio.gather(*self._reads.values(), return_exceptions=True)
        self._reads.clear()

    async def _frame(self, index: int) -> list[Piece]:
        """Return the parts of one frame; the end frame goes with the last block."""
        parts: list[Piece] = []
        if index < self.count:
            block = await self._block(index)
            self._note(index, block)
            if not self._framed:
                return [block.data]
            parts = [frames.encode_head(len(block.data)), block.data, block.digest]
        if index >= self.count - 1:
            parts.append(frames.encode_end(self.count, self._root()))
        return parts

    def _note(self, index: int, block: Block | Spanned) -> None:
        self._digests[index * DIGEST_BYTES :] = block.digest

    def _root(self) -> str:
        return frames.root([bytes(self._digests)])

    async def _block(self, index: int) -> Block | Spanned:
        """Return a block, and have the next one read meanwhile; no others are kept."""
        if self.count == 1 and (held := self._source.held(self._offset, self._data_length)):
            return held
        for old in set(self._reads) - {index, index + 1}:
            self._reads.pop(old).cancel()
        for wanted in (index, index + 1):
            if wanted < self.count and wanted not in self._reads:
                self._reads[wanted] = asyncio.create_task(self._read(wanted))
        reading = self._reads[index]
        await asyncio.wait({reading})  # cancelled, it leaves the block to the next chunk request
        if reading.exception() is not None:
            del self._reads[index]
        return reading.result()

    async def _read(self, index: int) -> Block | Spanned:
        at = index * BLOCK_BYTES
        length = min(BLOCK_BYTES, self._data_length - at)
        if self._from_file and length > PIECE_BYTES:
            return await self._source.span(self._offset + at, length)
        return await self._source.block(self._offset + at, length)
