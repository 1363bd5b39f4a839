"""Mode buffer: the whole dataset in one JSON, with the digest of each block beside it."""

import asyncio
import binascii
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

from tunnelsync import frames
from tunnelsync.client.incoming import Incoming, Part, request_id_of
from tunnelsync.client.journal import Version
from tunnelsync.client.link import Link, decode
from tunnelsync.client.thread import SHORT_BYTES
from tunnelsync.errors import ProtocolError, VerificationFailed
from tunnelsync.frames import BLOCK_BYTES, Claimed
from tunnelsync.identity import Mac
from tunnelsync.protocol import BufferAnswer, DatasetRequest, Mode


@dataclass(frozen=True, slots=True)
class Buffer:
    """The way in one JSON, which is always whole."""

    in_parts: ClassVar[bool] = False
    link: Link
    mac: Mac
    dataset: str

    @asynccontextmanager
    async def opened(self, part: Part) -> AsyncIterator[Incoming]:
        """Ask for the dataset, and give the part of it. Raises `VerificationFailed` if the answer
        contradicts itself, `ProtocolError` if it is not understood."""
        link = self.link
        request = DatasetRequest(self.mac, self.dataset, if_match=part.if_match)
        async with link.request("POST", "datasets/request-sync", request) as response:
            body = link.body(response)
            text = await body.whole(link.settings.json_bytes)
            short = len(text) <= SHORT_BYTES
            answer, blocks = parse(text) if short else await asyncio.to_thread(parse, text)
            end = None if part.count is None else part.first + part.count
            yield Incoming(
                request_id=request_id_of(response),
                mode=Mode.BUFFER,
                version=Version(answer.size, answer.etag, answer.modified_ns),
                claims=_each(blocks[part.first : end]),
                body=body,
                root=answer.root,
            )

    def distrust(self, why: str) -> None:
        """There is no other."""


def parse(text: bytes) -> tuple[BufferAnswer, tuple[Claimed, ...]]:
    """Decode an answer and cut it into blocks, each with the digest that the answer lists."""
    answer = decode(BufferAnswer, text)
    data = _data(answer)
    try:
        digests = frames.split_digests(bytes.fromhex("".join(answer.blocks)))
    except ValueError:
        raise ProtocolError("the answer's digests are not hex") from None
    if len(data) != answer.size or len(digests) != frames.block_count(answer.size):
        raise VerificationFailed(f"{len(data)} bytes came, not the {answer.size} announced")
    if frames.root(digests) != answer.root:
        raise VerificationFailed("the root does not match the digests")
    return answer, tuple(
        Claimed(index, (data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES],), one)
        for index, one in enumerate(digests)
    )


def _data(answer: BufferAnswer) -> bytes:
    if answer.encoding == "utf-8":
        return answer.data.encode()
    if answer.encoding != "base64":
        raise ProtocolError(f"the encoding {answer.encoding[:64]!r} is not known")
    try:
        return binascii.a2b_base64(answer.data, strict_mode=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("the answer's data is not base64") from None


async def _each(blocks: Iterable[Claimed]) -> AsyncGenerator[Claimed, None]:
    for block in blocks:
        yield block
