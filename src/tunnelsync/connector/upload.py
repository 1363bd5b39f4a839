"""The HTTP side to the router: results, chunk requests and closing words, and their retries.

Everything sent here may be sent twice: the router answers the same again with the first answer.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from aiohttp import ClientSession
from yarl import URL

from tunnelsync import dial, protocol, wire
from tunnelsync.backoff import jittered
from tunnelsync.batch import Item
from tunnelsync.connector.batch import GONE, Batch
from tunnelsync.connector.outgoing import PIECE_BYTES, POSSIBLE, Outgoing
from tunnelsync.connector.proxies import Proxies
from tunnelsync.dial import CONNECTION_ERRORS, proxy_for, reason
from tunnelsync.errors import (
    BadRequest,
    Internal,
    RouterUnreachable,
    Stalled,
    TooLarge,
    TransferGone,
    TunnelSyncError,
)
from tunnelsync.frames import Buffer
from tunnelsync.settings import ConnectorSettings

log = logging.getLogger("tunnelsync.connector")

PASSING = dial.PASSING | {500}
"""Statuses of a router, too, that another try can turn into a success."""
BYTES = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the router said to one request."""

    status: int
    data: bytes

    @property
    def code(self) -> str:
        """The code of the error in it, or an empty text."""
        problem = self._problem()
        return problem.code if problem else ""

    @property
    def offset(self) -> int | None:
        """The offset in it, or None."""
        return self.number("offset")

    def number(self, name: str) -> int | None:
        """Return a number of its JSON, or None without one."""
        with suppress(BadRequest):
            value = wire.loads(self.data).get(name)
            return value if type(value) is int and value >= 0 else None
        return None

    @property
    def refused(self) -> dict[str, int] | None:
        """The items of a batch that are refused, with the status of each; None if it names none."""
        with suppress(BadRequest):
            found = wire.loads(self.data).get("refused")
            if isinstance(found, dict):
                return {name: one for name, one in found.items() if type(one) is int}
        return None

    def _problem(self) -> TunnelSyncError | None:
        with suppress(BadRequest):
            return protocol.problem_in(wire.loads(self.data))
        return None

    def __str__(self) -> str:
        problem = self._problem()
        return f"{self.status}, {problem.message}" if problem else f"{self.status}"


