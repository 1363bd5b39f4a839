"""Bodies of requests, read under a limit and a deadline; and answers made of errors."""

import asyncio
import json
from collections.abc import Callable
from typing import TypeVar

from aiohttp import ClientError, web

from tunnelsync import protocol, wire
from tunnelsync.errors import BadRequest, BrokenOff, Stalled, TooLarge, TunnelSyncError
from tunnelsync.settings import RouterSettings

Message = TypeVar("Message")
HEADER_CHARACTERS = 500
"""Of an error's message in a header: up to 12 bytes each, where readers take 8 KiB of a field."""
LIMIT_HINT = "Send a smaller body; docs/settings.md lists the router's limits."


async def read_parts(
    request: web.Request,
    *,
    limit_bytes: int,
    idle_seconds: float,
    count: Callable[[int], None] = lambda _: None,
) -> list[bytes]:
    """Read a body to its end, in the pieces in which it comes.

    ``count`` hears of each piece before it is kept, and may raise. Raises `TooLarge` over the
    limit, `Stalled`, or `BrokenOff`.
    """
    if (request.content_length or 0) > limit_bytes:
        raise too_large(request.content_length or 0, limit_bytes)
    content = request.content
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            if content.is_eof():  # it is all here, as with most
                data = content.read_nowait(-1)
            else:
                async with asyncio.timeout(idle_seconds):
                    data = await content.readany()
            if not data:
                return parts
            size += len(data)
            if size > limit_bytes:
                raise too_large(size, limit_bytes)
            count(len(data))
            parts.append(data)
    except TimeoutError:
        raise Stalled(f"no byte of the request came for {idle_seconds:g} s") from None
    except (ClientError, ConnectionError, web.PayloadAccessError):
        raise BrokenOff("the request's body broke off") from None


async def read_message(
    request: web.Request, kind: type[Message], settings: RouterSettings
) -> Message:
    """Read a body that is one small JSON message; raise `BadRequest` for anything else."""
    limit, idle = settings.message_bytes, settings.idle_seconds
    parts = await read_parts(request, limit_bytes=limit, idle_seconds=idle)
    return wire.decode(kind, wire.loads(b"".join(parts)))


def header_message(request: web.Request, name: str, kind: type[Message]) -> Message | None:
    """Return the JSON message in a header, or None without one; `BadRequest` if it is none."""
    text = request.headers.get(name)
    return None if text is None else wire.decode(kind, wire.loads(text))


def json_answer(value: object, status: int = 200, **headers: str) -> web.Response:
    """Return a small JSON answer."""
    return web.Response(
        body=wire.dumps(value), status=status, content_type="application/json", headers=headers
    )


def error_answer(
    error: TunnelSyncError, *, in_header: bool = False, **extra: object
) -> web.Response:
    """Return the answer that tells of an error, also in a header, in ASCII, where that is asked."""
    response = json_answer(protocol.error_answer(error) | extra, error.status)
    if in_header:
        problem = error.to_wire()
        problem = {name: text[:HEADER_CHARACTERS] for name, text in problem.items()}
        response.headers[protocol.H_ERROR] = json.dumps(problem)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="tunnelsync"'
    return response


def request_id_in(request: web.Request) -> str:
    """Return the request id in the query, or raise `BadRequest`."""
    try:
        return request.query["request_id"]
    except KeyError:
        raise BadRequest("request_id is missing in the query") from None


def number_in(request: web.Request, name: str) -> int:
    """Return a number of bytes in the query, or raise `BadRequest`."""
    text = request.query.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{name} must be a number of bytes")
    return int(text)


def too_large(size: int, limit: int) -> TooLarge:
    """Return the refusal of a body over the limit."""
    return TooLarge(f"a body of {size} bytes or more is over the limit of {limit}", hint=LIMIT_HINT)
