"""What runs, and what has ended: one `Transfer` for each request, and the receipts.

A transfer is driven from two sides, the client's handler that waits for it and the
connector's posts that feed it; both only ever move it along the table in ``transfer.py``.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import StreamReader

from tunnelsync import protocol
from tunnelsync.errors import (
    BadRequest,
    Cancelled,
    ConnectorOffline,
    ConnectorReplaced,
    Conflict,
    Forbidden,
    RouterBusy,
    Stalled,
    TimedOut,
    TransferGone,
    TransferUnknown,
    TunnelSyncError,
    WrongOffset,
)
from tunnelsync.identity import Mac
from tunnelsync.settings import RouterSettings
from tunnelsync.transfer import Event, Outcome, State, move

log = logging.getLogger("tunnelsync.router")

RESCHEDULE_SECONDS = 0.5
"""A deadline that is this fresh is not moved again, which keeps the relay's loop lean."""


@dataclass(slots=True)
class Chunk:
    """One chunk request: its head is parsed, its body is not read yet."""

    offset: int
    length: int | None
    content: StreamReader
    abort: Callable[[], None]
    done: asyncio.Future[None]
    detached: bool = False

    def finish(self, error: TunnelSyncError | None = None) -> None:
        """Let the chunk request be answered."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class ResultBody:
    """A whole result, in the pieces in which it came, and its digest for comparison."""

    parts: tuple[bytes, ...]
    size: int
    digest: bytes

    def joined(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.parts)


@dataclass(slots=True)
class Said:
    """What the connector has said so far, kept to compare it with what it says again."""

    init: protocol.Init | None = None
    complete: protocol.Complete | None = None
    result: bytes | None = None


class Transfer:
    """One request's life at the router. See ``transfer.py`` for its states."""

    def __init__(
        self,
        command: protocol.Command,
        mac: Mac,
        dataset: str,
        mode: str,
        settings: RouterSettings,
        on_end: Callable[["Transfer"], None],
    ) -> None:
        self.command = command
        self.request_id = command.request_id
        self.mac = mac
        self.dataset = dataset
        self.mode = mode
        self.mode_used: str | None = None if mode == protocol.Mode.AUTO else mode
        self.state = State.SENT
        self.outcome: Outcome | None = None
        self.error: TunnelSyncError | None = None
        self.said = Said()
        self.taken = 0
        self.written = 0
        self.progress: protocol.Progress | None = None
        self.ended = asyncio.Event()
        self.connector_spoke_last = False
        self._settings = settings
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[protocol.Init | ResultBody] = self._loop.create_future()
        self._chunks: deque[Chunk] = deque()
        self._chunk_arrived = asyncio.Event()
        self._stop: tuple[int, TunnelSyncError] | None = None
        self._failure: TunnelSyncError | None = None
        self._deadline: asyncio.Timeout | None = None
        self._expected = ""
        self._seconds = 0.0
        self._scheduled = 0.0
        self._started = self._loop.time()
        self._started_unix = time.time()
        self._first_byte: float | None = None
        self._ended_at: float | None = None
        self._etag: str | None = None
        self._root: str | None = None
        self._size: int | None = None

    # --- the client's side ------------------------------------------------------------------

    async def reply(self) -> protocol.Init | ResultBody:
        """Wait for the connector's first answer: an init, or a whole result.

        Raises the connector's error, `ConnectorOffline`, or `TimedOut`.
        """
        async with self.within(self._settings.ack_seconds, "acknowledge the command"):
            return await self._reply

    @asynccontextmanager
    async def within(self, seconds: float, expected: str) -> AsyncIterator[None]:
        """Run a wait under the transfer's deadline; `fail` ends it at once with its error."""
        if self._failure is not None:
            raise self._failure
        try:
            async with asyncio.timeout(None) as self._deadline:
                self._scheduled = 0.0
                self.expect(seconds, expected)
                yield
        except TimeoutError:
            raise self._failure or self._too_late() from None
        finally:
            self._deadline = None

    def _too_late(self) -> TunnelSyncError:
        kind = Stalled if self.state in (State.FLOWING, State.RELAYED) else TimedOut
        who, what = ("", self._expected) if " did " in self._expected else (
            f"connector {self.mac} did not ",
            self._expected,
        )
        return kind(f"{who}{what} within {self._seconds:g} s (dataset {self._name})")

    @property
    def _name(self) -> str:
        return protocol.printable(self.dataset)

    def expect(self, seconds: float, expected: str) -> None:
        """Say what is waited for from now on, and for how long; a sign of life renews it."""
        self._seconds, self._expected = seconds, expected
        self.alive()

    def alive(self) -> None:
        """Renew the deadline of the wait under way."""
        now = self._loop.time()
        due = now + self._seconds
        if self._deadline is None or self._deadline.expired():
            return
        set_for = self._deadline.when()
        if set_for is None or not 0 <= due - set_for < RESCHEDULE_SECONDS:
            self._deadline.reschedule(due)

    def fail(self, error: TunnelSyncError) -> None:
        """End the wait under way, or the next one, with this error; the first one stands."""
        if self._failure is None:
            self._failure = error
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(self._loop.time())

    def wrote(self, count: int) -> None:
        """Count bytes that went to the client."""
        if self._first_byte is None:
            self._first_byte = self._loop.time()
        self.written += count

    def last_byte(self) -> None:
        """Note that the whole answer has gone to the client."""
        if self._first_byte is None:
            self._first_byte = self._loop.time()
        self.state = move(self.state, Event.LAST_BYTE)
        if self.state is State.ENDED:
            self._over(Outcome.DELIVERED, None)
        else:
            seconds = self._settings.complete_seconds
            self._loop.call_later(seconds, self.end, Outcome.DELIVERED)
            for chunk in self._chunks:
                chunk.finish()

    async def next_chunk(self) -> Chunk:
        """Wait for the chunk request that goes on where the transfer stands."""
        while not self._chunks:
            if self._stop is not None:
                raise self._stop[1]
            self._chunk_arrived.clear()
            await self._chunk_arrived.wait()
        return self._chunks[0]

    def drop_chunk(self, chunk: Chunk) -> None:
        """Take a chunk request off the queue, read or broken."""
        if chunk in self._chunks:
            self._chunks.remove(chunk)

    def take(self, count: int) -> None:
        """Count bytes taken off the upload; raise the connector's error once all it sent is in."""
        self.taken += count

    def check_stop(self) -> None:
        """Raise the error that the connector ended with, once all that it sent has gone on."""
        if self._stop is not None and self.taken >= self._stop[0]:
            raise self._stop[1]

    # --- the connector's side ---------------------------------------------------------------

    def on_ack(self) -> None:
        """The connector has the command: from here on, its signs of life count."""
        was, self.state = self.state, move(self.state, Event.ACK)
        if was is State.SENT:
            self.expect(self._settings.answer_seconds, "answer")

    def on_progress(self, progress: protocol.Progress) -> None:
        """A sign of life from the connector."""
        self.progress = progress
        self.alive()

    def on_result(self, body: ResultBody, error: TunnelSyncError | None) -> None:
        """A whole result, or the error in its place. The same again is taken for the first."""
        if self.said.result is not None or self.state is State.ENDED:
            self.same_result(body.digest)
            return
        self.state = move(self.state, Event.RESULT)
        self.said.result = body.digest
        self.connector_spoke_last = True
        if not self._reply.done():
            if error is not None:
                self._reply.set_exception(error)
                self._reply.exception()
            else:
                self._reply.set_result(body)

    def same_result(self, digest: bytes) -> None:
        """Raise `Conflict` unless this is the result that came first."""
        _same(self.said.result, digest, "result")

    def on_init(self, init: protocol.Init) -> None:
        """The status and headers of a streamed answer. The same again changes nothing."""
        if self.said.init is not None or self.state is State.ENDED:
            _same(self.said.init, init, "init")
            return
        if init.status not in (200, 206, 304, 412, 416) or min(init.size, init.length) < 0:
            raise BadRequest("an init with an impossible status, size or length")
        self.state = move(self.state, Event.INIT)
        self.said.init = init
        self._size, self._etag = init.size, init.etag
        if not self._reply.done():
            self._reply.set_result(init)

    def on_chunk(self, chunk: Chunk) -> None:
        """Queue a chunk request if it starts where it must, else raise `WrongOffset`."""
        if self.state is State.ENDED:
            raise TransferGone(f"transfer {self.request_id} has ended")
        init = self.said.init
        if init is None:
            raise Conflict("a chunk came before the init")
        right = self.next_offset
        if chunk.offset != right or len(self._chunks) >= self._settings.chunk_queue:
            raise WrongOffset(f"the transfer stands at {right}, the chunk at {chunk.offset}")
        if chunk.length is not None and chunk.offset + chunk.length > init.length:
            raise BadRequest(f"the chunk goes past the length of {init.length} bytes")
        if self.state is not State.RELAYED:
            self.state = move(self.state, Event.CHUNK)
            self._chunks.append(chunk)
            self._chunk_arrived.set()
        else:
            chunk.finish()

    @property
    def next_offset(self) -> int:
        """Where the next chunk must start: behind the last one in the queue."""
        if not self._chunks:
            return self.taken
        last = self._chunks[-1]
        return self.taken if last.length is None else last.offset + last.length

    def detach(self) -> int:
        """Drop the chunk requests there are, and return the offset to go on from."""
        for chunk in self._chunks:
            chunk.detached = True
            chunk.finish(WrongOffset("the transfer goes on with another chunk request"))
            chunk.abort()
        self._chunks.clear()
        return self.taken

    def on_complete(self, complete: protocol.Complete) -> None:
        """The connector's closing word, or its error. The same again changes nothing."""
        if self.said.complete is not None:
            _same(self.said.complete, complete, "complete")
            return
        if self.state is State.ENDED:
            raise TransferGone(f"transfer {self.request_id} has ended")
        if complete.error is None:
            self.state = move(self.state, Event.COMPLETE)
            self.said.complete = complete
            self._root = complete.root
            self.connector_spoke_last = True
            self._over(Outcome.DELIVERED, None)
            return
        if self.state not in (State.FLOWING, State.RELAYED):
            raise Conflict(f"an error after init came while the transfer is {self.state}")
        self.said.complete = complete
        self.connector_spoke_last = True
        error = complete.error.error()
        if complete.sent is not None and complete.sent > self.taken and self._chunks:
            self._stop = (complete.sent, error)
        else:
            self.fail(error)

    # --- the end ----------------------------------------------------------------------------

    def end(self, outcome: Outcome, error: TunnelSyncError | None = None) -> None:
        """End the transfer, unless it has ended. Chunk requests are refused with 410."""
        if self.state is State.ENDED:
            return
        self.state = move(self.state, Event.END)
        self._over(outcome, error)

    def end_with(self, error: TunnelSyncError) -> None:
        """End with the outcome that the error means; what was relayed whole is delivered."""
        if self.state is State.RELAYED:
            return
        if isinstance(error, Cancelled):
            outcome = Outcome.CANCELLED
        elif isinstance(error, ConnectorOffline | ConnectorReplaced):
            outcome = Outcome.OFFLINE
        elif isinstance(error, TimedOut):
            outcome = Outcome.TIMED_OUT
        elif self.said.init is None:
            outcome = Outcome.REFUSED
        else:
            outcome = Outcome.BROKEN
        self.end(outcome, error)

    def _over(self, outcome: Outcome, error: TunnelSyncError | None) -> None:
        self.state = State.ENDED
        self.outcome, self.error = outcome, error
        self._ended_at = self._loop.time()
        for chunk in self._chunks:
            if outcome is Outcome.DELIVERED:
                chunk.finish()
            else:
                chunk.finish(TransferGone(f"transfer {self.request_id} has ended: {outcome}"))
        self._chunks.clear()
        if not self._reply.done():
            self._reply.cancel()
        self.ended.set()
        self._on_end(self)

    def describe(self, *, size: int, etag: str, root: str | None = None) -> None:
        """Note what an answer says of the dataset, for the receipt."""
        self._size, self._etag, self._root = size, etag, root

    def receipt(self) -> protocol.Receipt:
        """Return what can be said of the transfer now."""
        until = self._ended_at or self._loop.time()
        first = self._first_byte
        return protocol.Receipt(
            request_id=self.request_id,
            mac=self.mac,
            dataset=self.dataset,
            mode=self.mode,
            mode_used=self.mode_used,
            state=self.state,
            outcome=self.outcome,
            error=protocol.Problem.of(self.error) if self.error else None,
            progress=self.progress.state if self.progress else None,
            progress_done=self.progress.done if self.progress else 0,
            size=self._size,
            etag=self._etag,
            root=self._root,
            bytes=self.written,
            started_unix=self._started_unix,
            first_byte_seconds=None if first is None else round(first - self._started, 6),
            seconds=round(until - self._started, 6),
        )


