"""A line with a long round trip and a small window: several streams carry what one cannot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from harness import MAC, System, environ_of, make_file, sha256
from long_line import LongLine
from proxy import Way, in_a_thread
from s3 import S3Server
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.settings import KIB, MIB, ClientSettings, StoreSettings

SIZE = 64 * MIB
DELAY_SECONDS = 0.025
WINDOW_BYTES = 512 * KIB
STREAMS = 4
CUT_SHORT_BYTES = 12 * MIB
"""What the first stream, which asked for everything, may have under way when it is cut short:
the window, a block in each part of the way, and what sockets buffer. Far from the 48 MiB that
the others bring."""


class Line:
    """A system whose bytes come through a long line, and what a fetch over it tells."""

    def __init__(self, system: System, line: LongLine, environ: dict[str, str], mode: str) -> None:
        self._system = system
        self._line = line
        self._environ = environ
        self._mode = mode

    def fetched(self, parallel: int) -> tuple[dict[str, Any], int]:
        """Fetch by so many streams: the receipt, and the bytes that the line brought for it."""
        folder = self._system.tmp_path
        receipt, target = folder / f"receipt-{parallel}", folder / f"out-{parallel}"
        before = self._line.carried[Way.DOWN]
        done = self._system.cli(
            *("fetch", "--mode", self._mode, "--parallel", str(parallel)),
            *("--no-sync", "--receipt", receipt, "-o", target, MAC, "data"),
            env=self._environ,
        )
        assert done.code == 0, done.err
        assert sha256(target) == sha256(folder / "datasets/data")
        return orjson.loads(receipt.read_bytes()), self._line.carried[Way.DOWN] - before


@pytest.fixture(params=["stream", "offload"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    """The line before the router, or before the store: wherever the mode's bytes come from."""
    mode: str = request.param
    least = {"parallel_least_bytes": SIZE // STREAMS}
    environ = environ_of(ClientSettings, least)
    store: dict[str, str] = {}
    server: S3Server | None = None
    make_file(tmp_path / "datasets/data", SIZE)
    if mode == "offload":
        server = request.getfixturevalue("store_server")
        port = urlsplit(server.endpoint).port
        assert port is not None
    else:
        port = 0  # the router's, once it listens
    long = LongLine(port, delay_seconds=DELAY_SECONDS, window_bytes=WINDOW_BYTES)
    with in_a_thread(long):
        if server is not None:
            settings = server.settings("long-line", public_endpoint=long.url)
            names = ("endpoint", "public_endpoint", "bucket", "access_key", "secret_key")
            values = {name: getattr(settings, name) for name in names}
            # The object is young, and is still the one to fetch again by several streams.
            store = environ_of(StoreSettings, values | {"create_bucket": 1, "settle_seconds": 0})
        system = System(tmp_path, store)
        try:
            router = system.router()
            system.connector()
            if server is None:
                long.target_port = router.port
                environ["TUNNELSYNC_ROUTER"] = long.url
            yield Line(system, long, environ, mode)
        finally:
            system.stop()


@pytest.mark.slow
def test_four_streams_are_at_least_twice_as_fast_as_one(line: Line) -> None:
    one, _ = line.fetched(1)
    four, carried = line.fetched(STREAMS)
    assert len(one["transfers"]) == 1
    assert len([each for each in four["transfers"] if each["blocks"]]) >= STREAMS
    took = {"one": seconds(one), "four": seconds(four)}
    waste = four["received_bytes"] - SIZE, carried - SIZE
    print(f"seconds {took}, {took['one'] / took['four']:.2f} times; bytes too many {waste}")
    assert took["one"] >= 2 * took["four"], took

    # Each block came once, but for those under way when the first stream was cut short.
    assert one["received_bytes"] == SIZE
    assert SIZE <= four["received_bytes"] <= SIZE + STREAMS * BLOCK_BYTES
    assert carried <= SIZE + CUT_SHORT_BYTES


def seconds(receipt: dict[str, Any]) -> float:
    """How long the blocks took to come, from the first answer on: not what an upload took."""
    return float(receipt["received_seconds"] - receipt["transfers"][0]["answered_seconds"])
