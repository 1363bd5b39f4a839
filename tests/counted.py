"""A role that counts what Python calls in all of its threads, and tells it at each SIGUSR1.

Run as ``python counted.py ROLE ARGUMENTS``: a command of the CLI, or ``client ROUTER FIFO``, which
fetches what each line of the FIFO asks for, over one open `TunnelSync`. With ``--plain`` before it
nothing is counted, and the process is as fast as in use.
"""

import asyncio
import gc
import signal
import sys
import threading
from types import FrameType

import orjson

COUNTED = ("call", "c_call")
"""A function of Python or C is entered; a coroutine that goes on counts again."""


class Calls:
    """How many calls one thread has made: its profile function."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event in COUNTED:
            self.count += 1


class Threads:
    """The calls of the thread that says `begin`, and of all that start after that."""

    def __init__(self) -> None:
        self._all: list[Calls] = []

    def begin(self) -> None:
        """Count from now on."""
        threading.setprofile(self._joined)
        self._joined()

    def tell(self, number: int, frame: FrameType | None) -> None:
        """Write the calls so far, and how many blocks of memory are in use without garbage."""
        calls = sum(one.count for one in self._all)
        gc.collect()
        print(f"counted {calls} {sys.getallocatedblocks()}", flush=True, file=sys.stderr)

    def _joined(self, *event: object) -> None:
        self._all.append(calls := Calls())
        sys.setprofile(calls)


async def fetch(router: str, fifo: str) -> None:
    """Be an open client: fetch so often what a line asks for, one after the other."""
    from tunnelsync.client import TunnelSync
    from tunnelsync.protocol import Mode

    loop = asyncio.get_running_loop()
    async with TunnelSync(router) as client:
        with open(fifo) as lines:
            while line := await loop.run_in_executor(None, lines.readline):
                mac, dataset, path, times = orjson.loads(line)
                for _ in range(times):
                    await client.fetch(mac, dataset, path, mode=Mode.STREAM, sync=False, force=True)
                print("fetched", flush=True, file=sys.stderr)


def main(arguments: list[str]) -> None:
    """Run a role, and count unless told not to."""
    if arguments[0] == "--plain":
        arguments = arguments[1:]
    else:
        threads = Threads()
        signal.signal(signal.SIGUSR1, threads.tell)
        threads.begin()
    if arguments[0] == "client":
        asyncio.run(fetch(*arguments[1:]))
    else:
        from tunnelsync.cli import main as run

        run(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
