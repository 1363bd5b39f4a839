"""``/datasets/MAC/...`` with plain HTTP: a dataset's bytes, its head, and folders listed."""

from dataclasses import replace
from functools import partial
from typing import TypeVar

from aiohttp import web

from tunnelsync import protocol, wire
from tunnelsync.errors import BadRequest, NotADataset
from tunnelsync.identity import Mac
from tunnelsync.protocol import Coding, check_name
from tunnelsync.router.asking import Asked, after_of, asking, conditions_of, path_of
from tunnelsync.router.context import ROUTER
from tunnelsync.router.relay import send_message
from tunnelsync.router.said import ResultBody, bounded, check, understanding
from tunnelsync.router.stream import refusal, stream, streamed_headers
from tunnelsync.router.transfer import Transfer

Message = TypeVar("Message")


async def get(request: web.Request) -> web.StreamResponse:
    """``GET``: a path that ends in ``/`` is a folder, any other a dataset."""
    mac, name = path_of(request)
    if not name or name.endswith("/"):
        return await _list(request, mac, name.removesuffix("/"))
    conditions = conditions_of(request)
    return await stream(request, Asked(mac, check_name(name), conditions=conditions))


async def head(request: web.Request) -> web.StreamResponse:
    """``HEAD``: a stat at the connector; nothing is read."""
    mac, name = path_of(request)
    if not name or name.endswith("/"):
        _check_folder(name.removesuffix("/"))
        raise NotADataset("a folder has no head; GET lists it")
    command = partial(
        protocol.StatDataset,
        dataset_name=check_name(name),
        conditions=replace(conditions_of(request), range=None, if_range=None),
    )
    with asking(request, mac, name, "stat", command) as transfer:
        found = await _said(transfer, protocol.StatAnswer)
        transfer.describe(size=found.size, etag=found.etag)
        transfer.last_byte()
        if found.status in (412, 416):
            return refusal(name, found, in_header=True)
        response = web.Response(
            status=found.status, headers=streamed_headers(name, found, Coding.RAW)
        )
        if found.status == 200:
            response.headers["Content-Length"] = str(found.length)
        return response


async def _list(request: web.Request, mac: Mac, folder: str) -> web.StreamResponse:
    limit = _limit(request)
    after = after_of(request)
    _check_folder(folder)
    command = partial(protocol.ListDatasets, folder=folder, after=after, limit=limit)
    with asking(request, mac, folder, "list", command) as transfer:
        page = await _said(transfer, protocol.ListAnswer, limit)
        return await send_message(transfer, request, page, request.app[ROUTER].settings)


def _check_folder(folder: str) -> None:
    """Raise `BadName` unless this names a folder, or is empty for the root."""
    if folder:
        check_name(folder)


def _limit(request: web.Request) -> int:
    most = request.app[ROUTER].settings.list_entries
    text = request.query.get("limit", str(most))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise BadRequest(f"limit must be a number from 1 to {most}")
    return int(text)


async def _said(transfer: Transfer, kind: type[Message], most: int = 0) -> Message:
    """Return what a connector answered, of ``most`` entries: each costs the loop its time."""
    body = await transfer.reply()
    assert isinstance(body, ResultBody)
    with understanding(transfer.mac):
        value = wire.loads(body.joined())
        bounded(value, "entries", most)
        said = wire.decode(kind, value)
        if isinstance(said, protocol.StatAnswer):
            check(said)
    return said
