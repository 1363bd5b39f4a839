"""What can be asked about the router itself: receipts, connectors, health and metrics."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product
from operator import itemgetter
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from tunnelsync import __version__
from tunnelsync.errors import BY_CODE, BadRequest, Cancelled, Conflict, TransferGone
from tunnelsync.protocol import Mode
from tunnelsync.router.asking import TRANSFER
from tunnelsync.router.bodies import json_answer
from tunnelsync.router.context import ROUTER, Router
from tunnelsync.transfer import Outcome, State

MODES = (*Mode, "list", "stat")
"""What the metrics count by. Those of mode auto ended before one was chosen."""


async def receipt(request: web.Request) -> web.Response:
    """``GET /transfers/{request_id}``: the receipt; ``?wait=S`` waits for the end.

    Of a transfer whose client comes for the answer, it waits until that is ready.
    """
    router = request.app[ROUTER]
    transfer = router.switchboard.transfers.find(request.match_info["request_id"])
    seconds = min(_seconds(request.query.get("wait", "0")), router.settings.receipt_wait_seconds)
    detached = router.detached.get(transfer.request_id)
    if detached is None:
        await _happened(transfer.ended, seconds)
        return json_answer(transfer.receipt())
    with detached.asked_for():
        await _happened(detached.settled, seconds)
    return json_answer(replace(transfer.receipt(), result=detached.result))


async def _happened(event: asyncio.Event, seconds: float) -> None:
    if seconds > 0:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)


async def result(request: web.Request) -> web.StreamResponse:
    """``GET /transfers/{request_id}/result``: what the request that was answered 202 would get."""
    router = request.app[ROUTER]
    transfer = router.switchboard.transfers.find(request.match_info["request_id"])
    request[TRANSFER] = transfer
    detached = router.detached.pop(transfer.request_id, None)
    if detached is not None:
        return await detached.attach(request)
    if transfer.state is not State.ENDED:
        raise Conflict(f"the answer of transfer {transfer.request_id} goes to another request")
    raise transfer.error or TransferGone(f"transfer {transfer.request_id} has been delivered")


async def cancel(request: web.Request) -> web.Response:
    """``DELETE /transfers/{request_id}``: end it; harmless if it has ended."""
    transfer = request.app[ROUTER].switchboard.transfers.find(request.match_info["request_id"])
    transfer.deadline.fail(Cancelled("the transfer was cancelled by request"))
    return json_answer(transfer.receipt())


async def connectors(request: web.Request) -> web.Response:
    """``GET /connectors``: those that are connected or may return, and those that are gone."""
    now, board = asyncio.get_running_loop().time(), request.app[ROUTER].switchboard
    rows: list[dict[str, Any]] = [
        {
            "mac": session.mac,
            "version": session.hello.version[:32],
            "state": "connected" if session.link is not None else "returning",
            "connected_seconds": round(now - session.since, 3),
            "transfers": len(session.transfers),
        }
        for session in board.sessions.values()
    ]
    gone = {"version": "", "state": "offline", "connected_seconds": None, "transfers": 0}
    rows += [{"mac": mac, **gone} for mac in board.offline()]
    return json_answer({"connectors": sorted(rows, key=itemgetter("mac"))})


async def health(request: web.Request) -> web.Response:
    """``GET /healthz``: the process answers."""
    return json_answer({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """``GET /readyz``: new requests are taken; 503 while it drains."""
    request.app[ROUTER].refuse_when_draining()
    return json_answer({"status": "ok"})


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise BadRequest("wait must be a number of seconds")
    return seconds


class RouterCollector(Collector):
    """Reads the metrics off the router when they are asked for."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the router."""
        board = self._router.switchboard
        tally = board.transfers.tally
        linked = sum(session.link is not None for session in board.sessions.values())
        yield InfoMetricFamily("tunnelsync_build", "What runs.", {"version": __version__})
        yield GaugeMetricFamily("tunnelsync_connectors", "Connectors connected now.", linked)
        offline = len(board.offline())
        yield GaugeMetricFamily("tunnelsync_connectors_offline", "Known, and not here.", offline)
        running = len(board.transfers.running)
        yield GaugeMetricFamily("tunnelsync_transfers_running", "Transfers under way.", running)
        held = self._router.buffers.held_bytes + self._router.answers.held_bytes
        yield GaugeMetricFamily("tunnelsync_buffers_bytes", "Buffered answers, in bytes.", held)
        total = tally.relayed_bytes + sum(t.written for t in board.transfers.running.values())
        yield CounterMetricFamily("tunnelsync_bytes", "Bytes sent to clients.", total)
        ended = CounterMetricFamily(
            "tunnelsync_transfers", "Transfers that ended.", labels=("mode", "outcome")
        )
        for labels in product(MODES, Outcome):  # also those that were never: rates begin at 0
            ended.add_metric(labels, tally.ended[labels])
        yield ended
        seconds = SummaryMetricFamily(
            "tunnelsync_transfer_seconds", "From request to end.", labels=("mode",)
        )
        for mode, sum_seconds in tally.seconds.items():
            count = sum(tally.ended[mode, outcome] for outcome in Outcome)
            seconds.add_metric((mode,), count, sum_seconds)
        yield seconds
        errors = CounterMetricFamily(
            "tunnelsync_errors", "Requests that ended with an error, by its code.", labels=("code",)
        )
        for code in BY_CODE:
            errors.add_metric((code,), self._router.errors[code])
        yield errors


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``: for Prometheus."""
    ours, process = CollectorRegistry(), CollectorRegistry()
    ours.register(RouterCollector(request.app[ROUTER]))
    ProcessCollector(registry=process)
    # Off the loop: all descriptors are counted.
    body = generate_latest(ours) + await asyncio.to_thread(generate_latest, process)
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})
