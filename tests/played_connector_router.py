"""A router that a test plays to one connector: real sockets, and faults where the test says."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from tunnelsync import batch, protocol, wire
from tunnelsync.connector import session
from tunnelsync.errors import TransferGone, TunnelSyncError, WrongOffset
from tunnelsync.protocol import Ack, Complete, Fault, Hello, Init, Progress, Welcome
from tunnelsync.settings import ConnectorSettings, StoreSettings

MAC = "cc-28-aa-00-11-22"
Fault_ = Callable[[web.Request, "Stream"], Awaitable[web.StreamResponse | None]]


@dataclass
class Stream:
    """What came of one stream."""

    body: bytearray = field(default_factory=bytearray)
    init: Init | None = None
    complete: Complete | None = None
    chunks: list[int] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    keep: bool = True
    taken: int = 0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    def closed_with(self, complete: Complete) -> None:
        """Note the closing word."""
        assert self.complete is None or self.complete == complete
        self.complete = complete
        self.ended.set()


class PlayedRouter:
    """Answers a connector as a router does; ``faults`` come first, one for each chunk request."""

    def __init__(self) -> None:
        self.url = ""
        self.sockets: asyncio.Queue[web.WebSocketResponse] = asyncio.Queue()
        self.hellos: list[Hello] = []
        self.heeds_yielding = True
        self.heard: asyncio.Queue[Ack | Progress | Fault] = asyncio.Queue()
        self.results: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.result_came = asyncio.Condition()
        self.streams: dict[str, Stream] = defaultdict(Stream)
        self.faults: list[Fault_] = []
        self.handshakes = 0
        self.refuse_status = 0
        self.gone: set[str] = set()
        self.headers: list[dict[str, str]] = []
        self.zero_copy = True
        self.batch_bytes = 0
        self.batches: list[list[str]] = []
        self.refuse_batches = 0
        self.refuse_items: dict[str, int] = {}

    # --- what a test does -------------------------------------------------------------------

    async def result(self, request_id: str) -> dict[str, Any]:
        """Wait for the result of a request."""
        async with asyncio.timeout(30), self.result_came:
            await self.result_came.wait_for(lambda: bool(self.results[request_id]))
        return self.results[request_id][0]

    async def stream(self, request_id: str) -> Stream:
        """Wait for the end of a stream."""
        async with asyncio.timeout(20):
            await self.streams[request_id].ended.wait()
        return self.streams[request_id]

    async def socket(self) -> web.WebSocketResponse:
        """Wait for the connector's next socket."""
        async with asyncio.timeout(30):
            return await self.sockets.get()

    async def heard_next(self, *kinds: type) -> Any:
        """Wait for the next message of these kinds."""
        async with asyncio.timeout(30):
            while True:
                message = await self.heard.get()
                if isinstance(message, kinds):
                    return message

    # --- what it answers --------------------------------------------------------------------

    async def on_socket(self, request: web.Request) -> web.StreamResponse:
        self.handshakes += 1
        self.headers.append(dict(request.headers))
        if self.refuse_status:
            return web.Response(status=self.refuse_status)
        ws = web.WebSocketResponse(protocols=(protocol.SUBPROTOCOL,), compress=False)
        await ws.prepare(request)
        hello = protocol.decode_from_connector((await ws.receive()).data)
        assert isinstance(hello, Hello)
        self.hellos.append(hello)
        welcome = Welcome(
            len(self.hellos), batch_bytes=self.batch_bytes, yields=self.heeds_yielding
        )
        await ws.send_str(protocol.encode(welcome))
        self.sockets.put_nowait(ws)
        async for message in ws:
            self.heard.put_nowait(protocol.decode_from_connector(message.data))  # type: ignore[arg-type]
        return ws

    async def on_result(self, request: web.Request) -> web.Response:
        request_id = request.query["request_id"]
        body = b"".join([part async for part in request.content.iter_any()])
        if request_id in self.gone:
            return refusal(TransferGone("nobody waits"))
        async with self.result_came:
            self.results[request_id].append(orjson.loads(body))
            self.result_came.notify_all()
        return web.json_response({"status": "ok"})

    async def on_batch(self, request: web.Request) -> web.Response:
        items = list(batch.unpack(await request.read()))
        self.batches.append([item.request_id for item, _ in items])
        if self.refuse_batches:
            return web.Response(status=self.refuse_batches, text="a proxy")
        for item, body in items:
            if item.request_id in self.refuse_items:
                continue
            if item.init is None:
                async with self.result_came:
                    self.results[item.request_id].append(orjson.loads(body))
                    self.result_came.notify_all()
            else:
                assert item.complete is not None
                stream = self.streams[item.request_id]
                stream.init, stream.body = item.init, bytearray(body)
                stream.closed_with(item.complete)
        return web.json_response({"status": "ok", "refused": self.refuse_items})

    async def on_chunk(self, request: web.Request) -> web.StreamResponse:
        request_id = request.query["request_id"]
        stream = self.streams[request_id]
        offset = int(request.query["offset"])
        stream.chunks.append(offset)
        if request_id in self.gone:
            return refusal(TransferGone("nobody waits"))
        stream.init = wire.decode(Init, wire.loads(request.headers[protocol.H_INIT]))
        if "after" in request.query:  # it may come before the one that it follows is taken
            async with stream.moved:
                await stream.moved.wait_for(lambda: stream.taken >= offset)
        stood = stream.taken
        if self.faults:
            answer = await self.faults.pop(0)(request, stream)
            if answer is not None:
                return answer
        if offset != stood:
            return refusal(WrongOffset("another offset"))
        await self.take(request, stream)
        async with stream.moved:
            stream.moved.notify_all()
        if stream.complete is not None and stream.complete.error is not None:
            return refusal(TransferGone("ended"))
        if protocol.H_COMPLETE in request.headers:
            closing = wire.loads(request.headers[protocol.H_COMPLETE])
            stream.closed_with(wire.decode(Complete, closing))
        return web.json_response({"status": "ok"})

    async def take(self, request: web.Request, stream: Stream, limit: int | None = None) -> None:
        """Read a chunk's body; to its end, to the limit, or to where the connector stopped."""
        until = None if limit is None else stream.taken + limit
        while until is None or stream.taken < until:
            reading = asyncio.ensure_future(request.content.readany())
            ending = asyncio.ensure_future(stream.ended.wait())
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if not reading.done():
                reading.cancel()
                return
            data = reading.result()
            if not data:
                return
            if until is not None:
                data = data[: until - stream.taken]
            stream.taken += len(data)
            if stream.keep:
                stream.body += data

    async def on_offset(self, request: web.Request) -> web.Response:
        request_id = request.query["request_id"]
        if request_id in self.gone:
            return refusal(TransferGone("nobody waits"))
        return web.json_response({"offset": self.streams[request_id].taken})

    async def on_complete(self, request: web.Request) -> web.Response:
        complete = wire.decode(Complete, wire.loads(await request.read()))
        self.streams[complete.request_id].closed_with(complete)
        return web.json_response({"status": "ok"})


