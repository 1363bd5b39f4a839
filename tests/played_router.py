"""A router (or a store) that a test plays: it answers each request as the test says."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
from aiohttp import web

from tunnelsync import frames, protocol
from tunnelsync.client import TunnelSync
from tunnelsync.errors import PreconditionFailed
from tunnelsync.settings import ClientSettings

MAC = "cc-28-aa-00-11-22"
MODIFIED_NS = 1_700_000_000_123_456_789
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def client(router: str, **settings: Any) -> TunnelSync:
    """Return a client that tries nothing again, unless its settings say so."""
    return TunnelSync(router, settings=ClientSettings(**{"retry_for_seconds": 0.0, **settings}))


def content(size: int) -> bytes:
    """Return bytes that look random, and are the same for each size."""
    return hashlib.shake_128(size.to_bytes(8, "big")).digest(size)


def blocks_of(data: bytes) -> list[bytes]:
    """Cut a dataset into blocks."""
    step = frames.BLOCK_BYTES
    return [data[start : start + step] for start in range(0, len(data), step)]


def digests_of(data: bytes) -> list[bytes]:
    """Return the digests of a dataset's blocks."""
    return [frames.digest(block) for block in blocks_of(data)]


def framed(data: bytes, *, end: bool = True) -> bytes:
    """Return the frames of a dataset."""
    parts = [
        frames.encode_head(len(block)) + block + frames.digest(block) for block in blocks_of(data)
    ]
    digests = digests_of(data)
    if end:
        parts.append(frames.encode_end(len(digests), frames.root(digests)))
    return b"".join(parts)


def stream_headers(size: int) -> dict[str, str]:
    """Return the headers of a dataset in mode stream."""
    return {
        "ETag": '"v1"',
        protocol.H_REQUEST_ID: "r1",
        protocol.H_MODE: "stream",
        protocol.H_SIZE: str(size),
        protocol.H_MODIFIED: str(MODIFIED_NS),
    }


def streamed(data: bytes) -> web.Response:
    """Answer with a dataset in mode stream."""
    return web.Response(body=framed(data), headers=stream_headers(len(data)))


class Streaming:
    """A router that streams the part of a dataset that is asked for, and remembers the requests.

    ``asked`` holds the first block and the number of blocks of each (None: to the end).
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.etag = "v1"
        self.asked: list[tuple[int, int | None]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.Response(status=404)
        said = orjson.loads(await request.read())
        offset, length = said["offset"], said.get("length")
        count = None if length is None else length // frames.BLOCK_BYTES
        self.asked.append((offset // frames.BLOCK_BYTES, count))
        if said.get("if_match", self.etag) != self.etag:
            error = protocol.error_answer(PreconditionFailed("another version"))
            return web.json_response(error, status=412)
        end = len(self.data) if length is None else offset + length
        headers = stream_headers(len(self.data)) | {"ETag": f'"{self.etag}"'}
        headers[protocol.H_OFFSET] = str(offset)
        return await self.send(request, headers, framed(self.data[offset:end]))

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        """Answer with this body; a test that plays faults overrides it."""
        return web.Response(body=body, headers=headers)


class Flipping(Streaming):
    """A router whose streams have one bit wrong, at one byte of what is sent, so many times."""

    def __init__(self, data: bytes, at: int, times: int = 1000) -> None:
        super().__init__(data)
        self.at = at
        self.times = times

    async def send(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        if (self.times and self.at < len(body)) or -self.at > len(body):
            self.times -= 1
            wrong = bytearray(body)
            wrong[self.at] ^= 1
            body = bytes(wrong)
        return await super().send(request, headers, body)


def json(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer with JSON."""
    return web.Response(
        body=orjson.dumps(value),
        status=status,
        content_type="application/json",
        headers={protocol.H_REQUEST_ID: "r1", **(headers or {})},
    )


def raw_answer(body: bytes, *, announced: int, size: int) -> bytes:
    """Return a whole HTTP answer in mode stream whose body may be shorter than announced."""
    head = {"Content-Length": str(announced), **stream_headers(size)}
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def played(handler: Handler) -> AsyncIterator[str]:
    """Serve every request with one function, and yield the address."""

    async def serve(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def played_raw(answer: bytes, *, reset: bool = False) -> AsyncIterator[str]:
    """Answer every request with these bytes, then close the connection, or reset it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        if reset:
            writer.transport.abort()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
