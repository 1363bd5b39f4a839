"""Every error that TunnelSync can raise or send, each exactly once.

A class carries all that is fixed about an error: its code on the wire, its HTTP status,
the exit code of the command line, whether trying again can help, and what to do next.
An instance adds what happened, and to which dataset or connector.

::

    TunnelSyncError
    ├── Usage          exit 2: the request itself is wrong
    │   ├── BadRequest, BadName, BadMac, BadSetting
    ├── NotFound       exit 3: the thing named is not there
    │   ├── DatasetNotFound, NotADataset, ConnectorUnknown, TransferUnknown
    ├── Refused        exit 4: understood, and not done
    │   ├── Unauthorized, Forbidden, OutsideRoot, DatasetDenied, TooLarge, Unsupported,
    │   │   StoreNotConfigured, StoreUntrusted, PreconditionFailed, RangeNotSatisfiable,
    │   │   PlaintextRefused, TargetExists, TargetBusy, Conflict, WrongOffset
    ├── Unavailable    exit 5: not reachable now, try again later
    │   ├── ConnectorOffline, ConnectorReplaced, RouterUnreachable, RouterBusy,
    │   │   ConnectorBusy, Draining, StoreUnavailable, StoreRefused,
    │   │   NotARouter
    ├── TimedOut       exit 6
    │   ├── QueueTimedOut, Stalled
    ├── Broken         exit 7: begun, and not finished or not right
    │   ├── DatasetChanged, VerificationFailed, BrokenOff, ReadFailed, WriteFailed,
    │   │   ProtocolError, Internal
    └── Cancelled      exit 130
        └── TransferGone
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

TEXT_CHARACTERS = 4096  # of a message or hint from elsewhere: receipts keep them


class TunnelSyncError(Exception):
    """The base of every error of this package.

    ``message`` says what happened to what; ``hint`` says what to do next (the class has a
    default). ``status`` is the HTTP status, ``exit_code`` the command line's, and ``retry``
    tells whether the same request can succeed later without a change.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 7
    retry: ClassVar[bool] = False
    next_step: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.next_step if hint is None else hint
        self.retry_after_seconds: int | None = None  # as the router said, to a client
        self.request_id = ""  # of the transfer, as router and connector log it

    def to_wire(self) -> dict[str, str]:
        """Return ``{"code", "message", "hint"}``, the ``error`` member of an error answer."""
        return {"code": self.code, "message": self.message, "hint": self.hint}

    @staticmethod
    def from_wire(error: object) -> "TunnelSyncError":
        """Rebuild an error from the ``error`` member of an answer; never raises.

        An unknown code becomes `BrokenOff`, with the code kept in the message.
        """
        if not isinstance(error, Mapping):
            return ProtocolError("the other side sent an error in a form that is not known")
        code, message, hint = (error.get(k) for k in ("code", "message", "hint"))
        text = message[:TEXT_CHARACTERS] if isinstance(message, str) else "no message was given"
        if (kind := BY_CODE.get(str(code))) is None:
            return BrokenOff(f"{text} ({str(code)[:64]})")
        return kind(text, hint=hint[:TEXT_CHARACTERS] if isinstance(hint, str) else None)


class Usage(TunnelSyncError):
    """The request itself is wrong."""

    code, status, exit_code = "usage", 400, 2


class BadRequest(Usage):
    """A message or a parameter has the wrong form."""

    code = "bad_request"
    next_step = "Compare the request with docs/protocol.md."


class BadName(Usage):
    """A dataset or folder name that no connector can serve."""

    code = "bad_name"
    next_step = (
        "A name is UTF-8 without NUL, relative, with no empty, '.' or '..' component; "
        "`tunnelsync ls MAC` lists the names there are."
    )


class BadMac(Usage):
    """Not a MAC address."""

    code = "bad_mac"
    next_step = "Write it as cc-28-aa-00-11-22; `tunnelsync connectors` lists those known."


class BadSetting(Usage):
    """A setting that is unknown, or has a value it cannot have."""

    code = "bad_setting"
    next_step = "docs/settings.md lists every setting with its unit and default."


class NotFound(TunnelSyncError):
    """The thing named is not there."""

    code, status, exit_code = "not_found", 404, 3


