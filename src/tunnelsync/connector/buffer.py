"""Mode buffer: a whole dataset as one JSON, built block by block so that only the JSON is held.

Text goes as it is where it is UTF-8 and its escapes stay shorter than base64 would be.
"""

import asyncio
import base64
import codecs
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import orjson

from tunnelsync import frames, wire
from tunnelsync.connector.source import AT_ONCE_BYTES, Source
from tunnelsync.connector.stream import Report, require_match
from tunnelsync.connector.upload import Upload
from tunnelsync.errors import ConnectorBusy, TooLarge
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import BufferAnswer, GetDataset, printable
from tunnelsync.settings import ConnectorSettings

HOLE = b'"data":""'  # within a JSON text every quote is escaped, so it stands there only once
REST_BYTES = 64 * 1024  # names, and whatever stands round the data
DIGEST_JSON_BYTES = 67  # 64 hex digits, quotes and a comma


class Buffer:
    """Builds the answers of mode buffer, within one budget over all of them."""

    def __init__(
        self, settings: ConnectorSettings, executor: ThreadPoolExecutor, upload: Upload
    ) -> None:
        self._limit_bytes = settings.dataset_buffer_bytes
        self._left_bytes = settings.buffers_bytes
        self._executor = executor
        self._upload = upload

    async def send(self, command: GetDataset, source: Source, report: Report) -> None:
        """Answer with the dataset.

        Raises `TooLarge` or `ConnectorBusy` before a byte is read, `PreconditionFailed`,
        `DatasetChanged` or `ReadFailed`.
        """
        require_match(command.conditions, source)
        if source.size > self._limit_bytes:
            raise TooLarge(
                f"{printable(source.name)} has {source.size} bytes, and mode buffer takes "
                f"{self._limit_bytes}; modes stream and offload have no such limit"
            )
        async with self._reserved(_json_bytes(source.size)):
            parts = await self._json(source, report)
            await self._upload.answer(command.request_id, *parts)

    @asynccontextmanager
    async def _reserved(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold a part of the budget, or raise `ConnectorBusy`."""
        if size_bytes > self._left_bytes:
            raise ConnectorBusy(
                f"the answer needs {size_bytes} bytes, and mode buffer has {self._left_bytes} left",
                hint="Try again when other transfers have ended, or use --mode stream.",
            )
        self._left_bytes -= size_bytes
        try:
            yield
        finally:
            self._left_bytes += size_bytes

    async def _json(self, source: Source, report: Report) -> list[bytes]:
        """Return the answer's JSON in parts: as text if that will do, else as base64."""
        try:
            return await self._encoded(source, report, _Text(source.size))
        except _NotWorthIt:
            return await self._encoded(source, report, _Base64())

    async def _encoded(
        self, source: Source, report: Report, encoder: "_Text | _Base64"
    ) -> list[bytes]:
        loop = asyncio.get_running_loop()
        digests: list[bytes] = []
        data: list[bytes] = []
        for at in range(0, source.size, BLOCK_BYTES):
            block = await source.block(at, min(BLOCK_BYTES, source.size - at))
            digests.append(block.digest)
            if source.size <= AT_ONCE_BYTES:
                data.append(encoder.encode(block.data))
            else:
                encoded = loop.run_in_executor(self._executor, encoder.encode, block.data)
                data.append(await encoded)
            report("reading", at + len(block.data))
        data.append(encoder.finish())
        answer = BufferAnswer(
            dataset=source.name,
            size=source.size,
            etag=source.etag,
            modified_ns=source.mtime_ns,
            root=frames.root(digests),
            blocks=tuple(digest.hex() for digest in digests),
            encoding=encoder.encoding,
            data="",
        )
        before, after = wire.dumps(answer).split(HOLE)
        return [before + HOLE[:-1], *data, HOLE[-1:] + after]


class _NotWorthIt(Exception):
    """The data is no text, or one that is longer as JSON than base64."""


class _Text:
    """Turns the blocks of a text into the inside of a JSON string; blocks may cut characters."""

    encoding = "utf-8"

    def __init__(self, size_bytes: int) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._left_bytes = _base64_bytes(size_bytes)

    def encode(self, data: bytes) -> bytes:
        try:
            inside = orjson.dumps(self._decoder.decode(data))[1:-1]
        except UnicodeDecodeError:
            raise _NotWorthIt from None
        self._left_bytes -= len(inside)
        if self._left_bytes < 0:
            raise _NotWorthIt
        return inside

    def finish(self) -> bytes:
        if self._decoder.getstate()[0]:
            raise _NotWorthIt
        return b""


class _Base64:
    """Turns blocks into base64; what three bytes do not divide waits for the next block."""

    encoding = "base64"

    def __init__(self) -> None:
        self._rest = b""

    def encode(self, data: bytes) -> bytes:
        data = self._rest + data
        whole = len(data) - len(data) % 3
        self._rest = data[whole:]
        return base64.b64encode(memoryview(data)[:whole])

    def finish(self) -> bytes:
        return base64.b64encode(self._rest)


def _base64_bytes(size_bytes: int) -> int:
    return -(-size_bytes // 3) * 4


def _json_bytes(size_bytes: int) -> int:
    """Return what the JSON of so many bytes takes at most."""
    blocks = frames.block_count(size_bytes)
    return _base64_bytes(size_bytes) + blocks * DIGEST_JSON_BYTES + REST_BYTES
