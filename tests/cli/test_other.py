"""The other commands as processes: what they print, and what they leave."""

import asyncio
import fcntl
import json as stdlib_json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from cli.ran import CANARY, ended, ran, started
from played_router import MAC, content, digests_of, json, played
from tunnelsync import frames
from tunnelsync.cli import COMMANDS
from tunnelsync.errors import DatasetChanged
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.identity import parse_tokens, token_hash


@pytest.mark.parametrize(
    "name", [one for one in COMMANDS if one not in ("demo", "router", "connector")]
)
async def test_each_command_explains_itself(tmp_path: Path, name: str) -> None:
    for flag in ("-h", "--help"):
        done = await ran(name, flag, cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"Usage: tunnelsync {name} ".encode())


async def test_the_whole_explains_itself_and_its_exit_codes(tmp_path: Path) -> None:
    done = await ran("-h", cwd=tmp_path)
    assert done.code == 0
    assert "130 interrupted" in " ".join(done.out.decode().split())
    assert (await ran("--version", cwd=tmp_path)).out.startswith(b"tunnelsync ")


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1])
async def test_digest_is_the_root_of_the_file(tmp_path: Path, size: int) -> None:
    data = content(size)
    root = frames.root(digests_of(data))
    (tmp_path / "a b").write_bytes(data)
    assert (await ran("digest", "a b", cwd=tmp_path)).out == f"{root}  a b\n".encode()
    told = orjson.loads((await ran("digest", "--json", "a b", cwd=tmp_path)).out)
    assert told == {"status": "success", "root": root, "file": "a b", "size": size}


@pytest.mark.parametrize(("file", "code"), [("none", 3), (".", 3)])
async def test_digest_of_what_is_no_file(tmp_path: Path, file: str, code: int) -> None:
    done = await ran("digest", file, cwd=tmp_path)
    assert (done.code, done.out) == (code, b"")
    assert "hint: " in done.err


async def test_digest_takes_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writing = asyncio.to_thread((tmp_path / "pipe").write_bytes, b"x" * 100_000)
    done, _ = await asyncio.gather(ran("digest", "--json", "pipe", cwd=tmp_path), writing)
    assert orjson.loads(done.out)["size"] == 100_000


async def listing(request: web.Request) -> web.StreamResponse:
    entries = [
        {"name": "a\x1b[31m\n.csv", "kind": "dataset", "size": 5, "modified_ns": 10**18},
        {"name": "folder", "kind": "folder"},
    ]
    if "after" in request.query:
        return json({"entries": entries[1:]})
    return json({"entries": entries[:1], "next": "a\x1b[31m\n.csv", "unlisted": 2})


async def test_ls_prints_every_page_with_names_escaped(tmp_path: Path) -> None:
    async with played(listing) as url:
        done = await ran("ls", "--router", url, MAC, cwd=tmp_path)
        told = await ran("ls", "--router", url, "--json", MAC, "sub", cwd=tmp_path)
    assert done.out.decode().splitlines() == [
        '"a\\x1b[31m\\n.csv"\t5\t2001-09-09T01:46:40Z',
        "folder/\t-\t-",
    ]
    assert "2 names" in done.err
    value = orjson.loads(told.out)
    assert [one["name"] for one in value["entries"]] == ["a\x1b[31m\n.csv", "folder"]
    assert (value["mac"], value["folder"], value["unlisted"]) == (MAC, "sub", 2)


