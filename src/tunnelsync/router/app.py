"""The router as one application: its routes, its wiring, and its life from start to drain."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger as server_log

from tunnelsync import protocol, signals
from tunnelsync.address import is_loopback
from tunnelsync.errors import (
    BadRequest,
    Cancelled,
    ConnectorUnknown,
    Draining,
    Forbidden,
    Internal,
    NotFound,
    TooLarge,
    TunnelSyncError,
    Unauthorized,
    Unavailable,
)
from tunnelsync.objects import origin
from tunnelsync.router import (
    auto,
    batch,
    buffer,
    catalog,
    channel,
    offload,
    results,
    status,
    stream,
)
from tunnelsync.router.access import ACCESS, Access, address_of, require_client
from tunnelsync.router.asking import TRANSFER
from tunnelsync.router.bodies import error_answer
from tunnelsync.router.certificate import Certificate
from tunnelsync.router.context import ROUTER, Budget, Router
from tunnelsync.router.heartbeat import Heartbeat
from tunnelsync.router.listening import listening
from tunnelsync.router.relay import STARTED
from tunnelsync.router.switchboard import Switchboard
from tunnelsync.router.transfer import Transfer
from tunnelsync.router.transfers import Transfers
from tunnelsync.settings import RouterSettings, StoreSettings

log = logging.getLogger("tunnelsync.router")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HEADERS = 64
"""Each may have 8 KiB, and memory is held for them until a head is whole; ours are under 20, and
proxies add some."""
LINE_BYTES = 16 * 1024
"""A request line with a name of 4096 bytes, each of them escaped, and a query."""
DATASETS = "/datasets/{rest:(?!request-|result$|batch$|stream/)(?s:.*)}"
"""All that is no other address: what it is, is judged on the raw path."""
LAST_WORDS_SECONDS = 1.0
"""What a client gets to hear why its transfer does not end, when the router stops."""
NO_TRANSFER = Unauthorized, Forbidden, ConnectorUnknown, Unavailable
"""What the log tells of a request that began no transfer, whose end would be told."""
CALLERS = 8
LINGER_SECONDS = 2.0
"""After an early refusal, so long the rest of a request's body is read and thrown away."""


def _for_clients(handler: Handler, *, drains: bool = False, monitors: bool = False) -> Handler:
    """Let clients call a handler, and ``monitors``; ``drains`` refuses new ones at the end."""

    async def checked(request: web.Request) -> web.StreamResponse:
        require_client(request, monitors=monitors)
        if drains:
            request.app[ROUTER].refuse_when_draining()
        return await handler(request)

    return checked


def routes() -> list[web.AbstractRouteDef]:
    """Return every address of the router: first the client's, then the connector's."""
    work, seen = partial(_for_clients, drains=True), partial(_for_clients, monitors=True)
    return [
        web.post("/datasets/request-sync", work(buffer.request_sync)),
        web.post("/datasets/request-stream", work(stream.request_stream)),
        web.post("/datasets/request-offload", work(offload.request_offload)),
        web.post("/datasets/request-auto", work(auto.request_auto)),
        web.get("/transfers/{request_id}", _for_clients(status.receipt), allow_head=False),
        web.get("/transfers/{request_id}/result", _for_clients(status.result), allow_head=False),
        web.delete("/transfers/{request_id}", _for_clients(status.cancel)),
        web.get("/connectors", seen(status.connectors), allow_head=False),
        web.get("/metrics", seen(status.metrics), allow_head=False),
        web.get("/healthz", status.health),
        web.get("/readyz", status.ready),
        web.get("/connectors/ws", channel.connect, allow_head=False),
        web.post("/datasets/result", results.result),
        web.post("/datasets/batch", batch.batch),
        web.post("/datasets/stream/init", stream.init),
        web.post("/datasets/stream/chunk", stream.chunk),
        web.post("/datasets/stream/complete", stream.complete),
        web.get("/datasets/stream/offset", stream.offset, allow_head=False),
        web.get(DATASETS, work(catalog.get), allow_head=False),
        web.head(DATASETS, work(catalog.head)),
    ]


@web.middleware
async def answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into an answer, and name the transfer in each answer."""
    answer = await _answered(request, handler)
    if answer.prepared:
        return answer
    if (transfer := request.get(TRANSFER)) is not None:
        answer.headers[protocol.H_REQUEST_ID] = transfer.request_id
        if transfer.mode != "list":
            mode = transfer.mode_used or transfer.mode
            answer.headers[protocol.H_MODE] = protocol.Mode.STREAM if mode == "stat" else mode
    if answer.status == 503 and "Retry-After" not in answer.headers:
        answer.headers["Retry-After"] = str(request.app[ROUTER].settings.retry_after_seconds)
    return answer


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Return the answer to a request, unless one was begun that cannot be ended cleanly."""
    # A connector gets no body of what its socket is refused with, as nobody does of a HEAD.
    bodyless = request.method == "HEAD" or "Upgrade" in request.headers

    def refused(error: TunnelSyncError) -> web.Response:
        request.app[ROUTER].errors[error.code] += 1
        answer = error_answer(error, in_header=bodyless)
        if error.request_id:
            answer.headers[protocol.H_REQUEST_ID] = error.request_id
        return answer

    try:
        return await handler(request)
    except (TunnelSyncError, ConnectionError) as error:
        # It is kept with the receipt, and its frames hold the answer, or what of it was on its way.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        if isinstance(error, ConnectionError):
            # It reaches nobody; raised, it would be logged as a defect of ours.
            error = Cancelled("the client's connection broke")
        answer = refused(error)
        if STARTED in request:
            begun: web.StreamResponse = request[STARTED]
            return begun
        if isinstance(error, NO_TRANSFER) and not error.request_id:
            what = f"{request.method} {request.raw_path.partition('?')[0][:100]}"
            # One who guesses tokens hides no more than one of so many others from the log.
            kind = {"kind": f"{error.code} {hash(request.remote) % CALLERS}"}
            log.warning(
                "refused %s from %s: %s", what, address_of(request), error.message, extra=kind
            )
        return answer
    except web.HTTPRequestEntityTooLarge as error:
        return refused(TooLarge(error.text or "the request is too large"))
    except web.HTTPMethodNotAllowed as error:
        answer = refused(BadRequest(f"{request.method} is not for this address"))
        answer.set_status(405)
        answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return answer
    except web.HTTPNotFound:
        hint = "Datasets are at /datasets/MAC/DATASET; docs/protocol.md lists every address."
        return refused(NotFound("there is nothing at this address of the router", hint=hint))
    except web.HTTPException:
        raise
    except Exception:
        log.exception("a defect while answering %s", request.method)
        if STARTED in request:
            raise
        return refused(Internal("the router failed; its log has the details"))