def _same(first: object, again: object, what: str) -> None:
    if first is None:
        raise TransferGone(f"the transfer has ended without this {what}")
    if first != again:
        raise Conflict(f"another {what} came first for this transfer")


@dataclass(slots=True)
class Transfers:
    """All transfers that run, and the receipts of those that ended, both bounded."""

    settings: RouterSettings
    running: dict[str, Transfer] = field(default_factory=dict)
    past: OrderedDict[str, tuple[float, Transfer]] = field(default_factory=OrderedDict)

    def add(self, transfer: Transfer) -> None:
        """Take in a new transfer, or raise `RouterBusy`."""
        if len(self.running) >= self.settings.transfers:
            raise RouterBusy(
                f"{len(self.running)} transfers are under way",
                retry_after_seconds=self.settings.retry_after_seconds,
            )
        self.running[transfer.request_id] = transfer

    def retire(self, transfer: Transfer) -> None:
        """Move a transfer that has ended to the receipts, and drop the oldest of them."""
        self.running.pop(transfer.request_id, None)
        now = time.monotonic()
        self.past[transfer.request_id] = (now, transfer)
        while self.past:
            since, _ = next(iter(self.past.values()))
            young = now - since < self.settings.receipt_seconds
            if young and len(self.past) <= self.settings.receipts:
                break
            self.past.popitem(last=False)

    def find(self, request_id: str) -> Transfer:
        """Return a transfer by its id, running or past, or raise `TransferUnknown`."""
        if request_id in self.running:
            return self.running[request_id]
        since, transfer = self.past.get(request_id, (0.0, None))
        if transfer is None or time.monotonic() - since >= self.settings.receipt_seconds:
            raise TransferUnknown(f"no transfer has the request id {request_id[:64]!r}")
        return transfer

    def claim(self, request_id: str, mac: Mac | None) -> Transfer:
        """Return the transfer that this connector was given, or raise `Forbidden`."""
        transfer = self.find(request_id)
        if mac != transfer.mac:
            log.warning(
                "refused: connector %s answered request %s of %s", mac, request_id, transfer.mac
            )
            raise Forbidden(f"request {request_id} was not sent to {mac or 'an unnamed connector'}")
        return transfer
