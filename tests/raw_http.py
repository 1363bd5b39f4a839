"""HTTP by hand: a request's bytes as the test writes them, and all that comes back."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; ``headers`` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body, one JSON object."""
        assert self.headers["content-type"].startswith("application/json"), self
        value = orjson.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def code(self) -> str:
        """The code of the error that the body tells of."""
        value = self.json()
        assert value["status"] == "error"
        assert value["error"]["message"]
        return str(value["error"]["code"])


def connect(url: str) -> socket.socket:
    """Connect to the host and port of a router's address."""
    at = urlsplit(url)
    return socket.create_connection((at.hostname, at.port), SECONDS)


def head(method: str, target: str | bytes, headers: Mapping[str, str | bytes]) -> bytes:
    """Return a request's head, with the target and the values of the headers as they are."""
    target = target.encode() if isinstance(target, str) else target
    fields = {"Host": "127.0.0.1", "Connection": "close", **headers}
    lines = [method.encode() + b" " + target + b" HTTP/1.1"]
    for name, value in fields.items():
        lines.append(name.encode() + b": " + (value.encode() if isinstance(value, str) else value))
    return b"\r\n".join([*lines, b"", b""])


def ask(
    url: str,
    method: str,
    target: str | bytes,
    headers: Mapping[str, str | bytes] | None = None,
    body: bytes = b"",
    *,
    announced: int | None = None,
) -> Answer:
    """Send one request and read its answer. ``announced`` is a length that may not follow.

    An answer that should have no body is read until the connection closes, to see that.
    """
    fields = dict(headers or {})
    if body or announced is not None:
        fields["Content-Length"] = str(len(body) if announced is None else announced)
    with connect(url) as sock:
        sock.sendall(head(method, target, fields) + body)
        data = b""
        while b"\r\n\r\n" not in data and (part := sock.recv(1 << 20)):
            data += part
        length = _length(data)
        if method == "HEAD" or length is None:
            return parsed(data + read_all(sock))
        return parsed(data + read_all(sock, length - len(data.partition(b"\r\n\r\n")[2])))


def post(url: str, path: str, message: object, **headers: str) -> Answer:
    """Post JSON, or bytes as they are."""
    body = message if isinstance(message, bytes) else orjson.dumps(message)
    return ask(url, "POST", path, headers, body, announced=len(body))


def read_all(sock: socket.socket, count: int | None = None) -> bytes:
    """Read until the other side closes, or so many bytes are here."""
    data = bytearray()
    while count is None or len(data) < count:
        part = sock.recv(1 << 20)
        if not part:
            break
        data += part
    return bytes(data)


def _length(head: bytes) -> int | None:
    found = re.search(rb"\r\ncontent-length: (\d+)\r\n", head, re.IGNORECASE)
    return None if found is None else int(found[1])


def parsed(data: bytes) -> Answer:
    """Take an answer apart."""
    raw, end, body = data.partition(b"\r\n\r\n")
    assert end, data
    status, *lines = raw.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Answer(int(status.split()[1]), headers, body)
