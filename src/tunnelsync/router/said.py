"""What a connector has said about one request, kept to compare it with what it says again; no I/O.

A result is gathered here: in one piece, or in parts where a proxy bounds the size of a body.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tunnelsync import protocol
from tunnelsync.errors import BadRequest, Conflict, ProtocolError, TransferGone, WrongOffset
from tunnelsync.frames import digest_of

ETAG_CHARACTERS = 256
ROOT_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class ResultBody:
    """A whole result, in the pieces in which it came, and its digest for comparison."""

    parts: tuple[bytes, ...]
    size: int
    digest: bytes

    @classmethod
    def of(cls, parts: list[bytes]) -> "ResultBody":
        """Return the result that these pieces make."""
        return cls(tuple(parts), sum(map(len, parts)), digest_of(parts))

    def joined(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.parts)


Reply = protocol.Init | ResultBody
"""The first answer of a connector."""


@dataclass(slots=True)
class Gathered:
    """A result that comes in parts, in order: ``size`` bytes of ``total`` are here.

    The pieces leave with the last part; the numbers stay, for a part that is sent again.
    """

    total: int
    size: int = 0
    pieces: list[bytes] = field(default_factory=list)

    def check(self, total: int, offset: int, length: int | None) -> None:
        """Raise unless a part is the next one: `WrongOffset`, `Conflict`, or `BadRequest`."""
        if total != self.total:
            raise Conflict(f"the result was to have {self.total} bytes, and now {total}")
        if offset != self.size:
            raise WrongOffset(f"the result stands at {self.size}, the part at {offset}")
        if not length or offset + length > total:
            raise BadRequest("a part has a length, at least one byte, and ends within the result")

    def add(self, pieces: list[bytes]) -> ResultBody | None:
        """Take in the next part, in its pieces; return the result if it is whole now."""
        self.pieces += pieces
        self.size += sum(map(len, pieces))
        if self.size < self.total:
            return None
        whole = ResultBody.of(self.pieces)
        self.drop()
        return whole

    def drop(self) -> None:
        """Let go of the pieces."""
        self.pieces = []


@dataclass(slots=True)
class Said:
    """What the connector has said so far."""

    init: protocol.Init | None = None
    complete: protocol.Complete | None = None
    result: bytes | None = None
    gathered: Gathered | None = None


def bounded(value: dict[str, Any], name: str, most: int) -> None:
    """Raise `BadRequest` if a member is a list of more items."""
    items = value.get(name)
    if isinstance(items, list) and len(items) > most:
        raise BadRequest(f"{len(items)} {name} are over the limit of {most}")


def check_names(*, etag: str = "", root: str | None = None) -> None:
    """Raise `BadRequest` for an etag or a root longer than any: receipts keep them."""
    if len(etag) > ETAG_CHARACTERS or len(root or "") > ROOT_CHARACTERS:
        raise BadRequest("an etag or a root that is too long")


def check(said: protocol.Init | protocol.StatAnswer, *, raw: bool = True) -> None:
    """Raise `BadRequest` for a version of a dataset that no answer can tell of.

    Without frames (``raw``) the length is that of the bytes of the dataset that come.
    """
    if said.status not in (200, 206, 304, 412, 416):
        raise BadRequest(f"{said.status} is no status of a dataset")
    if min(said.size, said.length, said.offset) < 0:
        raise BadRequest("a negative size, length or offset")
    if said.length and said.status not in (200, 206):
        raise BadRequest(f"an answer with the status {said.status} has no body")
    if raw and said.status == 200 and (said.offset, said.length) != (0, said.size):
        raise BadRequest("with 200 the length is the size, from the offset 0 on")
    if raw and said.status == 206 and said.offset + said.length > said.size:
        raise BadRequest("with 206 the part ends within the dataset")
    check_names(etag=said.etag)
    if not said.etag.isascii() or not said.etag.isprintable() or '"' in said.etag:
        raise BadRequest("an etag that no header can hold")


@contextmanager
def understanding(mac: str) -> Iterator[None]:
    """Raise `ProtocolError` where the answer of a connector is not understood."""
    try:
        yield
    except BadRequest as error:
        why = f"the answer of connector {mac} is not understood: {error.message}"
        raise ProtocolError(why) from None


def same(first: object, again: object, what: str) -> None:
    """Raise unless what is said again is what was said first."""
    if first is None:
        raise TransferGone(f"the transfer has ended without this {what}")
    if first != again:
        raise Conflict(f"another {what} came first for this transfer")
