"""``tunnelsync fetch`` as a process, against a played router: what its user sees."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from cli.ran import CANARY, ended, environment, ran, started
from played_router import (
    MAC,
    Streaming,
    content,
    digests_of,
    framed,
    json,
    played,
    stream_headers,
    streamed,
)
from tunnelsync import frames
from tunnelsync.errors import (
    ConnectorOffline,
    DatasetChanged,
    DatasetNotFound,
    TimedOut,
    TooLarge,
    TunnelSyncError,
)
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import H_OFFSET, error_answer

DATA = content(2 * BLOCK_BYTES + 7)
ROOT = frames.root(digests_of(DATA))


async def sending(request: web.Request) -> web.StreamResponse:
    assert request.headers["Authorization"] == f"Bearer {CANARY}"
    return streamed(DATA)


async def test_a_fetch_says_one_line_and_writes_the_file(tmp_path: Path) -> None:
    async with played(sending) as url:
        done = await ran("fetch", "--router", url, MAC, "a/d.bin", cwd=tmp_path)
    assert (done.code, done.out) == (0, b"")
    assert done.err.count("\n") == 1
    for part in ("d.bin: 8,388,615 bytes in ", " MB/s", "first byte ", "stream", ROOT):
        assert part in done.err
    assert (tmp_path / "d.bin").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["d.bin"]


@pytest.mark.parametrize(
    ("alias", "path"),
    [
        ("request-sync", "request-sync"),
        ("request-stream", "request-stream"),
        ("request-offload", "request-offload"),
        ("fetch", "request-auto"),
    ],
)
async def test_the_older_names_ask_for_their_mode(tmp_path: Path, alias: str, path: str) -> None:
    asked = []

    async def router(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return json(error_answer(DatasetNotFound("no such dataset")), 404)

    async with played(router) as url:
        done = await ran(alias, "--router", url, MAC, "d", cwd=tmp_path)
    assert asked == [f"/datasets/{path}"]
    assert done.code == 3
    assert done.err.startswith("error: no such dataset\n  hint: ")


async def test_json_is_one_object_on_stdout(tmp_path: Path) -> None:
    async with played(sending) as url:
        done = await ran("fetch", "--json", MAC, "d", cwd=tmp_path, TUNNELSYNC_ROUTER=url)
    told = orjson.loads(done.out)
    assert (done.code, done.err, told["status"]) == (0, "", "success")
    assert (told["root"], told["bytes"], told["mode_used"]) == (ROOT, len(DATA), "stream")
    assert told["path"] == str(tmp_path / "d")


@pytest.mark.parametrize(
    "kind", [DatasetNotFound, TooLarge, ConnectorOffline, TimedOut, DatasetChanged]
)
async def test_each_error_keeps_its_exit_code_as_json_too(
    tmp_path: Path, kind: type[TunnelSyncError]
) -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        return json(error_answer(kind("it \x1b[31mhappened")), kind.status)

    async with played(router) as url:
        plain = await ran("fetch", "--router", url, MAC, "d", cwd=tmp_path)
        machine = await ran("fetch", "--router", url, MAC, "d", "--json", cwd=tmp_path)
    assert plain.code == machine.code == kind.exit_code
    assert "\x1b" not in plain.err
    assert machine.err == ""
    assert orjson.loads(machine.out)["error"]["code"] == kind.code
    assert os.listdir(tmp_path) == []


async def test_stdout_gets_the_bytes(tmp_path: Path) -> None:
    async with played(sending) as url:
        done = await ran("fetch", "--router", url, MAC, "d", "-o", "-", cwd=tmp_path)
    assert (done.code, done.out, os.listdir(tmp_path)) == (0, DATA, [])


async def test_stdout_gets_no_byte_of_a_block_that_is_not_right(tmp_path: Path) -> None:
    class Second(Streaming):
        async def send(
            self, request: web.Request, headers: dict[str, str], body: bytes
        ) -> web.StreamResponse:
            wrong = bytearray(body)
            wrong[5 + (0 if headers[H_OFFSET] != "0" else BLOCK_BYTES + 36)] ^= 1
            return await super().send(request, headers, bytes(wrong))

    router = Second(DATA)
    async with played(router) as url:
        done = await ran("fetch", "--router", url, MAC, "d", "-o", "-", cwd=tmp_path)
    assert (done.code, done.out) == (7, DATA[:BLOCK_BYTES])
    assert router.asked == [(0, None), (1, None), (1, None), (1, None)]


@pytest.mark.parametrize("closed", [True, False])
async def test_a_reader_that_leaves_ends_it_with_one_error(tmp_path: Path, closed: bool) -> None:
    reader, writer = os.pipe()
    async with played(sending) as url:
        process = await started(
            *("fetch", "--router", url, MAC, "d", "-o", "-"), cwd=tmp_path, stdout=writer
        )
        os.close(writer)
        if not closed:
            assert await asyncio.to_thread(os.read, reader, 1) == DATA[:1]
        os.close(reader)
        done = await ended(process)
    assert done.code == 7
    assert done.err.startswith("error: cannot write the output: its reader has closed it\n")


async def test_a_file_that_is_there_stays_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"old")
    async with played(sending) as url:
        plain = await ran("fetch", "--router", url, MAC, "d", cwd=tmp_path)
        assert (plain.code, (tmp_path / "d").read_bytes()) == (4, b"old")
        forced = await ran("fetch", "--router", url, MAC, "d", "--force", "-q", cwd=tmp_path)
    assert (forced.code, forced.err, (tmp_path / "d").read_bytes()) == (0, "", DATA)


@pytest.mark.parametrize(
    "arguments",
    [
        ["fetch"],
        ["fetch", MAC],
        ["fetch", "nonsense", "d"],
        ["fetch", MAC, "../d"],
        ["fetch", MAC, "/etc/passwd"],
        ["fetch", MAC, "d", "--mode", "other"],
        ["fetch", MAC, "d", "-o", "no/such/folder/d"],
        ["fetch", MAC, "d", "--router", "ftp://x"],
        ["fetch", MAC, "d", "--config", "none.toml"],
        ["fetch", MAC, "d", "--token-file", "none"],
        ["nonsense"],
    ],
)
async def test_wrong_arguments_are_told_with_exit_code_2(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = await ran(*arguments, cwd=tmp_path)
    assert (done.code, done.out) == (2, b"")
    assert "error: " in done.err
    assert "hint: " in done.err


async def test_json_and_the_bytes_cannot_share_stdout(tmp_path: Path) -> None:
    done = await ran("fetch", MAC, "d", "--json", "-o", "-", cwd=tmp_path)
    assert (done.code, orjson.loads(done.out)["error"]["code"]) == (2, "usage")


async def test_a_closed_stdout_is_not_taken_for_a_socket(tmp_path: Path) -> None:
    async with played(sending) as url:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", 'exec "$0" "$@" >&-'),
            *(sys.executable, "-m", "tunnelsync", "fetch", "--router", url, MAC, "d", "-o", "-"),
            cwd=tmp_path,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        done = await ended(process)
    assert done.code == 7
    assert "cannot write the output" in done.err


class Hanging:
    """A router that sends one block and then nothing more."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers=stream_headers(len(DATA)))
        await answer.prepare(request)
        await answer.write(framed(DATA)[: BLOCK_BYTES + 99])
        self.begun.set()
        await asyncio.Event().wait()
        return answer