def _without_its_text(record: logging.LogRecord) -> bool:
    """Log what is not HTTP in one line: the parser's own message holds a header, or a token."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.msg = f"{record.msg}: {type(error).__name__}"
        record.exc_info = record.exc_text = None
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
    return True


async def _unnamed(request: web.Request, response: web.StreamResponse) -> None:
    """Say what answers, but not on which versions it runs."""
    response.headers["Server"] = "tunnelsync"


async def run(settings: RouterSettings, store: StoreSettings) -> bool:
    """Serve until a signal. The first one drains; returns False if a second one cut that short.

    Raises `BadSetting` for an address it cannot listen on, or settings that do not fit; and
    `Internal` after a defect that stopped it.
    """
    access, certificate = Access(settings), Certificate(settings)
    server_log.addFilter(_without_its_text)
    switchboard = Switchboard(settings, Transfers(settings), access.expected)
    router = Router(
        settings,
        origin(store.public) if store.endpoint else "",
        switchboard,
        Budget(settings.buffers_bytes),
        Budget(settings.answers_bytes),
        Heartbeat(settings.heartbeat_seconds),
    )
    app = web.Application(middlewares=[answers], client_max_size=settings.message_bytes)
    app[ACCESS], app[ROUTER] = access, router
    app.on_response_prepare.append(_unnamed)
    app.add_routes(routes())
    runner = web.AppRunner(
        app,
        handle_signals=False,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=settings.keepalive_seconds,
        read_bufsize=settings.read_bytes,
        max_line_size=LINE_BYTES,
        max_headers=HEADERS,
        lingering_time=LINGER_SECONDS,
        shutdown_timeout=LINGER_SECONDS,
        auto_decompress=False,
    )
    await runner.setup()
    stop, now = _signals()
    try:
        async with listening(runner, settings, certificate.context):
            if access.open:
                log.info("no tokens file: this machine alone is served")
            elif certificate.context is None and not is_loopback(settings.host):
                log.warning("http on %s: tokens and data can be read on the way", settings.host)
            poll_seconds = settings.tokens_poll_seconds
            tasks = (
                asyncio.create_task(access.watch(poll_seconds, switchboard.revoke)),
                asyncio.create_task(certificate.watch(poll_seconds)),
                asyncio.create_task(router.heartbeat.beat()),
            )
            for task in tasks:
                task.add_done_callback(partial(_failed, stop))
            await stop.wait()
            clean = await _drained(router, now)
            for task in tasks:
                task.cancel()
            switchboard.close()
    finally:
        await runner.cleanup()
    if any(task.done() and not task.cancelled() and task.exception() for task in tasks):
        raise Internal("a task of the router failed; its log has the details")
    return clean


def _failed(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Stop for a defect in what must go on: tokens would not be read, the silent not be found."""
    if not task.cancelled() and task.exception():
        log.critical("stopping: a task of the router failed", exc_info=task.exception())
        stop.set()


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return what the first and the second signal set."""
    stop, now = asyncio.Event(), asyncio.Event()

    def signalled(number: signal.Signals) -> None:
        # A terminal that is closed sends two of its signal, and means one.
        if not stop.is_set() or number != signal.SIGHUP:
            (now if stop.is_set() else stop).set()

    for number in signals.heeded():
        asyncio.get_running_loop().add_signal_handler(number, signalled, number)
    return stop, now


async def _drained(router: Router, now: asyncio.Event) -> bool:
    """Refuse what is new, and give what runs its time; False if a second signal cut it short."""
    router.draining = True
    running = router.switchboard.transfers.running
    log.info("stopping: %d transfers get up to %g s", len(running), router.settings.drain_seconds)

    async def all_ended() -> None:
        while running:
            await next(iter(running.values())).ended.wait()

    waits = asyncio.create_task(all_ended()), asyncio.create_task(now.wait())
    seconds = router.settings.drain_seconds
    done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for one in waits:
        one.cancel()
    if not done:
        log.warning("stopping: %d transfers are broken off", len(running))
    await _broken_off(list(running.values()))
    return not now.is_set()


async def _broken_off(transfers: list[Transfer]) -> None:
    """End what still runs with the reason, as far as its client takes that at once."""
    for transfer in transfers:
        transfer.deadline.fail(Draining("the router stopped before the transfer ended"))
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            for transfer in transfers:
                await transfer.ended.wait()
