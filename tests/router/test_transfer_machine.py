"""A transfer under any order of events: what both sides do, say twice, break, or leave out.

The real switchboard, transfer, queue of chunks and relay; only the two HTTP requests are played,
and time, which jumps. The body is a real one in frames, and the client a real decoder.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from hypothesis import Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from played_router import content, framed
from tunnelsync import protocol
from tunnelsync.errors import (
    Cancelled,
    Conflict,
    DatasetChanged,
    ReadFailed,
    TransferGone,
    TunnelSyncError,
    WrongOffset,
)
from tunnelsync.frames import BLOCK_BYTES, FRAME_OVERHEAD_BYTES, Claimed, Decoder, End
from tunnelsync.identity import mac_address
from tunnelsync.protocol import Coding, Complete, Init, Problem
from tunnelsync.router.chunks import Chunk
from tunnelsync.router.relay import relay
from tunnelsync.router.said import ResultBody
from tunnelsync.router.session import Session
from tunnelsync.router.switchboard import Switchboard
from tunnelsync.router.transfers import Transfers
from tunnelsync.settings import RouterSettings
from tunnelsync.transfer import MOVES, Outcome, State

MAC = mac_address("cc-28-aa-00-11-22")
DATA = content(BLOCK_BYTES) + b"five!"
BODY = framed(DATA)
FRAME = BLOCK_BYTES + FRAME_OVERHEAD_BYTES
LENGTH = len(BODY)
PLACES = (0, 1, 3, FRAME - 1, FRAME, FRAME + 4, FRAME + 7, LENGTH - 44, LENGTH - 1, LENGTH)
SETTINGS = RouterSettings()
FOR_LONG = 4 * max(
    SETTINGS.answer_seconds,
    SETTINGS.idle_seconds,
    SETTINGS.resume_seconds,
    SETTINGS.complete_seconds,
)


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time jumps when it is told to."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@dataclass
class Client:
    """The client's request and response, as the relay uses them: one object for both."""

    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    cut: bool = False
    room: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def transport(self) -> "Client":
        return self

    async def write(self, data: bytes) -> None:
        await self.room.wait()
        assert not self.whole
        if not self.cut:
            self.body += data

    async def write_eof(self) -> None:
        await self.room.wait()
        self.whole = not self.cut

    def get_extra_info(self, name: str) -> None:
        """It has no socket."""

    def abort(self) -> None:
        self.cut = self.cut or not self.whole

    close = abort


@dataclass(eq=False)
class Post:
    """A chunk request that is open: where it stands, and its handler."""

    chunk: Chunk
    offset: int
    at: int
    handler: "asyncio.Task[None]"
    broken: bool = False


class NoLink:
    """A connector's channel, of which nothing is heard."""

    address = "127.0.0.1"

    def __init__(self) -> None:
        self.sent: list[protocol.FromRouter] = []

    def send(self, message: protocol.FromRouter) -> None:
        self.sent.append(message)

    def close(self, code: int, reason: str) -> None:
        pass


def reachable(state: State) -> set[State]:
    """Return the states that legal moves can lead to."""
    found, new = {state}, {state}
    while new:
        new = {to for one in new for to in MOVES[one].values()} - found
        found |= new
    return found


COMMANDS: dict[str, Callable[[str], protocol.Command]] = {
    "stream": lambda i: protocol.GetDatasetStream(i, "d", Coding.BLOCKS),
    "auto": lambda i: protocol.GetDatasetAuto(i, "d", ("stream", "offload"), Coding.BLOCKS),
    "buffer": lambda i: protocol.GetDataset(i, "d"),
}


