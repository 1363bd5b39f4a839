"""Files that are read again when they have changed, while the router runs: tokens, certificates."""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TypeVar

from tunnelsync.errors import BadSetting

log = logging.getLogger("tunnelsync.router")

Content = TypeVar("Content")


class Files:
    """Files that somebody has read, or will read now; `watch` tells of changes from then on."""

    def __init__(self, *paths: str) -> None:
        self._paths = paths
        self._stamp = self._now()

    async def watch(
        self,
        every_seconds: float,
        read: Callable[[], Content],
        take: Callable[[Content], None],
        *,
        else_: str,
    ) -> None:
        """Read them, in a thread, and take what was read, when they have changed; for ever.

        Until that succeeds they are read each time: what failed with `BadSetting` may have been
        this process, their permissions, or half of a change. ``else_`` says what holds meanwhile.
        """
        told = ""
        while self._paths:
            await asyncio.sleep(every_seconds)
            stamp = await asyncio.to_thread(self._now)
            if stamp == self._stamp:
                continue
            try:
                take(await asyncio.to_thread(read))
            except BadSetting as error:
                if error.message != told:
                    log.error("%s; %s", error.message, else_)
                told = error.message
                continue
            self._stamp, told = stamp, ""

    def _now(self) -> list[tuple[int, ...] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> tuple[int, ...] | None:
    """Return what differs when a file has changed; None where it cannot be seen."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
