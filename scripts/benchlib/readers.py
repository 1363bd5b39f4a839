"""Many readers of plain streams in one process, which throw away what comes.

It reads one JSON object on stdin for each group, ``{port, asked, rate_bytes, seconds}``, and
answers with a line ``begun`` when each has its first byte, and with one JSON object at the end.
``asked`` has a path and a ``Range`` for each stream, where an empty one means all of it.
A rate of 0 takes what comes; 0 seconds read to the end, others end so long after ``begun``.
Run as ``python readers.py``.
"""

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

READ_BYTES = 256 * 1024
TICK_SECONDS = 0.02
"""How often a paced reader takes its part."""
BLOCK_BYTES = 4 * 2**20
GIVE_UP_SECONDS = 60.0
"""Without a byte for any of them."""


@dataclass(slots=True, eq=False)
class Reader:
    """One stream: how many bytes of its answer came, head and all, and how many will."""

    link: socket.socket
    began: float
    head: bytearray = field(default_factory=bytearray)
    body_bytes: int = 0
    length: int | None = None

    def took(self, data: memoryview) -> None:
        """Count what came; the first of it is the head."""
        if self.length is not None:
            self.body_bytes += len(data)
            return
        self.head += data
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = self.head[:end].decode().lower().split("\r\n")
        if not {"200", "206"} & set(lines[0].split()):
            raise RuntimeError(lines[0])
        self.length = next(int(x.split(":")[1]) for x in lines if x.startswith("content-length:"))
        self.body_bytes = len(self.head) - end - 4

    @property
    def over(self) -> bool:
        """Whether all of it is here."""
        return self.length is not None and self.body_bytes >= self.length


class Group:
    """Streams that are read together."""

    def __init__(
        self, port: int, asked: list[tuple[str, str]], rate_bytes: float, seconds: float
    ) -> None:
        self.rate_bytes = rate_bytes
        self.began = time.monotonic()
        self.seconds = seconds
        self.until = float("inf")
        self.readers = []
        for path, part in asked:
            self.readers.append(Reader(_asked(port, path, part), time.monotonic()))
            if rate_bytes:
                # So that they do not all come to the end of a block at one moment.
                time.sleep(BLOCK_BYTES / rate_bytes / len(asked))
        self.open = selectors.DefaultSelector()
        for one in self.readers:
            self.open.register(one.link, selectors.EVENT_READ, one)
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.told = False

    def run(self) -> dict[str, float]:
        """Read to the end, and say how many bytes came in how many seconds."""
        last = time.monotonic()
        turns = cycle(self.readers)
        while self.open.get_map() and (now := time.monotonic()) < self.until:
            if self.rate_bytes:
                # One after the other: readers that know nothing of each other keep no common step.
                came = self._take_due(next(turns), now)
                time.sleep(TICK_SECONDS / len(self.readers))
            else:
                ready = [key.data for key, _ in self.open.select(1)]
                came = sum(map(self._take, ready))
            if came:
                last = now
            elif now - last > GIVE_UP_SECONDS:
                raise RuntimeError("nothing came for long")
            if not self.told and all(one.body_bytes for one in self.readers):
                self.told = True
                _say("begun")
                if self.seconds:
                    self.until = now + self.seconds
        seconds = time.monotonic() - self.began
        for one in self.readers:
            one.link.close()
        return {"bytes": sum(one.body_bytes for one in self.readers), "seconds": seconds}

    def _take_due(self, one: Reader, now: float) -> int:
        """Take what the rate allows by now; return how many bytes."""
        taken = 0
        while not one.over:
            due = (now - one.began) * self.rate_bytes - one.body_bytes
            if one.length is not None and due < 1:
                break
            count = self._take(one, max(1, int(due)))
            if not count:
                break
            taken += count
        return taken

    def _take(self, one: Reader, most: int = READ_BYTES) -> int:
        """Take what is there; return how many bytes."""
        try:
            count = one.link.recv_into(self.buffer[:most])
        except BlockingIOError:
            return 0
        if not count:
            raise RuntimeError(f"a stream broke off after {one.body_bytes} bytes")
        one.took(self.buffer[:count])
        if one.over:
            self.open.unregister(one.link)
        return count


def _asked(port: int, path: str, part: str) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port))
    ranged = f"Range: {part}\r\n" if part else ""
    link.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{ranged}\r\n".encode())
    link.setblocking(False)
    return link


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(Group(**asked).run())
    except (OSError, RuntimeError) as error:
        return {"error": str(error)}


if __name__ == "__main__":
    for line in sys.stdin:
        _say(json.dumps(_answer(json.loads(line))))