async def test_stat_connectors_and_receipt(tmp_path: Path) -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        if request.method == "HEAD":
            size = {"TunnelSync-Size": "5", "TunnelSync-Modified-Ns": "0", "ETag": '"v1"'}
            return web.Response(headers=size)
        if request.path == "/connectors":
            return json({"connectors": [{"mac": MAC, "version": "1", "connected_seconds": 7.2}]})
        assert request.path == "/transfers/r1"
        members = {"request_id": "r1", "mac": MAC, "dataset": "d\n", "mode": "stream"}
        problem = DatasetChanged("it changed").to_wire()
        return json({**members, "state": "ended", "outcome": "broken", "error": problem})

    async with played(router) as url:
        at = {"cwd": tmp_path, "TUNNELSYNC_ROUTER": url}
        shown = await ran("stat", MAC, "d", **at)  # type: ignore[arg-type]
        connected = await ran("connectors", **at)  # type: ignore[arg-type]
        receipt = await ran("receipt", "r1", "--wait", "5", **at)  # type: ignore[arg-type]
        told = await ran("receipt", "r1", "--json", **at)  # type: ignore[arg-type]
    assert shown.out.decode().split() == [
        *("name:", "d", "size:", "5", "etag:", "v1", "modified:", "1970-01-01T00:00:00Z")
    ]
    assert connected.out.decode() == f"{MAC}\t7\t1\t\t0\n"
    assert receipt.code == 0
    assert b"dataset_changed: it changed" in receipt.out
    assert b'"d\\n"' in receipt.out
    assert orjson.loads(told.out)["receipt"]["error"]["code"] == "dataset_changed"


async def test_a_token_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    os.umask(os.umask(0o022))
    create = ("token", "create", "--role", "client", "--note", "Ana's notebook")
    client = await ran(*create, cwd=tmp_path)
    connector = await ran("token", "create", "--role", "connector", "--mac", MAC, cwd=tmp_path)
    token = client.out.decode().strip()
    assert (client.code, connector.code) == (0, 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.encode() not in path.read_bytes()
    assert connector.out.strip() not in path.read_bytes()
    grants = parse_tokens(path.read_bytes())
    grant = grants[token_hash(token)]
    assert [(one.role, one.mac) for one in grants.values()] == [
        ("client", None),
        ("connector", MAC),
    ]
    assert os.listdir(tmp_path) == ["tokens.json"]

    listed = await ran("token", "list", "--json", cwd=tmp_path)
    rows = stdlib_json.loads(listed.out)["tokens"]
    created = rows[0].pop("created")
    assert datetime.now(UTC) - datetime.fromisoformat(created) < timedelta(minutes=1)
    about = {"id": grant.id, "role": "client", "mac": None}
    assert rows[0] == about | {"note": "Ana's notebook"}
    assert token not in listed.out.decode()

    gone = await ran("token", "revoke", grant.id, cwd=tmp_path)
    left = [one.role for one in parse_tokens(path.read_bytes()).values()]
    assert (gone.code, left) == (0, ["connector"])
    assert (await ran("token", "revoke", grant.id, cwd=tmp_path)).code == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
async def test_root_makes_a_tokens_file_for_whom_its_folder_belongs_to(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    os.chown(folder, 54321, 54322)
    await ran("token", "create", "--role", "client", cwd=folder)
    found = (folder / "tokens.json").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (54321, 54322, 0o600)


async def test_a_tokens_file_is_changed_by_one_at_a_time_where_it_really_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to("real/tokens.json")
    path = tmp_path / "real" / "tokens.json"
    create = ("token", "create", "--role", "client", "--tokens", "link.json")
    assert (await ran(*create, cwd=tmp_path)).code == 0
    before = path.read_bytes()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        second = await started(*create, cwd=tmp_path)
        async with asyncio.timeout(20):
            while second.returncode is None and not waits_for_a_lock(second.pid):
                await asyncio.sleep(0.01)
        assert (second.returncode, path.read_bytes()) == (None, before)
    finally:
        os.close(folder)
    assert (await ended(second)).code == 0
    assert len(parse_tokens(path.read_bytes())) == 2
    assert (tmp_path / "link.json").is_symlink()


def waits_for_a_lock(pid: int) -> bool:
    """Tell whether a process waits until another one gives up its lock."""
    lines = map(str.split, Path("/proc/locks").read_text().splitlines())
    return any(words[1:3] == ["->", "FLOCK"] and words[5] == str(pid) for words in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ["token", "create"],
        ["token", "create", "--role", "king"],
        ["token", "create", "--role", "connector"],
        ["token", "create", "--role", "client", "--mac", MAC],
        ["token", "create", "--role", "monitor", "--mac", MAC],
        ["token", "create", "--role", "client", "--note", "x" * 201],
        ["token", "create", "--role", "client", "--note", "caf\udce9"],
        ["token", "list", "--tokens", "none.json"],
        ["receipt", "r1", "--wait", "-1"],
        ["ls", MAC, "../x"],
    ],
)
async def test_wrong_arguments_are_a_usage_error(tmp_path: Path, arguments: list[str]) -> None:
    done = await ran(*arguments, cwd=tmp_path)
    assert (done.code, done.out, "error: " in done.err) == (2, b"", True)
    assert os.listdir(tmp_path) == []


async def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "ts.toml").write_text('[client]\nrouter = "http://127.0.0.1:1"\n')
    async with played(listing) as url:
        config = {"TUNNELSYNC_CONFIG": "ts.toml"}
        file = await ran("ls", MAC, cwd=tmp_path, **config)
        variable = await ran("ls", MAC, cwd=tmp_path, TUNNELSYNC_ROUTER=url, **config)
        flag = await ran(
            "ls", MAC, "--router", "http://127.0.0.1:2", cwd=tmp_path, TUNNELSYNC_ROUTER=url
        )
    assert (file.code, "127.0.0.1:1/" in file.err) == (5, True)
    assert variable.code == 0
    assert (flag.code, "127.0.0.1:2/" in flag.err) == (5, True)
    unknown = await ran("ls", MAC, cwd=tmp_path, TUNNELSYNC_ROUTR="x")
    assert (unknown.code, "TUNNELSYNC_ROUTR" in unknown.err) == (2, True)


