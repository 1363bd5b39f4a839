"""One stream on its way to the router: by one chunk request where that goes through.

A connection that breaks is no end: the router tells how far it came, and another chunk request
goes on from there. Where a proxy wants smaller ones, two are open at a time: the one that is
relayed, and the one that starts where it ends. A failure of our own stops between frames with
the chunk request still open, so that what was sent before reaches the client, and then the reason.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from tunnelsync import wire
from tunnelsync.connector.batch import GONE
from tunnelsync.connector.body import Body
from tunnelsync.connector.outgoing import Outgoing, Piece
from tunnelsync.connector.upload import BYTES, PASSING, Answer, Upload, told
from tunnelsync.errors import (
    BrokenOff,
    ProtocolError,
    RouterUnreachable,
    Stalled,
    TooLarge,
    TransferGone,
    TunnelSyncError,
    WrongOffset,
)
from tunnelsync.protocol import H_COMPLETE, H_INIT, Complete, Init, Problem

log = logging.getLogger("tunnelsync.connector")

Report = Callable[[str, int], None]
"""Takes the state of a command in work, and its bytes so far."""
OPEN_CHUNKS = 2
"""What a router queues of one transfer."""
TURN_BYTES = 1024 * 1024
"""After so many bytes the others get their turn, for a socket may take a whole block at once."""
LOOK_AGAIN_SECONDS = 1.0
"""How often a router that has the closing word is asked if it needs what was sent before."""


class _ProxyFoundError(Exception):
    """A proxy wants it otherwise, and now we know how: go on at once."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Sending:
    """Sends one body: where it stands, and what went wrong."""

    def __init__(self, upload: Upload, init: Init, body: Body, report: Report) -> None:
        self._upload = upload
        self._proxies = upload.proxies
        self._id = init.request_id
        self._body = body
        self._report = report
        self._sent = 0
        self._broken: asyncio.Future[TunnelSyncError] = asyncio.Future()
        self._headers = {
            **BYTES,
            H_INIT: wire.dumps(init).decode(),
        }
        self._closed = False
        self._handed_over = True
        self._changed = asyncio.Event()
        self._probe: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Send the body and the closing word; returns when that is over, however it ended."""
        flow = asyncio.create_task(self._flow())
        try:
            either: set[asyncio.Future[Any]] = {flow, self._broken}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                error = Problem.of(self._broken.result())
                await self._upload.complete(Complete(self._id, error=error, sent=self._sent))
                with suppress(TimeoutError, TunnelSyncError):
                    async with asyncio.timeout(self._upload.settings.stall_seconds):
                        await self._relayed(flow)
        finally:
            tasks = [flow] if self._probe is None else [flow, self._probe]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _relayed(self, flow: asyncio.Task[None]) -> None:
        """Wait until the router has relayed what was sent before the end, and closes it.

        A proxy that holds a chunk back never closes it; then the router says that it is over.
        """
        while not flow.done():
            await asyncio.wait({flow}, timeout=LOOK_AGAIN_SECONDS)
            if not flow.done():
                await self._upload.sees(self._id, self._sent)

    async def _flow(self) -> None:
        """Send the body and the closing word, or say why not."""
        try:
            await self._send_all()
            if not self._closed and not self._broken.done():
                closing = self._body.closing(self._id)
                assert closing is not None
                await self._upload.complete(closing)
        except TransferGone as exc:
            log.debug("transfer %s: %s", self._id, exc.message)
        except Exception as exc:
            self._break(told(exc, self._id))

    async def _send_all(self) -> None:
        """Send chunk requests until the router has the whole body."""
        at, tries = 0, 0
        while not self._broken.done():
            try:
                await self._send_from(at)
                return
            except (_ProxyFoundError, RouterUnreachable, Stalled, WrongOffset) as exc:
                if self._broken.done():
                    return
                at, tries = await self._go_on(exc, at, tries)
                if at == self._body.length > 0:
                    return

    async def _go_on(
        self, error: TunnelSyncError | _ProxyFoundError, at: int, tries: int
    ) -> tuple[int, int]:
        """Ask where to go on after a broken chunk request; return that, and the tries in vain."""
        log.debug("transfer %s: chunk at %d: %s", self._id, at, error.message)
        # Its frames hold what was being sent, in a cycle: blocks of 4 MiB.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        while tries < self._upload.settings.resume_attempts:
            if not isinstance(error, _ProxyFoundError):
                await self._upload.pause(tries)
                tries += 1
            try:
                offset = await self._upload.offset(self._id)
            except (RouterUnreachable, Stalled) as exc:
                error = exc
                continue
            if offset > self._body.length:
                raise ProtocolError(f"the router has {offset} of {self._body.length} bytes")
            return offset, 0 if offset > at else tries
        self._sent = at
        raise BrokenOff(f"the data connection broke {tries} times at byte {at}: {error.message}")

    async def _send_from(self, at: int) -> None:
        """Send the body from a byte to its end: in one chunk request, or in smaller ones.

        The next one begins when the last byte of one was handed over: the answer takes as long
        as the client does, and the line is not to idle meanwhile.
        """
        length, limit = self._body.length, self._proxies.chunk_bytes
        if limit is None or length - at <= limit:
            await self._send_chunk(at, length)
            return
        after: int | None = None
        chunks: deque[asyncio.Task[None]] = deque()
        self._handed_over = True
        try:
            while at < length or chunks:
                self._changed.clear()
                for chunk in chunks:
                    if chunk.done():
                        chunk.result()
                while chunks and chunks[0].done():
                    del chunks[0]
                if at < length and self._handed_over and len(chunks) < OPEN_CHUNKS:
                    end = min(length, at + limit)
                    chunks.append(asyncio.create_task(self._send_chunk(at, end, after)))
                    chunks[-1].add_done_callback(lambda _: self._changed.set())
                    self._handed_over = False
                    after, at = at, end
                elif chunks:
                    await self._changed.wait()
        finally:
            for chunk in chunks:
                chunk.cancel()
            await asyncio.gather(*chunks, return_exceptions=True)

    async def _send_chunk(self, start: int, end: int, after: int | None = None) -> None:
        """Send the body from ``start`` to ``end``; return when the router has it."""
        headers = self._headers
        closing = self._body.closing(self._id) if end == self._body.length else None
        if closing is not None:
            headers = {**headers, H_COMPLETE: wire.dumps(closing).decode()}
        try:
            async with asyncio.timeout(None) as cut:
                body = Outgoing(self._pieces(start, end, cut), end - start)
                answer = await self._upload.chunk(self._id, start, body, headers, after)
        except TimeoutError:
            raise _ProxyFoundError("a proxy holds the upload back until it is whole") from None
        if answer.status == 413 and self._proxies.refused(end - start):
            raise _ProxyFoundError(f"a proxy refuses a chunk of {end - start} bytes")
        if answer.status >= 300:
            raise _refusal(answer)
        self._closed = closing is not None

    async def _pieces(
        self, start: int, end: int, cut: asyncio.Timeout
    ) -> AsyncGenerator[Piece, None]:
        """Yield the body; when reading fails, say so and leave the chunk request open."""
        self._sent, turn_at = start, start + TURN_BYTES
        limits = self._upload.settings
        probe_at = asyncio.get_running_loop().time() + limits.probe_seconds
        try:
            async with aclosing(self._body.pieces(start, end)) as pieces:
                async for piece in pieces:
                    self._sent += len(piece)
                    yield piece
                    self._report("reading", self._sent)
                    if self._sent >= turn_at:
                        turn_at = self._sent + TURN_BYTES
                        await asyncio.sleep(0)
                    if self._sent - start >= limits.probe_bytes:
                        self._look(start, probe_at, cut)
        except Exception as exc:
            self._break(told(exc, self._id))
            await asyncio.Event().wait()
        self._handed_over = True
        self._changed.set()

    def _look(self, start: int, probe_at: float, cut: asyncio.Timeout) -> None:
        """Ask, once, if the router sees what has been going out for a while."""
        unknown = self._probe is None and self._proxies.holds is None
        if unknown and asyncio.get_running_loop().time() >= probe_at:
            self._probe = asyncio.create_task(self._probed(start, cut))

    async def _probed(self, start: int, cut: asyncio.Timeout) -> None:
        """Learn whether a proxy holds uploads back, and cut this one off if so.

        The head of the chunk request left long before our question did: a router that answers
        the one and has not seen the other is behind something that waits for the end.
        """
        with suppress(TunnelSyncError):
            sees = await self._upload.sees(self._id, start)
            self._proxies.seen(holds=not sees)
            if not sees and not cut.expired():
                cut.reschedule(asyncio.get_running_loop().time())

    def _break(self, error: TunnelSyncError) -> None:
        if not self._broken.done():
            log.warning("transfer %s: broken off: %s", self._id, error.message)
            self._broken.set_result(error)


def _refusal(answer: Answer) -> TunnelSyncError:
    """Return what an answer to a chunk request means for the stream."""
    if answer.status in GONE:
        return TransferGone(f"nobody waits for it any more: {answer}")
    if answer.status == 409 and answer.code in ("", WrongOffset.code):
        return WrongOffset(f"the router answered {answer}")
    if answer.status == 413:
        return TooLarge("a proxy before the router refuses uploads of this size")
    if answer.status in PASSING:
        return RouterUnreachable(f"the router answered {answer}")
    return ProtocolError(f"the router refused the data: {answer}")
