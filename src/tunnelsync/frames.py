"""Blocks, digests, root, and the frames in which they travel; no I/O.

A *block* is 4 MiB at a file-aligned offset, the last one shorter. Its *digest* is BLAKE3, and
the *root* is BLAKE3 over the digests in order. In the coding ``blocks`` a body is a sequence of
frames, all integers big-endian:

=============  ==========================================================================
``length``     frame
=============  ==========================================================================
1 .. 4 MiB     4-byte length, payload, 32-byte digest of the plain block
0              the end: 4-byte length, 8-byte count of blocks, 32-byte root of what was sent
0xFFFFFFFF     a failure: 4-byte mark, 4-byte length, JSON ``{"code", "message", "hint"}``
=============  ==========================================================================

A body that stops without an end frame was broken off, whatever the connection says.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import orjson
from blake3 import blake3

from tunnelsync.errors import BrokenOff, ProtocolError, TunnelSyncError, VerificationFailed

BLOCK_BYTES = 4 * 1024 * 1024
DIGEST_BYTES = 32
ROOT_PREFIX = "blake3-4m:"
FAILURE = 0xFFFFFFFF
FAILURE_BYTES = 64 * 1024
HEAD = struct.Struct(">I")
END = struct.Struct(">IQ32s")
FRAME_OVERHEAD_BYTES = HEAD.size + DIGEST_BYTES

Buffer = bytes | bytearray | memoryview


def digest(data: Buffer) -> bytes:
    """Return the 32-byte BLAKE3 digest of one block."""
    return blake3(data).digest()


def digest_of(parts: Iterable[Buffer]) -> bytes:
    """Return the digest of bytes that come in parts; each is done with when the next comes."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def root(digests: Iterable[bytes]) -> str:
    """Return the root over digests in order, written ``blake3-4m:HEX``."""
    return ROOT_PREFIX + digest_of(digests).hex()


def block_count(size_bytes: int) -> int:
    """Return how many blocks a dataset of this size has; none when it is empty."""
    return -(-size_bytes // BLOCK_BYTES)


def split_digests(packed: bytes) -> list[bytes]:
    """Split packed digests (32 bytes each); raise `ProtocolError` for a length that is none."""
    if len(packed) % DIGEST_BYTES:
        raise ProtocolError("the packed digests are not a multiple of 32 bytes")
    return [packed[i : i + DIGEST_BYTES] for i in range(0, len(packed), DIGEST_BYTES)]


def framed_length(size_bytes: int) -> int:
    """Return the length in bytes of the whole body that carries so many bytes as frames."""
    return size_bytes + block_count(size_bytes) * FRAME_OVERHEAD_BYTES + END.size


def between_frames(body_offset: int) -> bool:
    """Tell whether a byte of a framed body is the first of a frame; all but the last are full."""
    return body_offset % (BLOCK_BYTES + FRAME_OVERHEAD_BYTES) == 0


def encode_head(length: int) -> bytes:
    """Return what comes before a block's payload."""
    return HEAD.pack(length)


def encode_end(count: int, root_text: str) -> bytes:
    """Return the end frame."""
    return END.pack(0, count, bytes.fromhex(root_text.removeprefix(ROOT_PREFIX)))


def encode_failure(error: TunnelSyncError) -> bytes:
    """Return the failure frame, which ends a body in place of the end frame."""
    payload = orjson.dumps(error.to_wire())
    return HEAD.pack(FAILURE) + HEAD.pack(len(payload)) + payload


@dataclass(frozen=True, slots=True)
class Claimed:
    """A block as it arrived, in parts, with the digest that it claims; nothing is proven yet."""

    index: int
    parts: tuple[bytes, ...]
    digest: bytes

    def verified(self) -> tuple[bytes, ...]:
        """Return the parts if they match the digest, else raise `VerificationFailed`."""
        if digest_of(self.parts) != self.digest:
            raise VerificationFailed(f"block {self.index} does not match its digest")
        return self.parts


@dataclass(frozen=True, slots=True)
class End:
    """The end frame: all blocks were sent, and this is what they were."""

    count: int
    root: str


class Decoder:
    """Turns the bytes of a framed body, cut anywhere, into `Claimed` blocks and one `End`.

    Feed it with `feed`; call `finish` when the body has ended. Raises `ProtocolError` for
    bytes that are no frame, the sender's own error for a failure frame, `BrokenOff` for a
    body that stops early, and `VerificationFailed` for an end that does not fit the blocks.
    """

    def __init__(self, first_block: int = 0) -> None:
        self._index = first_block
        self._parts: list[bytes] = []
        self._held = 0
        self._want = HEAD.size
        self._state = "head"
        self._payload: tuple[bytes, ...] = ()
        self._digests = blake3()
        self._count = 0
        self._ended = False

    def feed(self, data: bytes) -> Iterator[Claimed | End]:
        """Yield what the data completes."""
        start, size = 0, len(data)
        while start < size:
            if self._ended:
                raise ProtocolError("bytes follow the end frame")
            need = self._want - self._held
            part = data if start == 0 and size <= need else data[start : start + need]
            self._parts.append(part)
            self._held += len(part)
            start += len(part)
            if self._held == self._want:
                event = self._complete()
                if event is not None:
                    yield event

    def finish(self) -> None:
        """Raise `BrokenOff` unless the end frame has come."""
        if not self._ended:
            raise BrokenOff("the data stopped before its end")

    def _expect(self, state: str, want: int) -> None:
        self._state, self._want, self._parts, self._held = state, want, [], 0

    def _complete(self) -> Claimed | End | None:
        if self._state == "payload":
            self._payload = tuple(self._parts)
            self._expect("digest", DIGEST_BYTES)
            return None
        field = b"".join(self._parts)
        if self._state == "head":
            self._head(HEAD.unpack(field)[0])
            return None
        if self._state == "digest":
            claimed = Claimed(self._index, self._payload, field)
            self._digests.update(field)
            self._index += 1
            self._count += 1
            self._payload = ()
            self._expect("head", HEAD.size)
            return claimed
        if self._state == "end":
            return self._end(field)
        if self._state == "failure head":
            length = HEAD.unpack(field)[0]
            if not 0 < length <= FAILURE_BYTES:
                raise ProtocolError("a failure frame of an impossible length")
            self._expect("failure", length)
            return None
        raise _failure(field)

    def _head(self, length: int) -> None:
        if length == FAILURE:
            self._expect("failure head", HEAD.size)
        elif length == 0:
            self._expect("end", END.size - HEAD.size)
        elif length <= BLOCK_BYTES:
            self._expect("payload", length)
        else:
            raise ProtocolError(f"a frame of {length} bytes is longer than a block")

    def _end(self, field: bytes) -> End:
        count, root_bytes = int.from_bytes(field[:8], "big"), field[8:]
        if count != self._count or root_bytes != self._digests.digest():
            raise VerificationFailed("the blocks that came are not those that were sent")
        self._ended = True
        return End(count, ROOT_PREFIX + root_bytes.hex())


def _failure(payload: bytes) -> TunnelSyncError:
    try:
        return TunnelSyncError.from_wire(orjson.loads(payload))
    except orjson.JSONDecodeError:
        return ProtocolError("a failure frame that is not JSON")