async def hold(process: asyncio.subprocess.Process, part: Path) -> None:
    """Wait until a block is in the part file."""
    while process.returncode is None and not (part.exists() and part.stat().st_size):
        await asyncio.sleep(0.01)
    assert process.returncode is None


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_no_descriptor_that_was_closed_becomes_that_of_another_file(
    tmp_path: Path, number: int
) -> None:
    async with played(Hanging()) as url:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", f'exec "$0" "$@" {number}>&-'),
            *(sys.executable, "-m", "tunnelsync", "fetch", "--router", url, MAC, "d"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        await hold(process, tmp_path / "d.tunnelsync.part")
        assert os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull
        process.send_signal(signal.SIGINT)
        assert (await ended(process)).code == 130


async def test_a_fetch_needs_neither_stdout_nor_stderr(tmp_path: Path) -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        return streamed(b"abc")

    async with played(router) as url:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", 'exec "$0" "$@" >&- 2>&-'),
            *(sys.executable, "-m", "tunnelsync", "fetch", "--router", url, MAC, "d"),
            cwd=tmp_path,
            env=environment(),
        )
        assert await asyncio.wait_for(process.wait(), 60) == 0
    assert (tmp_path / "d").read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
async def test_a_signal_in_mid_transfer_leaves_the_old_file(
    tmp_path: Path, number: int, code: int
) -> None:
    (tmp_path / "d").write_bytes(b"old")
    part = tmp_path / "d.tunnelsync.part"
    async with played(Hanging()) as url:
        process = await started("fetch", "--router", url, MAC, "d", "--force", cwd=tmp_path)
        await hold(process, part)
        process.send_signal(number)
        done = await ended(process)
    assert done.code == code
    assert (tmp_path / "d").read_bytes() == b"old"
    if code == 130:
        assert done.err.splitlines() == [
            "4,194,304 verified bytes are kept: the same command goes on from there",
            "error: interrupted",
        ]
    async with played(sending) as url:
        after = await ran("fetch", "--router", url, MAC, "d", "--force", cwd=tmp_path)
    assert (after.code, os.listdir(tmp_path)) == (0, ["d"])
    assert (tmp_path / "d").read_bytes() == DATA


async def test_of_two_that_write_one_file_the_second_is_told(tmp_path: Path) -> None:
    async with played(Hanging()) as slow, played(sending) as fast:
        first = await started("fetch", "--router", slow, MAC, "d", cwd=tmp_path)
        await hold(first, tmp_path / "d.tunnelsync.part")
        second = await ran("fetch", "--router", fast, MAC, "d", cwd=tmp_path)
        assert second.code == 4
        assert f"another process ({first.pid}) is writing" in second.err
        first.send_signal(signal.SIGINT)
        await ended(first)
    assert not (tmp_path / "d").exists()


async def test_a_name_with_control_characters_is_printed_escaped(tmp_path: Path) -> None:
    name = "a\n\x1b[2J\u202e.csv"
    async with played(sending) as url:
        done = await ran("fetch", "--router", url, MAC, f"deep/{name}", cwd=tmp_path)
    assert os.listdir(tmp_path) == [name]
    assert done.err.startswith('"a\\n\\x1b[2J\\u202e.csv": ')
    assert done.err.count("\n") == 1


async def test_a_path_of_any_bytes_is_told_as_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    async with played(sending) as url:
        done = await ran("fetch", "--json", "--router", url, MAC, "d", "-o", name, cwd=tmp_path)
    assert (done.code, os.listdir(tmp_path)) == (0, [name])
    assert orjson.loads(done.out)["path"] == f"{tmp_path}/caf\\xe9"


async def test_a_limit_on_the_files_size_is_a_clear_error(tmp_path: Path) -> None:
    async with played(sending) as url:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", 'ulimit -f 8; exec "$0" "$@"'),
            *(sys.executable, "-m", "tunnelsync", "fetch", "--router", url, MAC, "d"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        done = await ended(process)
    assert done.code == 7
    assert "the file is larger than this file system or limit allows" in done.err
    assert os.listdir(tmp_path) == []