class DatasetNotFound(NotFound):
    """No such dataset or folder under the connector's root."""

    code = "dataset_not_found"
    next_step = "`tunnelsync ls MAC [FOLDER]` lists what is there."


class NotADataset(NotFound):
    """The name belongs to something else than a regular file (or, for a listing, a folder)."""

    code = "not_a_dataset"
    next_step = "Only regular files are datasets; `tunnelsync fetch-folder` brings a folder."


class ConnectorUnknown(NotFound):
    """No connector with this MAC has a token, or has connected since the router started."""

    code = "connector_unknown"
    next_step = (
        "Check the MAC against `tunnelsync connectors`, and that the connector runs "
        "and points at this router."
    )


class TransferUnknown(NotFound):
    """No transfer has this request id, or its receipt has expired."""

    code = "transfer_unknown"
    next_step = "Receipts are kept for a bounded time and number; see docs/settings.md."


class Refused(TunnelSyncError):
    """Understood, and not done."""

    code, status, exit_code = "refused", 403, 4


class Unauthorized(Refused):
    """No token, or one that the router does not know."""

    code, status = "unauthorized", 401
    next_step = (
        "Give a valid token in TUNNELSYNC_TOKEN or with --token-file; "
        "`tunnelsync token create` makes one for the router's tokens file."
    )


class Forbidden(Refused):
    """The token is known, and may not do this."""

    code = "forbidden"
    next_step = "Use a token of the right role, and for a connector one bound to its MAC."


class OutsideRoot(Refused):
    """The name leads out of the connector's root, through a symbolic link for instance."""

    code = "outside_root"
    next_step = "Only what lies under the connector's --root is served; move or copy it there."


class DatasetDenied(Refused):
    """The connector's user may not read it."""

    code = "dataset_denied"
    next_step = "Give the user that the connector runs as permission to read it."


class TooLarge(Refused):
    """Over the limit of a mode or of a message."""

    code, status = "too_large", 413
    next_step = "Fetch it with --mode stream or --mode offload, which have no such limit."


class Unsupported(Refused):
    """Not something this router, connector or version can do."""

    code, status = "unsupported", 501
    next_step = "Check the versions of router, connector and client against one another."


class StoreNotConfigured(Refused):
    """Mode offload was asked of a router or connector that has no store."""

    code, status = "store_not_configured", 501
    next_step = (
        "Set TUNNELSYNC_STORE_ENDPOINT (and bucket and keys) for router and connector, "
        "or fetch with --mode stream, which needs no store."
    )


class StoreUntrusted(Refused):
    """A download address that is not of a store that the router announced."""

    code, status = "store_untrusted", 502
    next_step = (
        "Let router and connector name the same TUNNELSYNC_STORE_PUBLIC_ENDPOINT; "
        "nothing was downloaded."
    )


class PreconditionFailed(Refused):
    """``If-Match`` (or its like) does not hold for the dataset as it is now."""

    code, status = "precondition_failed", 412
    next_step = "The dataset is another version now; fetch it anew without the condition."


class RangeNotSatisfiable(Refused):
    """The range begins past the end, or is not aligned to blocks where it must be."""

    code, status = "range_not_satisfiable", 416
    next_step = "`tunnelsync stat MAC DATASET` tells the size; blocks are 4 MiB."


class PlaintextRefused(Refused):
    """A router on another host, over http."""

    code, status = "plaintext_refused", 400
    next_step = (
        "Over http the token and the data can be read and changed on the way: use https://, "
        "or add --allow-plaintext if you trust the whole path."
    )


class TargetExists(Refused):
    """The file to write is there already."""

    code, status = "target_exists", 409
    next_step = "Choose another name with -o, or replace it with --force."


class TargetBusy(Refused):
    """Another process is writing the same target."""

    code, status = "target_busy", 409
    next_step = "Wait for the other process, or choose another name with -o."


class Conflict(Refused):
    """A second, different answer to one request; or a step that is out of order."""

    code, status = "conflict", 409
    next_step = "The first answer stands; a connector must not change what it said."


class WrongOffset(Refused):
    """A chunk that does not start where the transfer stands."""

    code, status = "wrong_offset", 409
    next_step = "Go on at the offset that the answer gives."


class Unavailable(TunnelSyncError):
    """Not reachable now."""

    code, status, exit_code, retry = "unavailable", 503, 5, True


