"""``fetch -o -`` into a pipe whose reader does nothing."""

import asyncio
import fcntl
import os
import signal
import termios
from pathlib import Path

import pytest

from cli.ran import ended, started
from played_router import MAC, Streaming, content, played
from tunnelsync.frames import BLOCK_BYTES


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_though_the_reader_takes_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    reader, writer = os.pipe()
    room = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    try:
        async with played(Streaming(content(6 * BLOCK_BYTES))) as url:
            process = await started(
                *("fetch", "--router", url, MAC, "d", "-o", "-", "--mode", "stream"),
                cwd=tmp_path,
                stdout=writer,
            )
            os.close(writer)
            async with asyncio.timeout(20):
                while filled(reader) < room // 2:  # a page that is half full counts as one
                    await asyncio.sleep(0.01)
            process.send_signal(number)
            done = await asyncio.wait_for(ended(process), 20)
    finally:
        os.close(reader)
    assert done.code == 130
    assert "error: interrupted" in done.err


def filled(pipe: int) -> int:
    """Return how many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little")
