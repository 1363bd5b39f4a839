"""One request's life at the router, moved along the table of the top-level ``transfer.py``.

It is driven from two sides: the client's handler, which waits for it and relays, and the
connector's posts, which feed it.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from tunnelsync import protocol
from tunnelsync.errors import (
    BrokenOff,
    Conflict,
    Stalled,
    TimedOut,
    TransferGone,
    TunnelSyncError,
)
from tunnelsync.identity import Mac
from tunnelsync.router.chunks import Chunk, ChunkQueue
from tunnelsync.router.deadline import Deadline
from tunnelsync.router.said import Reply, ResultBody, Said, check, check_names, same
from tunnelsync.settings import RouterSettings
from tunnelsync.transfer import Event, Outcome, State, move, outcome_of

STREAMED = (protocol.GetDatasetStream, protocol.GetDatasetAuto)
CLIENT_TAKES = "the client to take a byte"
"""What is expected while the client's side is the slow one."""
SIGN_OF_LIFE = "its answer, or a sign of life"
ITS_RETURN = "its return"
"""What is expected of a connector whose upload broke."""
STATE_CHARACTERS = 32
"""Of a sign of life, which a receipt keeps."""
ENDED = asyncio.Event()
"""Set: what every transfer that has ended shares."""
ENDED.set()