class ConnectorOffline(Unavailable):
    """The connector was here, or has a token, and is not connected now."""

    code = "connector_offline"
    next_step = "Check that the connector runs and reaches the router, then try again."


class ConnectorReplaced(Unavailable):
    """Another process said hello with the same MAC."""

    code = "connector_replaced"
    next_step = "Two connectors share one MAC: give each its own with --mac, then try again."


class RouterUnreachable(Unavailable):
    """No connection to the router."""

    code = "router_unreachable"
    next_step = "Check the address (--router or TUNNELSYNC_ROUTER) and that the router runs."


class NotARouter(Unavailable):
    """Something answers at the router's address, and not as a router does."""

    code, status, retry = "not_a_router", 502, False
    next_step = "A proxy in front of the router, or another server: check the address."


class RouterBusy(Unavailable):
    """A bounded queue or budget of the router is full."""

    code = "router_busy"
    next_step = "Try again in a few seconds."


class ConnectorBusy(Unavailable):
    """A bounded queue or budget of the connector is full."""

    code = "connector_busy"
    next_step = "Try again when other transfers have ended."


class Draining(Unavailable):
    """The router is shutting down."""

    code = "draining"
    next_step = "Try again in a few seconds, when it has restarted."


class StoreUnavailable(Unavailable):
    """The store does not answer."""

    code, status = "store_unavailable", 502
    next_step = "Check TUNNELSYNC_STORE_ENDPOINT and the store, or fetch with --mode stream."


class StoreRefused(Unavailable):
    """The store answers with a refusal: keys, bucket, or space."""

    code, status, retry = "store_refused", 502, False
    next_step = "Check the store's bucket, keys and free space, or fetch with --mode stream."


class TimedOut(TunnelSyncError):
    """No answer within the deadline."""

    code, status, exit_code, retry = "timed_out", 504, 6, True
    next_step = "Try again; if it lasts, look at the connector's log."


class QueueTimedOut(TimedOut):
    """Every place of the connector stayed taken for the whole deadline."""

    code, status = "queue_timed_out", 503
    next_step = "Try again when other transfers have ended, or raise the connector's places."


class Stalled(TimedOut):
    """A transfer that moved no byte for the whole deadline."""

    code = "stalled"
    next_step = "Check the network between router, connector and client, and try again."


class Broken(TunnelSyncError):
    """Begun, and not finished or not right."""

    code, status, exit_code = "broken", 502, 7


class DatasetChanged(Broken):
    """The dataset changed while it was read."""

    code, status, retry = "dataset_changed", 409, True
    next_step = "Try again when nobody writes to it; nothing was kept."


class VerificationFailed(Broken):
    """Bytes arrived that do not match their digest."""

    code, retry = "verification_failed", True
    next_step = "The target was not touched. If it lasts, suspect a disk or a proxy on the way."


class BrokenOff(Broken):
    """The connection ended before the transfer did."""

    code, retry = "broken_off", True
    next_step = "Run the same command again: it goes on from what was verified."


class ReadFailed(Broken):
    """The connector could not read the dataset to its end."""

    code, status = "read_failed", 500
    next_step = "Look at the connector's log and the disk that holds the dataset."


class WriteFailed(Broken):
    """The client could not write: disk full, no permission, a closed pipe."""

    code, status = "write_failed", 500
    next_step = "Check free space and permissions where -o points."


class ProtocolError(Broken):
    """The other side said something that the protocol does not allow."""

    code = "protocol_error"
    next_step = "Check the versions of router, connector and client against one another."


class Internal(Broken):
    """A defect in TunnelSync itself."""

    code, status = "internal", 500
    next_step = "Please report it with the log line that carries the same request id."


class Cancelled(TunnelSyncError):
    """Ended because somebody asked for it."""

    code, status, exit_code = "cancelled", 410, 130


class TransferGone(Cancelled):
    """Nobody waits for this transfer any more."""

    code = "gone"
    next_step = "Drop the work; the client has left or the transfer has ended."


def _tree(base: type[TunnelSyncError]) -> Iterator[type[TunnelSyncError]]:
    yield base
    for child in base.__subclasses__():
        yield from _tree(child)


BY_CODE: Mapping[str, type[TunnelSyncError]] = {kind.code: kind for kind in _tree(TunnelSyncError)}
"""Every error class by its code; codes are unique, which a test asserts."""