def refusal(error: TunnelSyncError, status: int = 0) -> web.Response:
    """Answer with an error."""
    return web.json_response(protocol.error_answer(error), status=status or error.status)


@asynccontextmanager
async def served(router: PlayedRouter, port: int = 0) -> AsyncIterator[PlayedRouter]:
    """Serve the played router on loopback."""
    app = web.Application()
    app.router.add_get("/connectors/ws", router.on_socket)
    app.router.add_post("/datasets/result", router.on_result)
    app.router.add_post("/datasets/batch", router.on_batch)
    app.router.add_post("/datasets/stream/chunk", router.on_chunk)
    app.router.add_get("/datasets/stream/offset", router.on_offset)
    app.router.add_post("/datasets/stream/complete", router.on_complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    router.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield router
    finally:
        await runner.cleanup()


def settings_for(router: PlayedRouter, root: Path, /, **changes: Any) -> ConnectorSettings:
    """Return settings that do not wait long."""
    quick: dict[str, Any] = {
        "router": router.url,
        "mac": MAC,
        "root": str(root),
        "backoff_first_seconds": 0.01,
        "backoff_cap_seconds": 0.05,
        "threads": 4,
        "zero_copy": router.zero_copy,
    }
    return ConnectorSettings(**(quick | changes))


@asynccontextmanager
async def connected(
    settings: ConnectorSettings, store: StoreSettings | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a connector, and end it as SIGTERM does."""
    logging.getLogger("tunnelsync").setLevel(logging.DEBUG)
    task = asyncio.create_task(session.run(settings, store or StoreSettings()))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
