"""The six outcomes have the same names everywhere: code, receipts, log lines, metrics and docs."""

import asyncio
import re
from itertools import count, product
from pathlib import Path

import orjson
import pytest

import raw_http
from harness import System
from played_connector import PlayedConnector, asking, played, wanting
from tunnelsync.protocol import Problem
from tunnelsync.transfer import Outcome

ROOT = Path(__file__).parents[2]
NAMES = {str(one) for one in Outcome}
MACS = (f"cc-28-aa-07-00-{n:02x}" for n in count())
ROWS = re.compile(
    r'^tunnelsync_transfers_total\{mode="(\w+)",outcome="(\w+)"\} (\S+)$', re.MULTILINE
)
SECONDS = re.compile(r'^tunnelsync_transfer_seconds_count\{mode="(\w+)"\} (\S+)$', re.MULTILINE)
LISTS = {
    "docs/protocol.md": r"`outcome`, once it has ended,\s([^.]*)\.",
    "docs/operations.md": r"`outcome` is\s([^.]*)\.",
    "docs/architecture.md": r"The outcomes are ([^.]*)\.",
}
"""Where the docs list them."""


@pytest.mark.parametrize("path", LISTS)
def test_the_docs_list_the_outcomes_that_there_are(path: str) -> None:
    found = re.search(LISTS[path], (ROOT / path).read_text())
    assert found is not None
    assert set(re.findall(r"`(\w+)`", found[1])) == NAMES


async def delivered(connector: PlayedConnector) -> str:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    await connector.result(request_id, {"data": "x"})
    await client
    return request_id


async def refused(connector: PlayedConnector) -> str:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    problem = {"code": "dataset_not_found", "message": "there is none"}
    await connector.result(request_id, {"status": "error", "error": problem})
    await client
    return request_id


async def broken(connector: PlayedConnector) -> str:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.init(request_id, 1000)
    await connector.complete(request_id, error=Problem("read_failed", "the disk"))
    await client
    return request_id


async def cancelled(connector: PlayedConnector) -> str:
    asked = orjson.dumps({"mac": connector.mac, "dataset": "d"})
    with raw_http.connect(connector.url) as sock:
        head = raw_http.head(
            "POST", "/datasets/request-stream", {"Content-Length": str(len(asked))}
        )
        sock.sendall(head + asked)
        return await connector.command("get_dataset_stream")


async def offline(connector: PlayedConnector) -> str:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    await connector.lose()
    await client
    return request_id


async def timed_out(connector: PlayedConnector) -> str:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset", ack=False)
    await client
    return request_id


async def test_each_outcome_is_named_so_in_receipt_log_and_metrics(system: System) -> None:
    router = await asyncio.to_thread(lambda: system.router(ack_seconds=2, return_grace_seconds=0))
    ends = (delivered, refused, broken, cancelled, offline, timed_out)
    assert {one.__name__ for one in ends} == NAMES
    for end in ends:
        name = end.__name__
        async with played(router.url, next(MACS)) as connector:
            request_id = await end(connector)
            receipt = (await asking(router.url, "GET", f"/transfers/{request_id}?wait=20")).json()
            assert (receipt["outcome"], receipt["state"]) == (name, "ended")
            await asyncio.to_thread(
                router.wait_for_line, rf"transfer {request_id}: \w+ of .*: {name}, \d+ bytes in "
            )
    metrics = (await asking(router.url, "GET", "/metrics")).body.decode()
    rows = ROWS.findall(metrics)
    assert {outcome for _, outcome, number in rows if float(number)} == NAMES
    assert sum(float(number) for _, _, number in rows) == len(ends)
    # Also what never was is told, so that the first one makes a rate.
    modes = {"buffer", "stream", "offload", "auto", "list", "stat"}
    assert {(mode, outcome) for mode, outcome, _ in rows} == {*product(modes, NAMES)}
    durations = SECONDS.findall(metrics)
    assert {mode: float(number) for mode, number in durations} == {"buffer": 4, "stream": 2}
    logged = re.findall(r"transfer \w{32}: \w+ of .*: (\w+), \d+ bytes in ", router.log)
    assert sorted(logged) == sorted(NAMES)