async def test_the_nearer_token_wins(tmp_path: Path) -> None:
    heard: list[str] = []

    async def router(request: web.Request) -> web.StreamResponse:
        heard.append(request.headers.get("Authorization", ""))
        return await listing(request)

    for name in ("flag", "variable", "config"):
        (tmp_path / name).write_text(f"ts-{name}\n")
    (tmp_path / "ts.toml").write_text('[client]\ntoken_file = "config"\n')
    flag, config = ("--token-file", "flag"), {"TUNNELSYNC_CONFIG": "ts.toml"}
    file, none = {"TUNNELSYNC_TOKEN_FILE": "variable"}, {"TUNNELSYNC_TOKEN": ""}
    async with played(router) as url:
        ls = ("ls", "--router", url, MAC)
        for more, env in [
            (flag, config | file),
            ((), config | file),
            ((), config | file | none),
            ((), config | none),
            ((), none),
        ]:
            assert (await ran(*ls, *more, cwd=tmp_path, **env)).code == 0
    told = [one.removeprefix("Bearer ") for one in heard]
    assert told[::2] == ["ts-flag", CANARY, "ts-variable", "ts-config", ""]
    (tmp_path / "flag").write_text(" \n")
    empty = await ran(*ls, *flag, cwd=tmp_path)
    assert (empty.code, "is empty" in empty.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status"], "'stat'"),
        (["stat", MAC, "-dash"], "`--`"),
        (["stat", MAC, "--dash"], "`tunnelsync stat --help` shows"),
        (["ls"], "`tunnelsync connectors` lists"),
    ],
)
async def test_wrong_words_are_told_what_may_be_meant(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    for more in ([], ["--json"] if arguments != ["status"] else []):
        done = await ran(*arguments, *more, cwd=tmp_path)
        assert done.code == 2
        assert words in done.err + done.out.decode()


@pytest.mark.parametrize("group", ["token", "store"])
async def test_a_group_without_a_command_shows_its_help(tmp_path: Path, group: str) -> None:
    done = await ran(group, cwd=tmp_path)
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith(f"Usage: tunnelsync {group} [OPTIONS] COMMAND")
    assert "\nCommands:\n" in done.err
