"""The multipart uploads of a store: one object of many parts, and no upload left open.

Also how a store is spoken to without its library.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from tunnelsync.errors import StoreRefused, TunnelSyncError
from tunnelsync.settings import StoreSettings
from tunnelsync.together import Together

log = logging.getLogger(__name__)

MOST_LEFT = 2000  # to be removed later: two datasets' segments; of more the oldest stay

Request = Callable[..., Coroutine[Any, Any, Any]]
"""An operation of S3 by its name, with its parameters; raises our errors."""
Part = Callable[..., Coroutine[Any, Any, str]]
"""Brings one part of a multipart upload, given its parameters; returns the part's ETag."""


@dataclass(frozen=True, slots=True)
class Operations:
    """How a store is spoken to without its library; each raises our errors.

    ``request`` is an operation by its name, ``ask`` one that is None for what is missing, and
    ``send`` one whose body is a window, which goes before the name. ``wait`` waits for what the
    library does besides; ``sign`` returns the address of an object by its key, for so many
    seconds, with a content disposition.
    """

    request: Request
    ask: Request
    send: Request
    wait: Callable[[Callable[[], Awaitable[Any]]], Coroutine[Any, Any, Any]]
    sign: Callable[[str, int, str | None], Coroutine[Any, Any, str]]


class Multipart:
    """The multipart uploads of a store. Whatever ends one, it does not stay open: begin and end
    are shielded, for one that is cut off may still have happened, and would be known to nobody.
    """

    def __init__(self, settings: StoreSettings, store: Operations) -> None:
        self._settings = settings
        self._request, self._ask = store.request, store.ask
        self._owned: set[asyncio.Task[Any]] = set()
        self._left: dict[str, tuple[str, dict[str, Any]]] = {}
        """What is to be aborted or removed, by id or key: the operation, and its parameters."""

    async def close(self) -> None:
        """Wait for what must come to its end, and abort what was left open."""
        await asyncio.gather(*self._owned, return_exceptions=True)
        await self.abort_left()

    async def upload(
        self,
        parts: Sequence[Part],
        before_end: Callable[[], Awaitable[None]],
        data: dict[str, Any],
        **kind: Any,
    ) -> None:
        """Make the object ``data`` (its Bucket and Key) of parts, ``parts_at_once`` at a time."""
        begun = self.own(self._request("create_multipart_upload", **data, **kind))
        ended: asyncio.Task[Any] | None = None
        try:
            upload = {**data, "UploadId": (await asyncio.shield(begun))["UploadId"]}
            whole = {"Parts": await self._parts(upload, parts)}
            await before_end()
            complete = self._request("complete_multipart_upload", **upload, MultipartUpload=whole)
            ended = self.own(complete)
            await asyncio.shield(ended)
        except BaseException:
            await asyncio.shield(self.own(self._abort(data, begun, ended)))
            raise

    async def _parts(self, upload: dict[str, Any], parts: Sequence[Part]) -> list[dict[str, Any]]:
        waiting = iter(enumerate(parts, 1))
        tags: dict[int, str] = {}

        async def work() -> None:
            for number, part in waiting:
                tags[number] = await part(**upload, PartNumber=number)

        together = Together()
        for _ in parts[: max(1, self._settings.parts_at_once)]:
            together.add(work())
        await together.wait()
        return [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]

    async def _abort(
        self, data: dict[str, Any], begun: asyncio.Task[Any], ended: asyncio.Task[Any] | None
    ) -> None:
        answer, *end = await asyncio.gather(
            begun, *([ended] if ended else []), return_exceptions=True
        )
        if isinstance(answer, BaseException) or (end and not isinstance(end[0], BaseException)):
            return  # never begun, or whole
        upload = {**data, "UploadId": answer["UploadId"]}
        self._leave(answer["UploadId"], "abort_multipart_upload", upload)
        await self.abort_left()

    def remove_later(self, key: str) -> None:
        """Have an object removed the next time, if it is there then."""
        self._leave(key, "delete_object", {"Bucket": self._settings.bucket, "Key": key})

    def _leave(self, number: str, operation: str, what: dict[str, Any]) -> None:
        self._left[number] = operation, what
        if len(self._left) > MOST_LEFT:
            _, oldest = self._left.pop(next(iter(self._left)))
            log.warning("an upload of %s stays in the store, for `store gc`", oldest["Key"])

    async def abort_left(self) -> None:
        """End what must not stay; what a silent store keeps is tried again next time."""
        for number, (operation, what) in list(self._left.items()):
            # In a task of its own: its deadlines cancel it, and must not be taken for our end.
            asking = asyncio.create_task(self._ask(operation, **what))
            try:
                done, _ = await asyncio.wait({asking}, timeout=self._settings.abort_seconds)
            finally:
                asking.cancel()
            ended = await asyncio.gather(asking, return_exceptions=True)
            if isinstance(failed := ended[0], BaseException):
                known = isinstance(failed, TunnelSyncError)
                told = str(failed) if done and known else "silence"
                log.warning("an upload of %s stays in the store: %s", what["Key"], told)
                if not isinstance(failed, StoreRefused):
                    return
            self._left.pop(number, None)

    def own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Return a task that comes to its end in any case: `close` waits for it."""
        task = asyncio.create_task(work)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)
        return task