class Life(RuleBasedStateMachine):
    """One transfer, from its command on."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Clock()
        self.posts: list[Post] = []
        self.init: Init | None = None
        self.complete: Complete | None = None
        self.result: bytes | None = None
        self.lied = False
        self.late_already = False  # a deadline may have passed: its client is being told, perhaps
        self.before = State.SENT
        self.outcome: Outcome | None = None
        self.answered = 0

    # --- running ----------------------------------------------------------------------------

    def do(self, action: Callable[[], Any] = lambda: None) -> Any:
        """Do one thing in the loop, and let all follow from it that needs no time."""

        async def step() -> Any:
            try:
                return action()
            finally:
                for _ in range(60):
                    await asyncio.sleep(0)

        return self.loop.run_until_complete(step())

    @initialize(
        kind=st.sampled_from(["stream", "stream", *COMMANDS]),
        reads=st.sampled_from([True, True, False]),
        calm=st.sampled_from([True, True, False]),
        ends_well=st.booleans(),
        late=st.booleans(),
    )
    def ask(self, kind: str, reads: bool, calm: bool, ends_well: bool, late: bool) -> None:
        """Ask for a dataset. In a calm life nothing ends it at a stroke."""
        self.kind, self.calm, self.ends_well, self.late = kind, calm, ends_well, late

        def begin() -> None:
            self.link = NoLink()
            self.board = Switchboard(SETTINGS, Transfers(SETTINGS))
            hello = protocol.Hello(MAC, "played", "first")
            session = self.board.announce(MAC, hello, self.link, None)
            assert session is not None
            self.session: Session = session
            self.client = Client()
            if reads:
                self.client.room.set()
            self.handler = asyncio.ensure_future(self._serve())

        self.do(begin)
        (self.transfer,) = self.board.transfers.running.values()

    async def _serve(self) -> None:
        """What the handlers of the client's request do (see ``router/stream.py``)."""
        try:
            with self.board.ask(MAC, "d", self.kind, COMMANDS[self.kind]) as transfer:
                reply = await transfer.reply()
                if isinstance(reply, ResultBody):
                    async with transfer.within(SETTINGS.idle_seconds, "the client"):
                        await self.client.write(reply.joined())
                        await self.client.write_eof()
                    transfer.wrote(reply.size)
                    transfer.last_byte()
                    return
                request = cast(web.Request, self.client)
                response = cast(web.StreamResponse, self.client)
                await relay(transfer, request, response, Coding.BLOCKS, SETTINGS)
        except TunnelSyncError:
            self.client.abort()

    def say(self, action: Callable[[], Any]) -> TunnelSyncError | None:
        """Do what a post of the connector does; return the error that is its answer."""
        try:
            self.do(action)
        except TunnelSyncError as error:
            return error
        return None

    @property
    def state(self) -> State:
        return self.transfer.state

    # --- the connector ------------------------------------------------------------------------

    @rule()
    def ack(self) -> None:
        message = protocol.Ack(self.transfer.request_id)
        self.do(lambda: self.board.heard(self.session, message))

    @rule()
    def progress(self) -> None:
        message = protocol.Progress(self.transfer.request_id, "reading")
        self.do(lambda: self.board.heard(self.session, message))

    @rule(other=st.booleans())
    def begin(self, other: bool) -> None:
        version = "other" if other else "v1"
        said = Init(self.transfer.request_id, 200, len(DATA), version, LENGTH, 0)
        state, error = self.state, self.say(lambda: self.transfer.on_init(said))
        if self.init is not None:
            assert (error is None) == (said == self.init), error
            assert isinstance(error, Conflict | None)
        elif state is State.ENDED:
            assert isinstance(error, TransferGone), error
        elif self.kind == "buffer" or self.result is not None:
            assert isinstance(error, Conflict), error
        else:
            assert error is None, error
            self.init = said

    @rule(
        data=st.sampled_from([b"one", b"two"]),
        error=st.sampled_from([None, None, ReadFailed("the disk")]),
    )
    def give(self, data: bytes, error: TunnelSyncError | None) -> None:
        said = ResultBody((data,), len(data), data)
        state = self.state
        told = self.say(lambda: self.transfer.on_result(said, error))
        if self.result is not None:
            assert (told is None) == (data == self.result), told
            assert isinstance(told, Conflict | None)
        elif state is State.ENDED:
            assert isinstance(told, TransferGone), told
        elif self.init is not None or (self.kind == "stream" and error is None):
            assert isinstance(told, Conflict), told
        else:
            assert told is None, told
            self.result = data

    @rule(
        place=st.sampled_from(["right", "right", "next", *PLACES]),
        length=st.sampled_from(["rest", "rest", None, *PLACES]),
        closes=st.booleans(),
        early=st.booleans(),
        lies=st.sampled_from([False] * 9 + [True]),
    )
    def chunk(
        self,
        place: str | int,
        length: str | int | None,
        closes: bool,
        lies: bool,
        early: bool = False,
    ) -> None:
        """Open a chunk request; what it sends comes later. An early one names what it follows."""
        chunks, state = self.transfer.chunks, self.state
        if isinstance(place, int):
            offset = place
        else:
            offset = chunks.taken if place == "right" else chunks.next_offset
        size = LENGTH - offset if length == "rest" else cast("int | None", length)
        connection = BaseProtocol(self.loop)
        connection.connection_made(asyncio.Transport())
        content = StreamReader(connection, 2 * LENGTH, loop=self.loop)
        posts: list[Post] = []
        errors: list[TunnelSyncError] = []
        chunk = Chunk(offset, size, content, lambda: None, self.loop.create_future())
        chunk.after = chunks.next_offset if early else None

        async def handler() -> None:
            """What the handler of a chunk request does (see ``router/stream.py``)."""
            try:
                self.transfer.on_chunk(chunk)
                await chunk.done
            except TunnelSyncError as error:
                errors.append(error)
                return
            finally:
                self.transfer.chunks.drop(chunk)
            if closes:
                self._close(Complete(self.transfer.request_id, "root", 2))

        def post() -> None:
            posts.append(Post(chunk, offset, offset, asyncio.ensure_future(handler())))

        plausible = {chunks.taken} | {
            one.offset + (one.chunk.length or 0) for one in self.posts if not one.handler.done()
        }
        self.do(post)
        if state is State.ENDED:
            assert isinstance(errors[0], TransferGone), errors
        elif self.init is None:
            assert isinstance(errors[0], Conflict), errors
        elif offset not in plausible and not early:
            assert isinstance(errors[0], WrongOffset), errors
        elif size is not None and offset + size > LENGTH and state is State.FLOWING:
            assert errors, (offset, size)
        self.posts += posts
        if lies and not errors:
            self.lied = True
            posts[0].at = LENGTH + 1  # what it sends is not of this body

    def _close(self, said: Complete) -> None:
        """Give the closing word; a header of a chunk cannot be told of a conflict here."""
        try:
            self.transfer.on_complete(said)
        except Conflict:
            assert self.complete is not None
        except TransferGone:
            assert self.complete is None
        else:
            self.complete = self.complete or said

    def open_posts(self) -> list[Post]:
        return [one for one in self.posts if not one.handler.done() and not one.broken]

    @precondition(lambda self: self.open_posts())
    @rule(which=st.integers(0, 1), until=st.sampled_from([*PLACES, LENGTH, LENGTH]))
    def bytes_come(self, which: int, until: int) -> None:
        """Some of what a chunk request carries comes, and its end if that is all."""
        posts = self.open_posts()
        post = posts[which % len(posts)]
        end = LENGTH if post.chunk.length is None else post.offset + post.chunk.length

        def come() -> None:
            if post.at > LENGTH:
                post.chunk.content.feed_data(b"\0" * (end - post.offset))
                post.chunk.content.feed_eof()
                post.broken = True
                return
            data = BODY[post.at : min(until, end)]
            if data:
                post.chunk.content.feed_data(data)
                post.at += len(data)
            if post.at >= end:
                post.chunk.content.feed_eof()

        self.do(come)

    @precondition(lambda self: self.kind != "buffer" and self.state is not State.ENDED)
    @rule(until=st.sampled_from(PLACES), reads=st.booleans())
    def a_good_connector_goes_on(self, until: int, reads: bool) -> None:
        """So that what is wrong comes in the middle of what is right."""
        if self.init is None and self.result is None:
            self.begin(other=False)
        if self.state is State.FLOWING and not self.open_posts():
            self.chunk(place="right", length="rest", closes=False, lies=False)
        self.do(self.client.room.set if reads else self.client.room.clear)
        if self.open_posts():
            self.bytes_come(which=0, until=until)

    @precondition(lambda self: self.open_posts())
    @rule(which=st.integers(0, 1), clean=st.booleans())
    def a_chunk_breaks(self, which: int, clean: bool) -> None:
        """Its connection is gone; without a length, a proxy may make a clean end of that."""
        posts = self.open_posts()
        post = posts[which % len(posts)]
        post.broken = True

        def gone() -> None:
            if clean and post.chunk.length is None:
                post.chunk.content.feed_eof()
                return
            post.chunk.content.set_exception(ConnectionResetError("gone"))
            post.handler.cancel()

        self.do(gone)

    @rule()
    def ask_the_offset(self) -> None:
        if self.state is State.ENDED:
            return
        offset = self.do(self.transfer.chunks.detach)
        assert offset >= len(self.client.body) - 200  # a failure frame is no byte of the body

    @rule(count=st.sampled_from([2, 2, 3]))
    def close(self, count: int) -> None:
        said = Complete(self.transfer.request_id, "root", count)
        self._said(said, legal=self.state is State.RELAYED)

    @rule(
        sent=st.sampled_from([None, *PLACES]),
        error=st.sampled_from([DatasetChanged("it grew"), ReadFailed("the disk")]),
    )
    def fail(self, sent: int | None, error: TunnelSyncError) -> None:
        said = Complete(self.transfer.request_id, error=Problem.of(error), sent=sent)
        self._said(said, legal=self.state is not State.ANSWERED)

    def _said(self, said: Complete, *, legal: bool) -> None:
        state, error = self.state, self.say(lambda: self.transfer.on_complete(said))
        if self.complete is not None:
            assert (error is None) == (said == self.complete), error
            assert isinstance(error, Conflict | None)
        elif state is State.ENDED:
            assert isinstance(error, TransferGone), error
        elif not legal:
            assert isinstance(error, Conflict), error
        else:
            assert error is None, error
            self.complete = said

    def a_good_connector_finishes(self) -> None:
        """From wherever it stands: whatever was lost, doubled or broken, it can be put right."""
        if not self.late:
            self.do(self.client.room.set)
        said = self.transfer.deadline.failure or self.complete or self.result
        failed = said is not None or self.late_already
        if self.state is State.ENDED or failed or self.kind == "buffer":
            return
        if self.init is None:
            self.begin(other=False)
        if self.state is State.FLOWING:
            self.ask_the_offset()
        if self.state is State.FLOWING:
            self.chunk(place="right", length="rest", closes=False, lies=False)
            self.bytes_come(which=0, until=LENGTH)
        self.do(self.client.room.set)
        assert self.state is State.RELAYED, self.state
        self.close(count=2)
        assert self.transfer.outcome is Outcome.DELIVERED
        assert len(self.client.body) == LENGTH
        assert self.client.whole
        assert self.lied or self.client.body == BODY
        event(f"put right from byte {'0' if not self.posts[:-1] else 'n'}")

    # --- the client, the clock, and the rest of the world -------------------------------------

    @rule()
    def the_client_reads(self) -> None:
        self.do(self.client.room.set)

    @rule()
    def the_client_holds_still(self) -> None:
        self.do(self.client.room.clear)

    @precondition(lambda self: not self.calm)
    @rule()
    def the_client_leaves(self) -> None:
        def leave() -> None:
            self.client.abort()
            self.handler.cancel()

        self.do(leave)

    @precondition(lambda self: not self.calm)
    @rule()
    def it_is_cancelled_by_request(self) -> None:
        self.do(lambda: self.transfer.deadline.fail(Cancelled("by request")))

    @rule(seconds=st.sampled_from([1, 16, 25, 61]))
    def time_passes(self, seconds: float) -> None:
        self.loop.ahead += 0.6 if self.calm else seconds
        self.late_already |= not self.calm
        self.do()

    @precondition(lambda self: not self.calm)
    @rule(silent=st.booleans())
    def the_socket_is_lost(self, silent: bool) -> None:
        self.do(lambda: self.board.lost(self.session, self.link, silent=silent))

    @precondition(lambda self: not self.calm)
    @rule()
    def another_process_takes_over(self) -> None:
        hello = protocol.Hello(MAC, "played", "second")
        self.do(lambda: self.board.announce(MAC, hello, NoLink(), None))

    # --- what holds always ----------------------------------------------------------------------

    @invariant()
    def only_legal_moves_happen(self) -> None:
        assert self.state in reachable(self.before), (self.before, self.state)
        self.before = self.state

    @invariant()
    def an_end_is_one_for_ever(self) -> None:
        assert (self.transfer.outcome is not None) == (self.state is State.ENDED)
        if self.outcome is not None:
            assert self.transfer.outcome is self.outcome
        elif self.transfer.outcome is not None:
            self.outcome = self.transfer.outcome
            event(f"outcome: {self.outcome}")
            assert self.transfer.request_id not in self.board.transfers.running
            assert self.board.transfers.tally.ended.total() == 1

    @invariant()
    def what_comes_is_the_body_from_its_beginning(self) -> None:
        if self.init is None or self.lied:
            return
        came = bytes(self.client.body)
        if not BODY.startswith(came):  # then a failure frame ends it, between two frames
            assert self.client.cut
            assert came[:FRAME] == BODY[:FRAME] or came.startswith(b"\xff\xff\xff\xff")

    @invariant()
    def a_clean_end_is_the_whole_dataset(self) -> None:
        if self.init is None:
            return
        clean = self.client.whole and not self.client.cut
        if self.transfer.outcome is Outcome.DELIVERED or self.state is State.RELAYED:
            assert clean
        if clean:
            assert len(self.client.body) == LENGTH
        if clean and not self.lied:
            assert self.client.body == BODY
        if len(self.client.body) == LENGTH:
            assert self.lied or verified(bytes(self.client.body)) == DATA
        elif self.client.body:
            with pytest.raises(TunnelSyncError):
                verified(bytes(self.client.body))

    @invariant()
    def nobody_waits_for_what_has_ended(self) -> None:
        if self.state is State.ENDED:
            assert all(one.handler.done() for one in self.posts)
            assert not any(one.transfers for one in self.board.sessions.values())

    def teardown(self) -> None:
        """Whatever happened: with time alone it comes to an end, and nothing is left behind."""
        try:
            self.it_comes_to_an_end()
        finally:
            self.loop.close()

    def it_comes_to_an_end(self) -> None:
        if hasattr(self, "transfer"):
            if self.ends_well:
                self.a_good_connector_finishes()
            for _ in range(8):
                self.loop.ahead += FOR_LONG
                self.do()
            assert self.state is State.ENDED, self.state
            assert self.handler.done()
            self.an_end_is_one_for_ever()
            self.a_clean_end_is_the_whole_dataset()
            self.nobody_waits_for_what_has_ended()
            for post in self.posts:
                post.handler.cancel()
            self.do()
            tasks: set[asyncio.Task[Any]] = asyncio.all_tasks(self.loop)
            assert not tasks, tasks


def verified(body: bytes) -> bytes:
    """Return the dataset of a framed body; raises for a body that is not whole and right."""
    decoder, ends = Decoder(), 0
    parts: list[bytes] = []
    for one in decoder.feed(body):
        if isinstance(one, Claimed):
            parts += one.verified()
        else:
            assert isinstance(one, End)
            ends += 1
    decoder.finish()
    assert ends == 1
    return b"".join(parts)


pytestmark = pytest.mark.timeout(600)  # of a failure the shortest form is looked for, for minutes

TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=300, stateful_step_count=30, phases=set(Phase) - {Phase.explain}
)