class Transfer:
    """A request, what became of it so far, and the bytes on their way.

    Thousands are kept for their receipts, so at its end it lets go of all but what those tell.
    """

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
        self.written = 0
        self.progress: protocol.Progress | None = None
        self.whom = ""
        self.ended = asyncio.Event()
        self.connector_knows = False
        self.deadline = Deadline()
        self.chunks = ChunkQueue(settings.chunk_queue)
        self._settings = settings
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[Reply] | None = self._loop.create_future()
        self._started = self._loop.time()
        self._started_unix = time.time()
        self._first_byte: float | None = None
        self._ended_at: float | None = None
        self._etag: str | None = None
        self._root: str | None = None
        self._size: int | None = None
        self._cleanups: list[Callable[[], object]] = []

    # --- the client's side ------------------------------------------------------------------

    async def reply(self) -> Reply:
        """Wait for the connector's first answer: an init, or a whole result.

        Raises the connector's error, `ConnectorOffline`, or `TimedOut`.
        """
        reply = await self.reply_within(None)
        assert reply is not None
        return reply

    async def reply_within(self, patience_seconds: float | None) -> Reply | None:
        """The same; None if it is not there when the patience is over, and may be asked again."""
        if self.state is State.ENDED:
            raise self.error or TransferGone(f"transfer {self.request_id} has ended")
        seconds, expected = self._settings.ack_seconds, "its acknowledgement"
        if self.state is not State.SENT:
            seconds, expected = self._settings.answer_seconds, SIGN_OF_LIFE
        async with self.within(seconds, expected):
            reply = self._reply
            assert reply is not None
            # Who gives up waiting leaves the reply to another.
            await asyncio.wait((reply,), timeout=patience_seconds)
            return reply.result() if reply.done() else None

    def within(self, seconds: float, expected: str) -> AbstractAsyncContextManager[None]:
        """Bound a wait by the transfer's deadline, with an error that says what is missing."""
        return self.deadline.within(seconds, expected, self._too_late)

    def _too_late(self) -> TunnelSyncError:
        kind = TimedOut if self.state in (State.SENT, State.ACCEPTED) else Stalled
        waited, name = f"{self.deadline.seconds:g} s", protocol.printable(self.dataset)
        expected = self.deadline.expected
        if expected == ITS_RETURN:
            return BrokenOff(
                f"the data connection of connector {self.mac} broke at byte {self.chunks.taken} "
                f"of dataset {name}, and it did not return within {waited}"
            )
        if expected == CLIENT_TAKES:
            return kind(f"waited {waited} for {CLIENT_TAKES} of dataset {name}")
        return kind(f"waited {waited} for connector {self.mac}: {expected} (dataset {name})")

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
            return
        soon = self._loop.call_later(self._settings.complete_seconds, self.end, Outcome.DELIVERED)
        # Else the clock would hold each transfer for so long, though it ends in a moment.
        self.at_end(soon.cancel)
        self.chunks.finish()

    # --- the connector's side ---------------------------------------------------------------

    def on_ack(self) -> None:
        """The connector has the command: from here on, its signs of life count."""
        was, self.state = self.state, move(self.state, Event.ACK)
        if was is State.SENT:
            self.deadline.expect(self._settings.answer_seconds, SIGN_OF_LIFE)

    def on_progress(self, progress: protocol.Progress) -> None:
        """A sign of life before the answer; after it, only bytes count."""
        self.progress = replace(progress, state=progress.state[:STATE_CHARACTERS])
        if self.state is State.ACCEPTED:
            self.deadline.alive()

    def on_result(self, body: ResultBody, error: TunnelSyncError | None) -> None:
        """A whole result, or the error in its place. The same again is taken for the first."""
        if self.said.result is not None or self.state is State.ENDED:
            same(self.said.result, body.digest, "result")
            return
        if error is None and isinstance(self.command, protocol.GetDatasetStream):
            raise Conflict("a stream is answered by an init or an error, not by a result")
        self.state = move(self.state, Event.RESULT)
        self.said.result = body.digest
        self.connector_knows = True
        if self._reply is None or self._reply.done():
            return
        if error is None:
            self._reply.set_result(body)
        else:
            self._reply.set_exception(error)
            self._reply.exception()  # the client may have left

    def on_init(self, init: protocol.Init) -> None:
        """The status and headers of a streamed answer. The same again changes nothing."""
        if self.said.init is not None or self.state is State.ENDED:
            same(self.said.init, init, "init")
            return
        if not isinstance(self.command, STREAMED):
            raise Conflict(f"{self.command.command} is answered by a result, not by an init")
        check(init, raw=self.command.coding == protocol.Coding.RAW)
        self.state = move(self.state, Event.INIT)
        self.said.init = init
        self._size, self._etag = init.size, init.etag
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(init)

    def on_chunk(self, chunk: Chunk) -> None:
        """Queue a chunk request; raises `WrongOffset`, `Conflict` or `TransferGone`."""
        if self.state is State.ENDED:
            raise TransferGone(f"transfer {self.request_id} has ended")
        if self.said.init is None:
            raise Conflict("a chunk came before the init")
        if self.state is State.RELAYED:
            self.chunks.check_offset(chunk)
            chunk.finish()
            return
        self.state = move(self.state, Event.CHUNK)
        self.chunks.put(chunk, self.said.init.length)

    def on_complete(self, complete: protocol.Complete) -> None:
        """The connector's closing word, or its error. The same again changes nothing."""
        check_names(root=complete.root)
        if complete.error is not None:  # of a length that can be kept
            complete = replace(complete, error=protocol.Problem.of(complete.error.error()))
        if self.said.complete is not None:
            same(self.said.complete, complete, "complete")
            return
        if self.state is State.ENDED:
            raise TransferGone(f"transfer {self.request_id} has ended")
        if complete.error is None:
            self.state = move(self.state, Event.COMPLETE)
            self.said.complete = complete
            self._root = complete.root
            self.connector_knows = True
            self._over(Outcome.DELIVERED, None)
            return
        if self.state is State.ANSWERED:
            raise Conflict("an error came after the result")
        # Before the init it counts, too: the chunk request that carried the init was lost.
        self.said.complete = complete
        self.connector_knows = True
        error = complete.error.error()
        if complete.sent is None or not self.chunks.stop_after(complete.sent, error):
            self.deadline.fail(error)

    # --- the end ----------------------------------------------------------------------------

    def end(self, outcome: Outcome, error: TunnelSyncError | None = None) -> None:
        """End the transfer, unless it has ended. Chunk requests are refused with 410."""
        if self.state is not State.ENDED:
            self.state = move(self.state, Event.END)
            self._over(outcome, error)

    def end_with(self, error: TunnelSyncError) -> None:
        """End with the outcome that the error means; what was relayed whole is delivered."""
        if self.state is State.RELAYED:
            return
        self.end(outcome_of(error, begun=self.said.init is not None), error)

    def _over(self, outcome: Outcome, error: TunnelSyncError | None) -> None:
        self.state = State.ENDED
        self.outcome, self.error = outcome, error
        self._ended_at = self._loop.time()
        if outcome is Outcome.DELIVERED:
            self.chunks.finish()
        else:
            self.chunks.finish(TransferGone(f"transfer {self.request_id} has ended: {outcome}"))
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.cancel()
        cleanups, self._cleanups = self._cleanups, []
        for cleanup in cleanups:
            cleanup()
        self.ended.set()
        self.ended = ENDED
        self._on_end(self)

    def at_end(self, cleanup: Callable[[], object]) -> None:
        """Call something when the transfer ends, or now if it has."""
        if self.state is State.ENDED:
            cleanup()
        else:
            self._cleanups.append(cleanup)

    def describe(self, *, size: int, etag: str, root: str | None = None) -> None:
        """Note what an answer says of the dataset, for the receipt."""
        self._size, self._etag, self._root = size, etag, root

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return (self._ended_at or self._loop.time()) - self._started

    def receipt(self) -> protocol.Receipt:
        """Return what can be said of the transfer now."""
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
            seconds=round(self.seconds, 6),
        )
