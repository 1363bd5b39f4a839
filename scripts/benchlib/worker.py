"""The client of the bench: one open `TunnelSync` in a process of its own, told what to fetch.

It reads one JSON object a line on stdin and answers each with one on stdout; the end of stdin
ends it. Run as ``python worker.py ROUTER``.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from tunnelsync.client import TunnelSync
from tunnelsync.errors import TunnelSyncError
from tunnelsync.protocol import Mode


async def serve(router: str) -> None:
    """Fetch what stdin asks for, one after the other."""
    loop = asyncio.get_running_loop()
    async with TunnelSync(router) as client:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                answer = await fetch(client, **orjson.loads(line))
            except TunnelSyncError as error:
                answer = {"error": f"{error.code}: {error.message}"}
            sys.stdout.write(orjson.dumps(answer).decode() + "\n")
            sys.stdout.flush()


async def fetch(
    client: TunnelSync,
    *,
    mac: str,
    dataset: str,
    path: str,
    mode: str,
    sync: bool,
    times: int,
    together: int = 0,
) -> dict[str, Any]:
    """Fetch a dataset so many times into the same name, and return what each time took.

    With ``together``, so many are in flight at once, each into a name of its own, and the time is
    that of all.
    """
    seconds: list[float] = []
    first: list[float | None] = []
    if together:
        began, numbers = time.perf_counter(), iter(range(times))

        async def some() -> None:
            for number in numbers:
                target = f"{path}.{number}"
                await client.fetch(mac, dataset, target, mode=Mode(mode), sync=sync)

        await asyncio.gather(*(some() for _ in range(together)))
        return {"seconds": [time.perf_counter() - began], "first_byte_seconds": [None]}
    for _ in range(times):
        Path(path).unlink(missing_ok=True)  # noqa: ASYNC240
        fetched = await client.fetch(mac, dataset, path, mode=Mode(mode), sync=sync)
        seconds.append(fetched.seconds)
        first.append(fetched.first_byte_seconds)
    return {"seconds": seconds, "first_byte_seconds": first}


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
