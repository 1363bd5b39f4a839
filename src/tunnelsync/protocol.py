"""Every message of the protocol, in the order in which one request meets them; no I/O.

::

    client                router                                connector
      |                     |  <-- Hello ----------------------------  |  socket
      |                     |  --- Welcome -------------------------->  |
      |  - DatasetRequest ->|                                           |  HTTP POST
      |                     |  --- Get..., ListDatasets, Stat... ---->  |  socket
      |                     |  <-- Ack, Progress --------------------   |
      |                     |  <-- Result body  | Init, chunks, Complete|  HTTP POST
      |  <- answer or bytes |                                           |
      |                     |  --- Cancel (if the client left) ------>  |  socket

``docs/protocol.md`` describes each in words. What a message means is decided elsewhere.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from tunnelsync import wire
from tunnelsync.errors import BadName, BadRequest, TunnelSyncError

VERSION = 1
SUBPROTOCOL = "tunnelsync.v1"

H_REQUEST_ID = "TunnelSync-Request-Id"
H_MODE = "TunnelSync-Mode"
H_SIZE = "TunnelSync-Size"
H_MODIFIED = "TunnelSync-Modified-Ns"
H_OFFSET = "TunnelSync-Offset"
H_ERROR = "TunnelSync-Error"
H_CONNECTOR = "TunnelSync-Connector"
H_INIT = "TunnelSync-Init"
H_COMPLETE = "TunnelSync-Complete"

CLOSE_REPLACED = 4001
CLOSE_CLASH = 4002
CLOSE_REVOKED = 4003
CLOSE_PROTOCOL = 4004
CLOSE_RESTART = 1012

NAME_BYTES = 4096


class Mode(StrEnum):
    """The way of a dataset to its client."""

    BUFFER = "buffer"
    STREAM = "stream"
    OFFLOAD = "offload"
    AUTO = "auto"


class Coding(StrEnum):
    """What a streamed body is: the plain bytes, or frames (see ``frames.py``)."""

    RAW = "raw"
    BLOCKS = "blocks"


def printable(text: str) -> str:
    """Return a name for people: what could move a cursor or hide is escaped, in quotes."""
    return '"' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) + '"'


def check_name(name: str) -> str:
    """Return a dataset's name if it is one, else raise `BadName`.

    A name is valid UTF-8 of at most 4096 bytes without NUL, relative, and none of its
    components is empty, ``.`` or ``..``.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadName(f"the name {printable(name[:200])} is not valid UTF-8") from None
    if size > NAME_BYTES:
        raise BadName(f"a name of {size} bytes is longer than {NAME_BYTES}")
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise BadName(f"{printable(name[:200])} cannot be the name of a dataset")
    return name


# --- client -> router ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """Body of ``POST /datasets/request-sync|stream|offload|auto``.

    ``offset`` and ``length`` in bytes; ``if_match`` is an etag without quotes; ``coding`` and
    ``accept`` are for stream and auto. ``segments_from`` is for offload and auto: the first byte
    that the client, which takes segments (``segments.py``), has no address for.
    """

    mac: str
    dataset: str
    offset: int = 0
    length: int | None = None
    if_match: str | None = None
    coding: str = Coding.RAW
    accept: tuple[str, ...] = (Mode.STREAM, Mode.OFFLOAD)
    segments_from: int | None = None

    def __post_init__(self) -> None:
        if self.coding not in tuple(Coding):
            raise BadRequest(f"unknown coding {self.coding[:64]!r}; there are raw and blocks")
        if min(self.offset, self.length or 0, self.segments_from or 0) < 0:
            raise BadRequest("offset, length and segments_from must not be negative")


# --- the socket: connector -> router ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a connector; one that ``yields`` takes its MAC from no other process."""

    type: ClassVar[str] = "hello"
    mac: str
    version: str
    instance: str
    protocol: int = VERSION
    capabilities: tuple[str, ...] = ()
    yields: bool = False


