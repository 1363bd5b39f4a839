"""Messages that are lost between connector and router, each at every step, once and twice.

A real router, a real connector, and between them a proxy that reads what passes. The client sees
nothing of it: it gets the whole dataset, from one piece of work at the connector, and the receipt
says delivered.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest

import raw_http
from harness import MAC, System, environ_of, make_file, sha256, sparse_file, wait_until
from held import HeldGet
from lossy_proxy import Loss, LossyProxy, Request, lossy_proxy
from s3 import S3Server
from tunnelsync.settings import (
    GIB,
    KIB,
    MIB,
    ClientSettings,
    ConnectorSettings,
    RouterSettings,
    StoreSettings,
)

Side = Literal["request", "answer"]
QUICK = {"backoff_first_seconds": 0.02, "backoff_cap_seconds": 0.05}
PIECES_BYTES = 5 * MIB
"""A dataset that goes in six chunk requests, where a proxy takes no more than 1 MiB."""
BROKEN_AT = 6 * MIB

sides = pytest.mark.parametrize("side", ["request", "answer"])
times = pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])


@dataclass(frozen=True, slots=True)
class Lossy:
    """A router, a connector, and the proxy through which that one reaches it."""

    system: System
    url: str
    proxy: LossyProxy
    loop: asyncio.AbstractEventLoop

    def fetch(self, mode: str, name: str) -> None:
        """Fetch a dataset by the command line, and prove that it came whole."""
        target = self.system.tmp_path / "out"
        done = self.system.cli("fetch", "--mode", mode, MAC, name, "-o", target, "--force")
        assert done.code == 0, (done.err, self.proxy.messages)
        assert sha256(target) == sha256(self.system.tmp_path / "datasets" / name)

    def delivered(self, *expected: str, request_id: str = "") -> None:
        """Assert what the connector sent, all of it for one request, and that it is delivered.

        A second piece of work would show as a second first chunk, or result. Other requests are
        left out of account only if one is named.
        """

        def seen() -> list[Request]:
            named = (request_id, "") if request_id else ()
            return [one for one in self.proxy.seen if not named or one.request_id in named]

        wait_until(lambda: len(seen()) >= len(expected), 10, f"{expected}")
        found = request_id or seen()[0].request_id
        receipt = raw_http.ask(self.url, "GET", f"/transfers/{found}?wait=20").json()
        assert receipt["outcome"] == "delivered", receipt
        assert "error" not in receipt
        assert [one.message for one in seen()] == [*expected]
        assert {one.request_id for one in seen()} == {found}
        assert self.proxy.left() == [], self.proxy.heard


@contextmanager
def lossy(system: System, *, batch_bytes: int = 0, **env: Any) -> Iterator[Lossy]:
    """Start a router and a connector with a proxy between them; answers go alone by default."""
    router = system.router(batch_bytes=batch_bytes)
    with lossy_proxy(router.port) as (proxy, loop):
        make_file(system.tmp_path / "datasets" / "small", 1000)
        make_file(system.tmp_path / "datasets" / "pieces", PIECES_BYTES)
        make_file(system.tmp_path / "datasets" / "large", 24 * MIB)
        connector = system.connector("--router", proxy.url, **(QUICK | env))
        yield Lossy(system, router.url, proxy, loop)
        connector.stop()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lossy]:
    """One router and one connector for all tests that leave them as they are."""
    system = System(tmp_path_factory.mktemp("lost"))
    try:
        with lossy(system) as started:
            yield started
    finally:
        system.stop()


# --- a stream -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["small", "large"])
@times
def test_b12_the_chunk_that_carries_the_init_is_lost(line: Lossy, dataset: str, times: int) -> None:
    line.proxy.begin(Loss("first chunk", times=times))
    line.fetch("stream", dataset)
    last = ["complete"] if dataset == "large" else []
    line.delivered(*["first chunk", "offset"] * times, "first chunk", *last)


@times
@pytest.mark.parametrize("dataset", ["small", "large"])
def test_b12_the_answer_of_the_last_chunk_is_lost(line: Lossy, dataset: str, times: int) -> None:
    """What it said is asked for, and that is lost as well: no chunk is sent again."""
    line.proxy.begin(Loss("first chunk", "answer"), Loss("offset", "answer", times - 1))
    line.fetch("stream", dataset)
    last = ["complete"] if dataset == "large" else []
    line.delivered("first chunk", *["offset"] * times, *last)


@sides
@times
def test_b12_a_chunk_in_the_middle_is_lost(system: System, side: Side, times: int) -> None:
    """Two are under way at a time, so that only their number and their begin is known.

    A connector of its own: it remembers for long that a proxy takes small chunks alone.
    """
    with lossy(system) as line:
        line.proxy.begin(Loss("first chunk", "too large"), Loss("next chunk", side, times))
        line.fetch("stream", "pieces")
        request_id = line.proxy.seen[0].request_id
        receipt = raw_http.ask(line.url, "GET", f"/transfers/{request_id}?wait=20").json()
        assert receipt["outcome"] == "delivered", receipt
        assert {one.request_id for one in line.proxy.seen} == {request_id}
        assert line.proxy.left() == []
        sent = line.proxy.messages
        assert sent.count("first chunk") == 2, sent  # the refused one, and the one that was taken
        assert sent.count("next chunk") >= 5 + (times if side == "request" else 0), sent


@sides
@times
def test_b12_the_offset_is_lost(line: Lossy, side: Side, times: int) -> None:
    broken = Loss("first chunk", "body", after_bytes=BROKEN_AT)
    line.proxy.begin(broken, Loss("offset", side, times))
    line.fetch("stream", "large")
    line.delivered("first chunk", *["offset"] * (times + 1), "next chunk", "complete")


@sides
@times
def test_b12_the_closing_word_is_lost(line: Lossy, side: Side, times: int) -> None:
    line.proxy.begin(Loss("complete", side, times))
    line.fetch("stream", "large")
    line.delivered("first chunk", *["complete"] * (times + 1))


# --- a result -----------------------------------------------------------------------------------


@sides
@times
def test_b12_a_buffered_result_is_lost(line: Lossy, side: Side, times: int) -> None:
    line.proxy.begin(Loss("result", side, times))
    line.fetch("buffer", "pieces")
    line.delivered(*["result"] * (times + 1))


@sides
@times
@pytest.mark.parametrize("command", ["ls", "stat"])
def test_b12_a_listing_or_a_stat_is_lost(line: Lossy, command: str, side: Side, times: int) -> None:
    line.proxy.begin(Loss("result", side, times))
    done = line.system.cli(command, MAC, *(["pieces"] if command == "stat" else []), "--json")
    assert done.code == 0, done.err
    assert str(PIECES_BYTES) in done.out
    line.delivered(*["result"] * (times + 1))


@sides
@times
def test_b12_an_error_in_place_of_a_result_is_lost(line: Lossy, side: Side, times: int) -> None:
    """The one case that is not delivered: it is told as it was meant."""
    line.proxy.begin(Loss("result", side, times))
    done = line.system.cli("fetch", MAC, "absent", "-o", line.system.tmp_path / "absent")
    assert done.code == 3, done.err
    assert "absent" in done.err
    wait_until(lambda: len(line.proxy.seen) == times + 1, 10, "the answer to be taken")
    assert line.proxy.messages == ["result"] * (times + 1)
    assert len({one.request_id for one in line.proxy.seen}) == 1
    assert line.proxy.left() == []


@sides
@times
def test_b12_an_offload_answer_is_lost(
    tmp_path: Path, store_server: S3Server, side: Side, times: int
) -> None:
    found = store_server.settings("lost", settle_seconds=0.0)
    values = {spec.name: getattr(found, spec.name) for spec in fields(found)}
    system = System(tmp_path, environ_of(StoreSettings, values))
    try:
        with lossy(system) as started:
            started.proxy.begin(Loss("result", side, times))
            started.fetch("offload", "pieces")
            started.delivered(*["result"] * (times + 1))
    finally:
        system.stop()


# --- a batch ------------------------------------------------------------------------------------

ALONE = {"stream": "first chunk", "buffer": "result", "stat": "result", "absent": "result"}
"""What a small answer is sent as when its batch was not taken."""


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lossy]:
    """One router that takes batches, and one connector."""
    system = System(tmp_path_factory.mktemp("batched"))
    try:
        with lossy(system, batch_bytes=64 * KIB) as started:
            yield started
    finally:
        system.stop()


def asks(line: Lossy, what: str) -> None:
    """Ask for something small, and see that it came as it must."""
    if what in ("stream", "buffer"):
        line.fetch(what, "small")
        return
    done = line.system.cli("stat", MAC, "small" if what == "stat" else "absent", "--json")
    assert done.code == (0 if what == "stat" else 3), done.err


@pytest.mark.parametrize("what", ALONE)
def test_small_answers_go_by_batches(batched: Lossy, what: str) -> None:
    batched.proxy.begin()
    asks(batched, what)
    wait_until(lambda: batched.proxy.messages == ["batch"], 10, "one batch")


@sides
@times
@pytest.mark.parametrize("what", ALONE)
def test_b12_a_batch_is_lost(batched: Lossy, what: str, side: Side, times: int) -> None:
    """What was in it goes by itself, which may be lost as well; if the router had it, no harm."""
    batched.proxy.begin(Loss("batch", side), Loss(ALONE[what], side, times - 1))
    asks(batched, what)
    expected = ["batch", *[ALONE[what]] * times]
    if what == "stream" and times == 2:  # of a broken chunk it asks how far it came
        expected = ["batch", "first chunk", "offset", *["first chunk"] * (side == "request")]
    wait_until(lambda: batched.proxy.messages == expected, 10, f"{expected}")
    request_id = batched.proxy.seen[1].request_id
    receipt = raw_http.ask(batched.url, "GET", f"/transfers/{request_id}?wait=20").json()
    assert receipt["outcome"] == ("refused" if what == "absent" else "delivered"), receipt
    assert batched.proxy.left() == []


def test_b12_a_batch_on_a_line_that_goes_dead_goes_by_another(system: System) -> None:
    with lossy(system, batch_bytes=64 * KIB, stall_seconds=1, answer_seconds=1) as started:
        started.proxy.begin(Loss("batch", "hole", after_bytes=100))
        started.fetch("stream", "small")
        assert started.proxy.messages == ["batch", "first chunk"]


# --- the socket ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["buffer", "stream"])
@pytest.mark.parametrize("lost", ["command", "ack"])
@times
def test_l8_a_command_or_its_ack_is_lost_with_the_socket(
    system: System, mode: str, lost: str, times: int
) -> None:
    """It comes again on the next socket, is acknowledged again, and worked once.

    The one place is taken until then: else the work would be over before the socket is back.
    """
    command = "get_dataset" if mode == "buffer" else "get_dataset_stream"
    sparse_file(system.tmp_path / "datasets" / "huge", GIB)
    with lossy(system, places=1) as line:
        with HeldGet(line.url, f"/datasets/{MAC}/huge") as first:
            first.read(1 * MIB)
            wait_until(lambda: "ack" in line.proxy.heard, 10, "the ack of what has the place")
            line.proxy.begin(Loss(command if lost == "command" else "ack", times=times))
            target = system.tmp_path / "out"
            fetch = system.start("fetch", "--mode", mode, MAC, "small", "-o", str(target), "--json")
            acks = 1 if lost == "command" else times + 1
            wait_until(lambda: line.proxy.heard.count("ack") == acks, 20, "the last ack")
            assert line.proxy.heard.count(command) == times + 1, line.proxy.heard
        assert fetch.wait() == 0, fetch.log
        assert sha256(target) == sha256(system.tmp_path / "datasets" / "small")
        request_id = orjson.loads(fetch.log)["request_id"]
        sent = "result" if mode == "buffer" else "first chunk"
        line.delivered(sent, request_id=request_id)


@pytest.mark.parametrize("lost", ["hello", "welcome"])
@times
def test_l8_the_socket_is_cut_in_the_hello(line: Lossy, lost: str, times: int) -> None:
    """The request waits for the connector, which the router may think it has already."""
    line.proxy.begin(Loss(lost, times=times))
    line.loop.call_soon_threadsafe(line.proxy.cut_sockets)
    line.fetch("stream", "small")
    line.delivered("first chunk")
    assert line.proxy.heard.count("hello") == times + 1


# --- a line that goes dead ----------------------------------------------------------------------

HOLES = {
    "the chunk midway": (
        Loss("first chunk", "hole", after_bytes=BROKEN_AT),
        ["first chunk", "offset", "next chunk", "complete"],
    ),
    "the answer of the chunk": (
        Loss("first chunk", "late hole"),
        ["first chunk", "offset", "complete"],
    ),
    "the closing word": (Loss("complete", "late hole"), ["first chunk", "complete", "complete"]),
}


@pytest.mark.parametrize("what", HOLES)
@pytest.mark.parametrize("zero_copy", [True, False], ids=["spliced", "copied"])
def test_b12_a_line_that_goes_dead_is_left_for_another(
    system: System, what: str, zero_copy: bool
) -> None:
    """Nothing passes and nothing is closed: after its deadline the connector goes on."""
    loss, expected = HOLES[what]
    system.environ |= environ_of(RouterSettings, {"zero_copy": zero_copy})
    with lossy(system, stall_seconds=1, answer_seconds=1) as started:
        started.proxy.begin(Loss(loss.message, loss.part, after_bytes=loss.after_bytes))
        started.fetch("stream", "large")
        started.delivered(*expected)
        if what == "the chunk midway":  # the router leaves it too, when it is told of another
            wait_until(lambda: started.proxy.let_go == 1, 10, "the router to leave the dead line")


def test_b12_a_result_on_a_line_that_goes_dead_is_sent_by_another(system: System) -> None:
    with lossy(system, stall_seconds=1, answer_seconds=1) as started:
        started.proxy.begin(Loss("result", "hole", after_bytes=100))
        started.fetch("buffer", "small")
        started.delivered("result", "result")


def test_b12_the_one_that_can_go_on_is_the_first_to_give_up() -> None:
    """By default, too: a router or client that gave up first would end what could go on."""
    connector, router = ConnectorSettings(), RouterSettings()
    to_ask = connector.backoff_first_seconds + connector.connect_seconds
    assert connector.stall_seconds + to_ask < router.idle_seconds
    assert router.idle_seconds < ClientSettings().idle_seconds
