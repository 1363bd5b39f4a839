"""What a client asks for, out of a body of JSON or a path and headers; and asking a connector."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from aiohttp import web

from tunnelsync.errors import BadName, BadRequest
from tunnelsync.identity import Mac, mac_address
from tunnelsync.protocol import (
    Coding,
    Command,
    Conditions,
    DatasetCommand,
    DatasetRequest,
    Mode,
    check_name,
)
from tunnelsync.router.access import ACCESS
from tunnelsync.router.bodies import json_answer, read_message
from tunnelsync.router.context import ROUTER
from tunnelsync.router.detached import Deliver
from tunnelsync.router.transfer import Transfer

CONDITION_HEADERS = {
    "range": "Range",
    "if_match": "If-Match",
    "if_none_match": "If-None-Match",
    "if_range": "If-Range",
    "if_modified_since": "If-Modified-Since",
    "if_unmodified_since": "If-Unmodified-Since",
}
CONDITIONS_BYTES = 8192
"""All conditions together: they travel in one message to the connector, which bounds those."""
PREFER_CHARACTERS = 1024
"""Of the ``Prefer`` headers; what is beyond is no preference of ours."""
PREFERENCES = 64
"""Are kept parsed: each client says the same with each request."""
TRANSFER = "tunnelsync-transfer"
"""Where a request keeps the transfer that it began: its answer names it, whatever it is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A dataset that a client asks for, checked. ``offset`` and ``length`` in bytes."""

    mac: Mac
    dataset: str
    coding: str = Coding.RAW
    offset: int = 0
    length: int | None = None
    accept: tuple[str, ...] = ()
    conditions: Conditions = field(default_factory=Conditions)
    segments_from: int | None = None


async def asked_in(request: web.Request, *, whole: bool = False) -> Asked:
    """Read the body of ``POST /datasets/request-...``; raises what its parts raise.

    ``whole`` is for the modes that give a whole dataset or none.
    """
    said = await read_message(request, DatasetRequest, request.app[ROUTER].settings)
    if whole and (said.offset or said.length is not None):
        raise BadRequest(
            "this mode takes no offset and no length",
            hint="Ask for a part with POST /datasets/request-stream, or GET with a Range.",
        )
    if said.length == 0:
        raise BadRequest("a length of 0 bytes asks for nothing")
    mac, dataset = mac_address(said.mac), check_name(said.dataset)
    accept = tuple(dict.fromkeys(said.accept))
    match = None if said.if_match is None else _quoted(said.if_match)
    if said.coding == Coding.BLOCKS:
        part, conditions = (said.offset, said.length), Conditions(if_match=match)
    else:
        part = (0, None)
        conditions = Conditions(range=_range_of(said.offset, said.length), if_match=match)
    return Asked(mac, dataset, said.coding, *part, accept, conditions, said.segments_from)


@contextmanager
def asking(
    request: web.Request, mac: Mac, name: str, mode: str, command: Callable[[str], Command]
) -> Iterator[Transfer]:
    """Send a connector a command on behalf of a request; see `Switchboard.ask`.

    A command that takes a place there says whose it is, so that places are shared fairly.
    """
    access = request.app[ACCESS]
    label, whom = access.label(request), access.whom(request)

    def labelled(request_id: str) -> Command:
        made = command(request_id)
        return replace(made, client=label) if isinstance(made, DatasetCommand) else made

    with request.app[ROUTER].switchboard.ask(mac, name, mode, labelled, whom) as transfer:
        request[TRANSFER] = transfer
        yield transfer


async def answered(
    request: web.Request,
    asked: Asked,
    mode: Mode,
    command: Callable[[str], Command],
    deliver: Deliver,
) -> web.StreamResponse:
    """Ask a connector for a dataset, and deliver its answer to this request.

    A client that prefers it (RFC 7240, ``respond-async``) gets 202 when the answer takes long,
    and comes for it later; see ``detached.py``.
    """
    router = request.app[ROUTER]
    with asking(request, asked.mac, asked.dataset, mode, command) as transfer:
        patience = None
        if request.method == "POST" and "Prefer" in request.headers:
            said = ", ".join(request.headers.getall("Prefer"))[:PREFER_CHARACTERS]
            patience = _patience_seconds(said, router.settings.async_wait_seconds)
        reply = await transfer.reply_within(patience)
        if reply is not None:
            return await deliver(request, transfer, reply)
        router.detach(transfer, deliver)
        headers = {
            "Location": f"/transfers/{transfer.request_id}",
            "Preference-Applied": "respond-async",
        }
        return json_answer(transfer.receipt(), 202, **headers)


@lru_cache(PREFERENCES)
def _patience_seconds(said: str, most: float) -> float | None:
    """Return how long a client wants to wait for its answer before 202, or None: to the end."""
    preferred: dict[str, str] = {}
    for one in said.lower().replace(";", ",").split(","):
        name, _, value = one.partition("=")
        preferred.setdefault(name.strip(), value.strip().strip('"'))
    if "respond-async" not in preferred:
        return None
    wait = preferred.get("wait", "")
    return min(float(wait), most) if wait.isascii() and wait.isdigit() else most


def _quoted(etag: str) -> str:
    """Return an etag as ``If-Match`` has it."""
    if len(etag) > CONDITIONS_BYTES or not etag.isascii() or not etag.isprintable() or '"' in etag:
        raise BadRequest("if_match is an etag as it was given, printable ASCII, without its quotes")
    return f'"{etag}"'


def _range_of(offset: int, length: int | None) -> str | None:
    """Return offset and length as a ``Range``, or None for everything."""
    if length is None:
        return f"bytes={offset}-" if offset else None
    return f"bytes={offset}-{offset + length - 1}"


def path_of(request: web.Request) -> tuple[Mac, str]:
    """Return MAC and name in ``/datasets/MAC/NAME``, judged on the raw path.

    The name is empty for the root folder, and ends in ``/`` for another folder. Raises `BadMac`,
    or `BadName` for what is no UTF-8 or no name.
    """
    raw = request.raw_path.partition("?")[0]
    if not raw.startswith("/"):  # a proxy is asked for the whole address (RFC 9112, 3.2.2)
        raw = "/" + raw.partition("://")[2].partition("/")[2]
    _, found, rest = raw.partition("/datasets/")
    mac, slash, name = rest.partition("/")
    if not found or not slash:
        raise BadRequest("the path is /datasets/MAC/DATASET, or /datasets/MAC/FOLDER/ for a list")
    return mac_address(_decoded(mac)), _decoded(name)


def after_of(request: web.Request) -> str:
    """Return the name in ``?after=``, or an empty text; raises `BadName`."""
    for one in request.raw_path.partition("?")[2].split("&"):
        if one.startswith("after="):
            name = _decoded(one.removeprefix("after=").replace("+", " "))
            return check_name(name) if name else ""
    return ""


def _decoded(raw: str) -> str:
    at = raw.find("%")
    while at >= 0:
        if len(raw) < at + 3 or not all(
            c in "0123456789abcdefABCDEF" for c in raw[at + 1 : at + 3]
        ):
            raise BadName(f"{raw[:200]!a} has a % without two hex digits")
        at = raw.find("%", at + 3)
    try:
        return unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode()
    except UnicodeDecodeError:
        raise BadName(f"{raw[:200]!a} is not valid UTF-8") from None


def conditions_of(request: web.Request) -> Conditions:
    """Return the conditional and range headers of a request, each joined as RFC 9110 says."""
    values: dict[str, str] = {}
    for member, header in CONDITION_HEADERS.items():
        if header in request.headers:
            values[member] = ", ".join(request.headers.getall(header))
    if sum(map(len, values.values())) > CONDITIONS_BYTES:
        raise BadRequest(f"the condition headers are over {CONDITIONS_BYTES} bytes")
    for value in values.values():
        if not value.isascii():
            raise BadRequest("a condition header is not ASCII")
    return Conditions(**values)