@dataclass(frozen=True, slots=True)
class Ack:
    """The command with this id has arrived and is (or was) taken on."""

    type: ClassVar[str] = "ack"
    request_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A sign of life of a command: ``queued`` (with its place in line), ``reading`` or
    ``uploading`` (with the bytes so far)."""

    type: ClassVar[str] = "progress"
    request_id: str
    state: str
    done: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """Answer to a message that could not be understood; the socket goes on."""

    type: ClassVar[str] = "error"
    code: str
    message: str
    request_id: str | None = None


# --- the socket: router -> connector ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome:
    """The hello was accepted. ``epoch`` counts the sockets that this MAC has had; ``batch_bytes``
    is the largest body of ``POST /datasets/batch``, 0 where there is none; ``yields`` says that
    the router heeds that of a hello."""

    type: ClassVar[str] = "welcome"
    epoch: int
    protocol: int = VERSION
    batch_bytes: int = 0
    yields: bool = False


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditional and range headers of a client, as they came (RFC 9110, 13 and 14)."""

    range: str | None = None
    if_match: str | None = None
    if_none_match: str | None = None
    if_range: str | None = None
    if_modified_since: str | None = None
    if_unmodified_since: str | None = None


@dataclass(frozen=True, slots=True)
class GetDataset:
    """Mode buffer: answer with one `BufferAnswer`. In each ``client`` labels who waits for it."""

    command: ClassVar[str] = "get_dataset"
    request_id: str
    dataset_name: str
    conditions: Conditions = field(default_factory=Conditions)
    client: str = ""


@dataclass(frozen=True, slots=True)
class GetDatasetStream:
    """Mode stream. With coding blocks, ``offset`` and ``length`` are aligned to blocks."""

    command: ClassVar[str] = "get_dataset_stream"
    request_id: str
    dataset_name: str
    coding: str = Coding.RAW
    offset: int = 0
    length: int | None = None
    conditions: Conditions = field(default_factory=Conditions)
    client: str = ""


@dataclass(frozen=True, slots=True)
class GetDatasetOffload:
    """Mode offload: answer with one `OffloadAnswer`, or a `SegmentsAnswer` to who takes that."""

    command: ClassVar[str] = "get_dataset_offload"
    request_id: str
    dataset_name: str
    conditions: Conditions = field(default_factory=Conditions)
    client: str = ""
    segments_from: int | None = None


@dataclass(frozen=True, slots=True)
class GetDatasetAuto:
    """Mode auto: the connector chooses among ``accept`` (stream, offload)."""

    command: ClassVar[str] = "get_dataset_auto"
    request_id: str
    dataset_name: str
    accept: tuple[str, ...] = (Mode.STREAM,)
    coding: str = Coding.RAW
    offset: int = 0
    length: int | None = None
    conditions: Conditions = field(default_factory=Conditions)
    client: str = ""
    segments_from: int | None = None


