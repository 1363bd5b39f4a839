"""Several small answers of a connector in one body; no I/O.

Each is an *item*: the lengths of a head and of a body, 4 bytes each in network order, the head as
JSON, and the body that the answer would have had by itself.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tunnelsync import wire
from tunnelsync.errors import BadRequest
from tunnelsync.protocol import Complete, Init

_LENGTHS = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Item:
    """Head of an item: a whole stream with ``init`` and ``complete``, without them a result."""

    request_id: str
    init: Init | None = None
    complete: Complete | None = None


def pack(item: Item, body: bytes) -> bytes:
    """Return an item as it is sent."""
    head = wire.dumps(item)
    return b"".join((_LENGTHS.pack(len(head), len(body)), head, body))


def unpack(data: bytes) -> Iterator[tuple[Item, bytes]]:
    """Yield each item with its body; raise `BadRequest` at what is none."""
    at = 0
    while at < len(data):
        begin = at + _LENGTHS.size
        if begin > len(data):
            raise BadRequest("the batch ends within the lengths of an item")
        head, body = _LENGTHS.unpack_from(data, at)
        at = begin + head + body
        if at > len(data):
            raise BadRequest("the batch ends within an item")
        yield wire.decode(Item, wire.loads(data[begin : begin + head])), data[begin + head : at]