class Upload:
    """Speaks HTTP to one router in the name of one connector."""

    def __init__(
        self,
        http: ClientSession,
        router: URL,
        headers: Mapping[str, str],
        settings: ConnectorSettings,
    ) -> None:
        self.settings = settings
        self.proxies = Proxies(
            asyncio.get_running_loop().time,
            memory_seconds=settings.proxy_memory_seconds,
            held_chunk_bytes=settings.held_chunk_bytes,
        )
        self.from_file = POSSIBLE and settings.zero_copy and router.scheme == "http"
        self._http = http
        self._router = router
        self._headers = dict(headers)
        self._proxy = proxy_for(router)
        self._batch_url = router.join(URL("datasets/batch"))
        self.batch = Batch(self._post_batch)

    async def answer(self, request_id: str, *parts: bytes) -> None:
        """Give a result, whose JSON is these parts; says in the log if nobody could take it."""
        total = sum(map(len, parts))
        if await self.give(Item(request_id), total, *parts):
            return
        while (limit := self.proxies.body_bytes) is None or total <= limit:
            answer = await self._insist("datasets/result", request_id, parts)
            if not _by_proxy(answer) or not self.proxies.refused(total):
                break
        else:
            answer = await self._in_parts(request_id, parts, total)
        if answer is not None and answer.status == 413:
            refusal = TooLarge(f"the router, or a proxy before it, refuses a body of {total} bytes")
            await self.fail(request_id, refusal)

    async def give(self, item: Item, total: int, *parts: Buffer) -> bool:
        """Give an answer of so many bytes together with others, if it is small.

        Returns False if the router does not have it then.
        """
        if self.proxies.body_bytes is not None or not self.batch.has_room(total):
            return False
        return await self.batch.give(item, b"".join(parts))

    async def _post_batch(self, parts: Sequence[bytes]) -> dict[str, int] | None:
        body = Outgoing.of(parts)
        try:
            answer = await self._once("POST", self._batch_url, body, BYTES)
        except (RouterUnreachable, Stalled) as exc:
            log.debug("a batch of %d answers: %s", len(parts), exc.message)
            return None
        if answer.status == 200:
            return answer.refused
        if _by_proxy(answer):
            if not self.proxies.refused(body.length):
                self.batch.stop()
        elif answer.status not in PASSING:
            log.warning("the router takes no batches: %s", answer)
            self.batch.stop()
        return None

    async def _in_parts(self, request_id: str, parts: Sequence[bytes], total: int) -> Answer | None:
        """Give a result in parts that pass a proxy; the router tells where each must start."""
        at, back = 0, 0
        while True:
            end = min(total, at + (self.proxies.body_bytes or total))
            part, path = _between(parts, at, end), "datasets/result"
            answer = await self._insist(path, request_id, part, offset=str(at), length=str(total))
            if _by_proxy(answer) and self.proxies.refused(end - at):
                continue
            offset = None if answer is None else answer.offset
            if answer is None or offset is None or offset == total:
                return answer
            back += offset <= at
            if back > self.settings.resume_attempts:
                return answer
            at = offset

    async def fail(self, request_id: str, error: TunnelSyncError) -> None:
        """Give an error as the result: nothing has been sent of the dataset yet."""
        body = wire.dumps(protocol.error_answer(error))
        if not await self.give(Item(request_id), len(body), body):
            await self._insist("datasets/result", request_id, (body,))

    async def complete(self, complete: protocol.Complete) -> None:
        """Give the closing word of a stream."""
        body = wire.dumps(complete)
        await self._insist("datasets/stream/complete", complete.request_id, (body,))

    async def chunk(
        self,
        request_id: str,
        offset: int,
        body: Outgoing,
        headers: Mapping[str, str],
        after: int | None = None,
    ) -> Answer:
        """Send one chunk request; ``after`` is the offset of the one it follows, if that is open.

        Raises `RouterUnreachable` or `Stalled`.
        """
        behind = {} if after is None else {"after": str(after)}
        url = self._url("datasets/stream/chunk", request_id, offset=str(offset), **behind)
        return await self._once("POST", url, body, headers)

    async def offset(self, request_id: str) -> int:
        """Ask where a broken stream goes on; what was under way is dropped by the router.

        Raises `TransferGone` if nobody waits, else `RouterUnreachable`.
        """
        return (await self._asked_offset(request_id))[0]

    async def sees(self, request_id: str, offset: int) -> bool:
        """Ask whether the router sees the chunk request at this offset; breaks off nothing.

        Raises what `offset` raises.
        """
        _, behind = await self._asked_offset(request_id, detach="no")
        return behind is None or behind > offset

    async def _asked_offset(self, request_id: str, **query: str) -> tuple[int, int | None]:
        answer = await self._once("GET", self._url("datasets/stream/offset", request_id, **query))
        if answer.status in GONE:
            raise TransferGone(f"the router has no use for request {request_id} any more")
        if answer.status == 200 and answer.offset is not None:
            return answer.offset, answer.number("next")
        raise RouterUnreachable(f"the router does not tell the offset to go on from: {answer}")

    async def pause(self, tries: int) -> None:
        """Wait before the next try."""
        await asyncio.sleep(jittered(tries, self.settings))

    async def _insist(
        self, path: str, request_id: str, parts: Sequence[Buffer], **query: str
    ) -> Answer | None:
        """Post until there is an answer that stands; log what went wrong, None without one."""
        url = self._url(path, request_id, **query)
        for tries in range(self.settings.resume_attempts + 1):
            if tries:
                await self.pause(tries - 1)
            try:
                body = Outgoing.of(parts)
                answer = await self._once("POST", url, body, JSON)
            except RouterUnreachable as exc:
                why = exc.message
                continue
            except Stalled as exc:
                # A large body that stalled is not sent again: that would hold its place and
                # its share of the budget for one more deadline each time.
                why = exc.message
                if body.length > PIECE_BYTES:
                    break
                continue
            if answer.status not in PASSING:
                _note(path, request_id, answer)
                return answer
            why = f"the router answered {answer}"
        log.warning("transfer %s: %s gave up: %s", request_id, path, why)
        return None

    async def _once(
        self,
        method: str,
        url: URL,
        body: Outgoing | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        limits = self.settings
        sent = dict(self._headers, **(headers or {}))
        try:
            async with asyncio.timeout(limits.answer_seconds) as deadline:
                data = None if body is None else body.payload(deadline, limits.stall_seconds)
                async with self._http.request(
                    method, url, data=data, headers=sent, allow_redirects=False, **self._proxy
                ) as response:
                    return Answer(response.status, await self._small(response.content))
        except TimeoutError as exc:
            if isinstance(exc, aiohttp.ClientError):
                raise _unreachable(exc) from None
            raise Stalled("the router neither took a byte nor answered in time") from None
        except CONNECTION_ERRORS as exc:
            raise _unreachable(exc) from None

    async def _small(self, content: aiohttp.StreamReader) -> bytes:
        data = bytearray()
        while part := await content.read(self.settings.message_bytes):
            data += part
            if len(data) > self.settings.message_bytes:
                break
        return bytes(data)

    def _url(self, path: str, request_id: str, **query: str) -> URL:
        return self._router.join(URL(path)).with_query(request_id=request_id, **query)


def told(error: Exception, request_id: str) -> TunnelSyncError:
    """Return an error as the other side may know it; what is a defect of ours goes to the log."""
    if isinstance(error, TunnelSyncError):
        return error
    log.error("transfer %s: a defect in the connector", request_id, exc_info=error)
    return Internal(f"the connector failed at request {request_id}: {type(error).__name__}")


def _between(parts: Sequence[bytes], start: int, end: int) -> list[Buffer]:
    """Return the bytes from ``start`` to ``end`` of what buffers hold together, uncopied."""
    found: list[Buffer] = []
    for part in parts:
        if piece := memoryview(part)[max(0, start) : max(0, end)]:
            found.append(piece)
        start, end = start - len(part), end - len(part)
    return found


def _by_proxy(answer: Answer | None) -> bool:
    """Tell whether a body is over the limit of something that is not the router."""
    return answer is not None and answer.status == 413 and not answer.code


def _note(path: str, request_id: str, answer: Answer) -> None:
    if answer.status in GONE:
        log.debug("transfer %s: nobody waits for %s", request_id, path)
    elif answer.status >= 300 and not _by_proxy(answer):
        log.warning("transfer %s: %s was refused: %s", request_id, path, answer)


def _unreachable(error: BaseException) -> RouterUnreachable:
    return RouterUnreachable(f"the connection to the router failed: {reason(error)}")
