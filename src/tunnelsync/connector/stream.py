"""Mode stream: one body to the router, by one chunk request where that goes through.

A connection that breaks is no end: the router tells how far it came, and another chunk request
goes on from there. A failure of our own stops between frames with the chunk request still open,
so that what was sent before reaches the client, and then the reason.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from tunnelsync import wire
from tunnelsync.connector import conditions
from tunnelsync.connector.body import Body
from tunnelsync.connector.source import Source
from tunnelsync.connector.upload import GONE, PASSING, Answer, Outgoing, Upload, told
from tunnelsync.errors import (
    BrokenOff,
    PreconditionFailed,
    ProtocolError,
    RangeNotSatisfiable,
    RouterUnreachable,
    Stalled,
    TooLarge,
    TransferGone,
    TunnelSyncError,
    Unsupported,
    WrongOffset,
)
from tunnelsync.frames import Buffer
from tunnelsync.protocol import (
    H_COMPLETE,
    H_INIT,
    Coding,
    Complete,
    Conditions,
    GetDatasetAuto,
    GetDatasetStream,
    Init,
    Problem,
    printable,
)

log = logging.getLogger("tunnelsync.connector")

Report = Callable[[str, int], None]
"""Takes the state of a command in work, and its bytes so far."""
StreamCommand = GetDatasetStream | GetDatasetAuto

MIB = 1024 * 1024
SMALLER_CHUNKS = (64 * MIB, MIB)
"""What is tried when a proxy answers 413: below Cloudflare's limit, then at nginx's default."""


async def send(upload: Upload, command: StreamCommand, source: Source, report: Report) -> None:
    """Send what the command asks for. Whatever it raises, nothing was sent before.

    Raises `PreconditionFailed`, `RangeNotSatisfiable`, `DatasetChanged` or `ReadFailed`.
    """
    init, body = plan(command, source)
    try:
        await body.prepare()
        await _Sending(upload, init, body, report).run()
    finally:
        await body.close()


def require_match(wanted: Conditions, source: Source) -> None:
    """Raise `PreconditionFailed` unless ``If-Match``, if there is one, names this version."""
    only = Conditions(if_match=wanted.if_match)
    if conditions.select(only, size=source.size, etag=source.etag, mtime_ns=0).status == 412:
        raise PreconditionFailed(f"{printable(source.name)} has the etag {source.etag} now")


def plan(command: StreamCommand, source: Source) -> tuple[Init, Body]:
    """Decide on status, part and body; no I/O."""
    if command.coding == Coding.BLOCKS:
        require_match(command.conditions, source)
        offset, length = conditions.block_range(command.offset, command.length, source.size)
        status = 200 if length == source.size else 206
        body = Body(source, offset, length, Coding.BLOCKS)
    elif command.coding == Coding.RAW:
        chosen = conditions.select(
            _ranged(command), size=source.size, etag=source.etag, mtime_ns=source.mtime_ns
        )
        status, offset = chosen.status, chosen.offset
        body = Body(source, offset, chosen.length, Coding.RAW)
    else:
        raise Unsupported(f"this connector does not know the coding {command.coding[:64]!r}")
    init = Init(
        command.request_id,
        status,
        source.size,
        source.etag,
        body.length,
        source.mtime_ns,
        offset,
    )
    return init, body


def _ranged(command: StreamCommand) -> Conditions:
    """Return the conditions, with offset and length as the range that they mean."""
    if command.offset == 0 and command.length is None:
        return command.conditions
    if command.offset < 0 or (command.length is not None and command.length < 1):
        raise RangeNotSatisfiable("a part begins within the dataset and has at least one byte")
    last = "" if command.length is None else command.offset + command.length - 1
    return replace(command.conditions, range=f"bytes={command.offset}-{last}")


class _Sending:
    """One stream on its way: where it stands, and what went wrong."""

    def __init__(self, upload: Upload, init: Init, body: Body, report: Report) -> None:
        self._upload = upload
        self._id = init.request_id
        self._body = body
        self._report = report
        self._sent = 0
        self._broken: asyncio.Future[TunnelSyncError] = asyncio.Future()
        self._headers = {
            "Content-Type": "application/octet-stream",
            H_INIT: wire.dumps(init).decode(),
        }
        self._closed = False
        if (closing := body.closing(self._id)) is not None:
            self._headers[H_COMPLETE] = wire.dumps(closing).decode()

    async def run(self) -> None:
        flow = asyncio.create_task(self._flow())
        try:
            either: set[asyncio.Future[Any]] = {flow, self._broken}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                error = Problem.of(self._broken.result())
                await self._upload.complete(Complete(self._id, error=error, sent=self._sent))
                # The router ends the chunk request when it has relayed what we sent.
                await asyncio.wait({flow}, timeout=self._upload.settings.stall_seconds)
        finally:
            flow.cancel()
            await asyncio.gather(flow, return_exceptions=True)

    async def _flow(self) -> None:
        """Send the body and the closing word, or say why not."""
        try:
            await self._send_all()
            if not self._closed and not self._broken.done():
                closing = self._body.closing(self._id)
                assert closing is not None
                await self._upload.complete(closing)
        except TransferGone as exc:
            log.debug("request %s: %s", self._id, exc.message)
        except Exception as exc:
            self._break(told(exc, self._id))

    async def _send_all(self) -> None:
        """Send chunk requests until the router has the whole body."""
        at, tries, limits = 0, 0, iter(SMALLER_CHUNKS)
        limit = self._body.length
        while not self._broken.done():
            try:
                end = min(self._body.length, at + limit)
                await self._send_chunk(at, end)
                if end == self._body.length:
                    return
                at, tries = end, 0
            except (RouterUnreachable, Stalled, WrongOffset, TooLarge) as exc:
                if isinstance(exc, TooLarge):
                    limit = next((one for one in limits if one < self._body.length - at), 0)
                    if not limit:
                        raise
                if self._broken.done():
                    return
                at, tries = await self._go_on(exc, at, tries)
                if at == self._body.length > 0:
                    return

    async def _go_on(self, error: TunnelSyncError, at: int, tries: int) -> tuple[int, int]:
        """Ask where to go on after a broken chunk request; return that, and the tries in vain."""
        log.debug("request %s: chunk at %d: %s", self._id, at, error.message)
        # Its frames hold what was being sent, in a cycle: blocks of 4 MiB.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        while tries < self._upload.settings.resume_attempts:
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

    async def _send_chunk(self, start: int, end: int) -> None:
        """Send the body from ``start`` to ``end``; return when the router has it."""
        body = Outgoing(self._pieces(start, end), end - start)
        answer = await self._upload.chunk(self._id, start, body, self._headers)
        if answer.status >= 300:
            raise _refusal(answer)
        self._closed = H_COMPLETE in self._headers

    async def _pieces(self, start: int, end: int) -> AsyncGenerator[Buffer, None]:
        """Yield the body; when reading fails, say so and leave the chunk request open."""
        self._sent = start
        try:
            async with aclosing(self._body.pieces(start, end)) as pieces:
                async for piece in pieces:
                    self._sent += len(piece)
                    yield piece
                    self._report("reading", self._sent)
        except Exception as exc:
            self._break(told(exc, self._id))
            await asyncio.Event().wait()

    def _break(self, error: TunnelSyncError) -> None:
        if not self._broken.done():
            log.warning("request %s: broken off: %s", self._id, error.message)
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
