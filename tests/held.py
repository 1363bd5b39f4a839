"""A client that takes as much as a test wants, then holds still: it stops a stream midway."""

import socket
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urlsplit


class HeldGet:
    """A GET over a raw socket with a small buffer: what it does not read stays unread."""

    def __init__(self, router: str, path: str, *, headers: str = "") -> None:
        host = urlsplit(router)
        self._socket = socket.socket()
        try:
            self._ask(host, path, headers)
        except BaseException:
            self._socket.close()
            raise

    def _ask(self, host: SplitResult, path: str, headers: str) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self._socket.settimeout(30)
        self._socket.connect((host.hostname, host.port))
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host.netloc}\r\n{headers}\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._socket.recv(65536)
            assert data, head
            head += data
        raw, _, body = head.partition(b"\r\n\r\n")
        self.body = bytearray(body)
        lines = raw.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}

    @property
    def request_id(self) -> str:
        """The id under which the router keeps the receipt."""
        return self.headers["tunnelsync-request-id"]

    def read(self, count: int) -> bytearray:
        """Read until so many bytes of the body are here, or it ended; return the body so far."""
        while len(self.body) < count:
            data = self._socket.recv(1 << 20)
            if not data:
                break
            self.body += data
        return self.body

    def rest(self) -> tuple[bytearray, bool]:
        """Read to the end: the whole body, and whether all that was announced came."""
        announced = int(self.headers["content-length"])
        with suppress(ConnectionError):
            self.read(announced)
        return self.body, len(self.body) == announced

    def close(self) -> None:
        """Leave, as a client that is killed does."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