@dataclass(frozen=True, slots=True)
class ListDatasets:
    """List one folder ("" is the root): names after ``after``, at most ``limit``."""

    command: ClassVar[str] = "list_datasets"
    request_id: str
    folder: str = ""
    after: str = ""
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class StatDataset:
    """Answer with a `StatAnswer`, the conditions evaluated; nothing is read."""

    command: ClassVar[str] = "stat_dataset"
    request_id: str
    dataset_name: str
    conditions: Conditions = field(default_factory=Conditions)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this request any more."""

    command: ClassVar[str] = "cancel"
    request_id: str


DatasetCommand = GetDataset | GetDatasetStream | GetDatasetOffload | GetDatasetAuto
Command = DatasetCommand | ListDatasets | StatDataset | Cancel
FromConnector = Hello | Ack | Progress | Fault
FromRouter = Command | Welcome | Fault

_COMMANDS: dict[str, type[Command]] = {
    kind.command: kind
    for kind in (
        GetDataset,
        GetDatasetStream,
        GetDatasetOffload,
        GetDatasetAuto,
        ListDatasets,
        StatDataset,
        Cancel,
    )
}
_FROM_CONNECTOR: dict[str, type[FromConnector]] = {
    kind.type: kind for kind in (Hello, Ack, Progress, Fault)
}


def encode(message: FromConnector | FromRouter) -> str:
    """Return the text of one socket message."""
    tag = "command" if hasattr(message, "command") else "type"
    return (wire.dumps({tag: getattr(message, tag)})[:-1] + b"," + wire.dumps(message)[1:]).decode()


def decode_from_connector(text: str) -> FromConnector:
    """Parse one message that a connector sent on its socket; raise `BadRequest`."""
    value = wire.loads(text)
    tag = value.get("type")
    kind = _FROM_CONNECTOR.get(tag) if isinstance(tag, str) else None
    if kind is None:
        raise BadRequest(f"unknown message type {str(tag)[:64]!r}")
    return wire.decode(kind, value)


def decode_from_router(text: str) -> FromRouter:
    """Parse one message that the router sent on the socket; raise `BadRequest`."""
    value = wire.loads(text)
    if value.get("type") == Welcome.type:
        return wire.decode(Welcome, value)
    if value.get("type") == Fault.type:
        return wire.decode(Fault, value)
    tag = value.get("command")
    kind = _COMMANDS.get(tag) if isinstance(tag, str) else None
    if kind is None:
        raise BadRequest(f"unknown command {str(tag)[:64]!r}")
    return wire.decode(kind, value)


# --- HTTP: connector -> router -> client --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Init:
    """``POST /datasets/stream/init``, or header `H_INIT` of the first chunk.

    ``status`` is the client's (200, 206, 304, 412, 416); ``size`` the dataset's, ``length``
    the body's, both in bytes; ``offset`` where the part begins in the dataset.
    """

    request_id: str
    status: int
    size: int
    etag: str
    length: int
    modified_ns: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """An error on the wire."""

    code: str
    message: str = ""
    hint: str = ""

    @classmethod
    def of(cls, error: TunnelSyncError) -> "Problem":
        """Return the problem that tells of this error."""
        return cls(**error.to_wire())

    def error(self) -> TunnelSyncError:
        """Return the error that this problem tells of."""
        return TunnelSyncError.from_wire(
            {"code": self.code, "message": self.message, "hint": self.hint}
        )


@dataclass(frozen=True, slots=True)
class Complete:
    """``POST /datasets/stream/complete``, or header `H_COMPLETE` of the last chunk: the root
    and count of the blocks that were sent, or the error that ended the transfer. ``sent`` goes
    with an error: the bytes of the body that were sent before, which still reach the client."""

    request_id: str
    root: str | None = None
    count: int = 0
    error: Problem | None = None
    sent: int | None = None


@dataclass(frozen=True, slots=True)
class BufferAnswer:
    """The one JSON of mode buffer, from the connector through the router to the client.

    ``data`` is text (``encoding`` utf-8) or base64; ``blocks`` are the digests in hex.
    """

    dataset: str
    size: int
    etag: str
    modified_ns: int
    root: str
    blocks: tuple[str, ...]
    encoding: str
    data: str
    status: str = "success"


@dataclass(frozen=True, slots=True)
class OffloadAnswer:
    """Where the store has the dataset and its packed digests (32 bytes each).

    ``store_origins`` is added by the router: a client downloads from no other.
    """

    download_url: str
    blocks_url: str
    dataset: str
    size: int
    etag: str
    modified_ns: int
    root: str
    count: int
    expires_seconds: int
    reused: bool = False
    store_origins: tuple[str, ...] = ()
    status: str = "success"


@dataclass(frozen=True, slots=True)
class StatAnswer:
    """A dataset's version; ``status`` is that of the conditions (200, 206, 304, 412, 416)."""

    status: int
    size: int
    etag: str
    modified_ns: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One name in a folder: ``kind`` is dataset or folder; the rest is for datasets."""

    name: str
    kind: str
    size: int | None = None
    etag: str | None = None
    modified_ns: int | None = None


@dataclass(frozen=True, slots=True)
class ListAnswer:
    """A page of a folder; ``next`` is the ``after`` of the next page; ``unlisted`` counts the
    names of the folder that cannot be datasets (not UTF-8, no file, leading out)."""

    entries: tuple[ListEntry, ...]
    next: str | None = None
    unlisted: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a transfer says about itself: ``GET /transfers/{request_id}``.

    Times in seconds from the request's arrival at the router; ``outcome`` is None while it
    runs. ``bytes`` is what left the router for the client in this transfer; ``result`` is where
    the answer can be had, once it is ready, by a client that was told to come for it.
    """

    request_id: str
    mac: str
    dataset: str
    mode: str
    state: str
    outcome: str | None = None
    mode_used: str | None = None
    error: Problem | None = None
    progress: str | None = None
    progress_done: int = 0
    size: int | None = None
    etag: str | None = None
    root: str | None = None
    bytes: int = 0
    started_unix: float = 0.0
    first_byte_seconds: float | None = None
    seconds: float | None = None
    result: str | None = None


def error_answer(error: TunnelSyncError) -> dict[str, Any]:
    """Return the body of an answer that is an error."""
    return {"status": "error", "error": error.to_wire()}


def problem_in(value: dict[str, Any]) -> TunnelSyncError | None:
    """Return the error in a result or an answer, or None where it is a success."""
    error = value.get("error")
    return None if error is None else TunnelSyncError.from_wire(error)
