"""Faults of who may do what: at a real router, with real tokens, and a connector that cheats."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

import raw_http
from cheating_connector import cheating, welcome
from harness import MAC, Process, Router, System, make_file, peak_rss_bytes, sparse_file
from held import HeldGet
from raw_http import Answer
from tunnelsync import protocol
from tunnelsync.cli.logs import BURST_LINES
from tunnelsync.identity import Grant, Mac, Role, dump_tokens, new_token, parse_tokens
from tunnelsync.router.access import Access
from tunnelsync.settings import GIB, MIB, RouterSettings

OTHER = "cc-28-aa-00-11-33"
CLIENT_ENDS = [
    ("POST", "/datasets/request-sync"),
    ("POST", "/datasets/request-stream"),
    ("POST", "/datasets/request-offload"),
    ("POST", "/datasets/request-auto"),
    ("GET", f"/datasets/{MAC}/a"),
    ("HEAD", f"/datasets/{MAC}/a"),
    ("GET", f"/datasets/{MAC}/"),
    ("GET", "/transfers/0123"),
    ("DELETE", "/transfers/0123"),
    ("GET", "/connectors"),
    ("GET", "/metrics"),
]
CONNECTOR_ENDS = [
    ("GET", "/connectors/ws"),
    ("POST", "/datasets/result?request_id=0123"),
    ("POST", "/datasets/stream/init?request_id=0123"),
    ("POST", "/datasets/stream/chunk?request_id=0123&offset=0"),
    ("POST", "/datasets/stream/complete?request_id=0123"),
    ("GET", "/datasets/stream/offset?request_id=0123"),
]


@dataclass(frozen=True)
class Keys:
    """A tokens file, and the tokens in it."""

    path: Path
    client: str
    mine: str
    other: str

    @property
    def env(self) -> dict[str, str]:
        """The environment of a command line that may."""
        return {"TUNNELSYNC_TOKEN": self.client}


def make_keys(system: System) -> Keys:
    """Write a tokens file, and start a router that asks for what is in it."""
    path = system.tmp_path / "tokens.json"
    made = [
        new_token(Role.CLIENT),
        new_token(Role.CONNECTOR, Mac(MAC)),
        new_token(Role.CONNECTOR, Mac(OTHER)),
    ]
    path.write_bytes(dump_tokens(grant for _, grant in made))
    system.router("--tokens", str(path), tokens_poll_seconds=0.02)
    return Keys(path, *(token for token, _ in made))


def revoke(keys: Keys, mac: str | None) -> None:
    """Take the token of a connector, or of the client, out of the file."""
    grants = parse_tokens(keys.path.read_bytes()).values()
    rewrite(keys, dump_tokens(grant for grant in grants if grant.mac != mac))


def rewrite(keys: Keys, data: bytes) -> None:
    """Replace the tokens file, as an administrator's tool does."""
    new = keys.path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(keys.path)


@pytest.fixture
def keys(system: System) -> Keys:
    """A router that asks for tokens, for one test alone."""
    return make_keys(system)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, Keys]]:
    """A router that asks for tokens, for the tests that only ask."""
    started = System(tmp_path_factory.mktemp("guarded"))
    try:
        yield started, make_keys(started)
    finally:
        started.stop()


@pytest.fixture(scope="module")
def open_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    started = System(tmp_path_factory.mktemp("open"))
    try:
        yield started.router()
    finally:
        started.stop()


@pytest.fixture(scope="module")
def url(open_router: Router) -> str:
    """A router without tokens, whose connectors come and go with each test."""
    return open_router.url


def bearer(token: str) -> dict[str, str | bytes]:
    return {"Authorization": f"Bearer {token}"}


# --- A1: only who was asked may answer --------------------------------------------------------


async def test_a1_an_answer_of_another_connector_harms_nothing(system: System, keys: Keys) -> None:
    router = system.processes[0]
    source = make_file(system.tmp_path / "datasets" / "data", 32 * MIB)
    await asyncio.to_thread(system.connector, token=keys.mine)
    headers = f"Authorization: Bearer {keys.client}\r\n"
    with HeldGet(system.url, f"/datasets/{MAC}/data", headers=headers) as get:
        get.read(1)
        request_id = get.request_id
        async with welcome(system.url, OTHER, token=keys.other) as cheat:
            answers = [
                await cheat.result(request_id, {"status": "success"}),
                await cheat.result(request_id, {"error": {"code": "internal"}}),
                await cheat.init(request_id, 7),
                await cheat.chunk(request_id, 0, b"x" * 1000),
                await cheat.chunk(request_id, 32 * MIB, b""),
                await cheat.complete(request_id, count=1),
                await cheat.complete(request_id, error=protocol.Problem("internal")),
                await cheat.offset(request_id),
            ]
        assert [(one.status, one.code) for one in answers] == [(403, "forbidden")] * 8
        body, whole = await asyncio.to_thread(get.rest)
        assert whole
        assert bytes(body) == source.read_bytes()
    refused = f"refused POST /datasets/result from 127.0.0.1: request {request_id}"
    router.wait_for_line(f"{refused} was not sent to {OTHER}")
    receipt = raw_http.ask(
        system.url, "GET", f"/transfers/{request_id}?wait=30", bearer(keys.client)
    )
    assert receipt.json()["outcome"] == "delivered"


async def test_a1_without_tokens_the_name_in_the_header_is_checked_too(url: str) -> None:
    async with welcome(url, MAC) as mine, cheating(url, OTHER) as cheat:
        asked = asyncio.create_task(ask_for(url, "sync"))
        request_id = (await mine.command()).request_id
        assert (await cheat.result(request_id, {"data": "wrong"})).code == "forbidden"
        async with aiohttp.ClientSession() as nobody:
            path = f"{url}/datasets/result?request_id={request_id}"
            async with nobody.post(path, data=b"{}") as refused:
                assert refused.status == 403
        assert (await mine.result(request_id, {"data": "right"})).status == 200
        assert (await asked).body == b'{"data":"right"}'


def test_a1_it_is_refused_before_its_body_is_read(system: System, keys: Keys) -> None:
    system.connector(token=keys.mine)
    sparse_file(system.tmp_path / "datasets" / "big", GIB)
    headers = f"Authorization: Bearer {keys.client}\r\n"
    with HeldGet(system.url, f"/datasets/{MAC}/big", headers=headers) as get:
        for path in ("result", "stream/chunk", "stream/init", "stream/complete"):
            answer = raw_http.ask(
                system.url,
                "POST",
                f"/datasets/{path}?offset=0&request_id={get.request_id}",
                bearer(keys.other),
                announced=60_000,
            )
            assert (answer.status, answer.code) == (403, "forbidden")


def test_what_is_refused_is_logged_and_not_more_than_can_be_read(
    system: System, keys: Keys
) -> None:
    router = system.processes[0]
    count = 4 * BURST_LINES
    for _ in range(count):
        answer = raw_http.ask(system.url, "GET", "/connectors?secret=1", bearer("guessed"))
        assert answer.status == 401
    line = "refused GET /connectors from 127.0.0.1: the token is not known to this router"
    router.wait_for_line(f"WARNING tunnelsync.router: {line}$")
    answer = raw_http.ask(system.url, "POST", "/datasets/result?request_id=0", bearer(keys.client))
    assert answer.status == 403
    router.wait_for_line("refused POST /datasets/result from 127.0.0.1: a client token cannot do")
    assert BURST_LINES <= router.log.count(line) < count
    metrics = raw_http.ask(system.url, "GET", "/metrics", bearer(keys.client)).body.decode()
    assert f'tunnelsync_errors_total{{code="unauthorized"}} {count}.0\n' in metrics
    assert 'tunnelsync_errors_total{code="forbidden"} 1.0\n' in metrics
    for secret in ("secret", "guessed", keys.client):
        assert secret not in router.log


# --- A2: the first answer stands --------------------------------------------------------------


async def ask_for(url: str, mode: str, name: str = "a") -> Answer:
    """Ask as a client does, in a thread of its own."""
    asked = {"mac": MAC, "dataset": name}
    return await asyncio.to_thread(raw_http.post, url, f"/datasets/request-{mode}", asked)


async def ended(url: str, request_id: str) -> dict[str, object]:
    """Wait for the end of a transfer, and return its receipt."""
    path = f"/transfers/{request_id}?wait=30"
    return (await asyncio.to_thread(raw_http.ask, url, "GET", path)).json()


async def test_a2_a_second_result_that_differs_is_409(url: str) -> None:
    async with welcome(url, MAC) as connector:
        asked = asyncio.create_task(ask_for(url, "sync"))
        request_id = (await connector.command()).request_id
        first = await connector.result(request_id, {"data": "one"})
        assert first.status == 200
        assert (await asked).json() == {"data": "one"}
        assert (await ended(url, request_id))["outcome"] == "delivered"
        assert await connector.result(request_id, {"data": "one"}) == first
        other = await connector.result(request_id, {"data": "two"})
        assert (other.status, other.code) == (409, "conflict")
        error = {"status": "error", "error": {"code": "read_failed", "message": "no"}}
        assert (await connector.result(request_id, error)).status == 409
        assert (await connector.result(request_id, {"data": "one"})) == first


async def test_a2_an_error_stands_like_any_other_result(url: str) -> None:
    error = {"status": "error", "error": {"code": "dataset_denied", "message": "no", "hint": ""}}
    async with welcome(url, MAC) as connector:
        asked = asyncio.create_task(ask_for(url, "stream"))
        request_id = (await connector.command()).request_id
        first = await connector.result(request_id, error)
        answer = await asked
        assert (answer.status, answer.code) == (403, "dataset_denied")
        assert answer.headers["tunnelsync-request-id"] == request_id
        assert await connector.result(request_id, error) == first
        changed = {**error, "error": {**error["error"], "message": "yes"}}  # type: ignore[dict-item]
        assert (await connector.result(request_id, changed)).status == 409
        assert (await connector.init(request_id, 3)).status in (409, 410)


async def test_a2_a_second_init_or_complete_that_differs_is_409(url: str) -> None:
    data = b"0123456789" * 1000
    async with welcome(url, MAC) as connector:
        asked = asyncio.create_task(ask_for(url, "stream"))
        request_id = (await connector.command()).request_id
        early = await connector.chunk(request_id, 0, data)
        assert (early.status, early.code) == (409, "conflict")
        init = await connector.init(request_id, len(data))
        assert init.status == 200
        assert await connector.init(request_id, len(data)) == init
        assert (await connector.init(request_id, len(data) - 1)).code == "conflict"
        assert (await connector.init(request_id, len(data), etag="v2")).code == "conflict"
        assert (await connector.complete(request_id, count=1)).code == "conflict"
        assert (await connector.chunk(request_id, 0, data[:4000])).value == {"offset": 4000}
        for wrong in (0, 3999, 4001):
            refused = await connector.chunk(request_id, wrong, data[wrong:])
            assert (refused.status, refused.code) == (409, "wrong_offset")
            assert refused.value["offset"] == 4000
        past = await connector.chunk(request_id, 4000, data[4000:] + b"more")
        assert (past.status, past.code) == (400, "bad_request")
        assert (await connector.chunk(request_id, 4000, data[4000:])).status == 200
        assert (await asked).body == data
        done = await connector.complete(request_id, root="r", count=1)
        assert done.status == 200
        assert await connector.complete(request_id, root="r", count=1) == done
        assert (await connector.complete(request_id, root="r", count=2)).code == "conflict"
        failed = protocol.Problem("read_failed", "too late")
        assert (await connector.complete(request_id, error=failed)).code == "conflict"
        receipt = await ended(url, request_id)
        assert (receipt["outcome"], receipt["root"]) == ("delivered", "r")
        assert (await connector.chunk(request_id, 0, data)).status == 410
        assert (await connector.offset(request_id)).status == 410
        assert (await connector.init(request_id, len(data))) == init


async def test_a2_an_answer_of_the_wrong_kind_is_409(url: str) -> None:
    async with welcome(url, MAC) as connector:
        asked = asyncio.create_task(ask_for(url, "stream"))
        request_id = (await connector.command()).request_id
        assert (await connector.result(request_id, {"data": "x"})).code == "conflict"
        other = asyncio.create_task(ask_for(url, "sync"))
        second = (await connector.command()).request_id
        assert (await connector.init(second, 3)).code == "conflict"
        assert (await connector.init(request_id, 0)).status == 200
        assert (await connector.result(second, {"data": "x"})).status == 200
        assert (await asked).body == b""
        assert (await other).json() == {"data": "x"}


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 500},
        {"status": 301},
        {"length": -1},
        {"etag": 'a"\r\nX-Evil: 1'},
        {"etag": "ñ"},
        {"size": "7"},
    ],
)
async def test_m1_an_init_that_cannot_be_is_400_and_a_right_one_goes_on(
    url: str, changes: dict[str, object]
) -> None:
    async with welcome(url, MAC) as connector:
        asked = asyncio.create_task(ask_for(url, "stream"))
        request_id = (await connector.command()).request_id
        wrong = await connector.init(request_id, 7, **changes)
        assert (wrong.status, wrong.code) == (400, "bad_request")
        assert (await connector.init(request_id, 7)).status == 200
        assert (await connector.chunk(request_id, 0, b"seven b")).status == 200
        answer = await asked
        assert answer.body == b"seven b"
        assert "x-evil" not in answer.headers


# --- A3: what a token is for ------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "nonsense", "ts-client-" + "A" * 43])
def test_a3_without_a_known_token_nothing_is_answered(
    guarded: tuple[System, Keys], token: str | None
) -> None:
    system, _ = guarded
    headers = {} if token is None else bearer(token)
    for method, path in CLIENT_ENDS + CONNECTOR_ENDS:
        answer = raw_http.ask(system.url, method, path, headers)
        assert answer.status == 401, (method, path)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        if method != "HEAD":
            assert answer.code == "unauthorized"
    for path in ("/healthz", "/readyz"):
        assert raw_http.ask(system.url, "GET", path).status == 200


@pytest.mark.parametrize("scheme", ["Basic {}", "{}", "Token {}", "Bearer{}", "Bearer x {}"])
def test_a3_a_token_in_another_form_is_none(guarded: tuple[System, Keys], scheme: str) -> None:
    system, keys = guarded
    headers: dict[str, str | bytes] = {"Authorization": scheme.format(keys.client)}
    assert raw_http.ask(system.url, "GET", "/connectors", headers).status == 401
    query = f"/connectors?token={keys.client}&access_token={keys.client}"
    assert raw_http.ask(system.url, "GET", query).status == 401


def test_a3_each_role_keeps_to_its_own_ends(guarded: tuple[System, Keys]) -> None:
    system, keys = guarded
    for ends, token in ((CONNECTOR_ENDS, keys.client), (CLIENT_ENDS, keys.mine)):
        for method, path in ends:
            answer = raw_http.ask(system.url, method, path, bearer(token))
            assert answer.status == 403, (method, path)
            if method != "HEAD":
                assert answer.code == "forbidden"
    assert raw_http.ask(system.url, "GET", "/connectors", bearer(keys.client)).status == 200


def test_a3_a_monitor_sees_metrics_and_connectors_alone(system: System, keys: Keys) -> None:
    token, grant = new_token(Role.MONITOR)
    rewrite(keys, dump_tokens([*parse_tokens(keys.path.read_bytes()).values(), grant]))
    system.processes[0].wait_for_line("tokens file read: 4 tokens")
    for method, path in CLIENT_ENDS + CONNECTOR_ENDS:
        answer = raw_http.ask(system.url, method, path, bearer(token))
        sees = (method, path) in (("GET", "/connectors"), ("GET", "/metrics"))
        assert answer.status == (200 if sees else 403), (method, path)


def test_a3_a_command_line_with_the_wrong_token_is_told_so(guarded: tuple[System, Keys]) -> None:
    system, keys = guarded
    none = system.cli("fetch", MAC, "a")
    assert none.code == 4
    assert "TUNNELSYNC_TOKEN" in none.err
    swapped = system.cli("fetch", MAC, "a", env={"TUNNELSYNC_TOKEN": keys.mine})
    assert swapped.code == 4
    assert "connector token" in swapped.err
    assert system.cli("connectors", env=keys.env).code == 0


@pytest.mark.parametrize(
    ("which", "why"),
    [
        ("client", "a client token cannot do what a connector does"),
        ("other", f"this token is not bound to {MAC}"),
        ("unknown", "the token is not known to this router"),
    ],
)
def test_a3_a_connector_with_the_wrong_token_is_refused_once_and_told_why(
    system: System, keys: Keys, which: str, why: str
) -> None:
    token = getattr(keys, which, "ts-connector-unknown")
    connector = system.connector(connected=False, token=token)
    connector.wait_for_line(f"refuses this connector: {why}; check its token")
    assert connector.log.count("refuses") == 1
    assert "the next try is in" in connector.log
    assert connector.running
    gone = raw_http.ask(system.url, "GET", f"/datasets/{MAC}/a", bearer(keys.client))
    assert (gone.status, gone.code) == (503, "connector_offline")  # for it has a token
    other = raw_http.ask(system.url, "GET", "/datasets/cc-28-aa-00-11-44/a", bearer(keys.client))
    assert (other.status, other.code) == (404, "connector_unknown")


async def test_a3_a_token_does_not_say_hello_for_another_mac(system: System, keys: Keys) -> None:
    async with cheating(system.url, OTHER, token=keys.mine, named=MAC) as cheat:
        await cheat.open()
        await cheat.hello()
        assert await cheat.closed() == protocol.CLOSE_PROTOCOL
    async with cheating(system.url, OTHER, token=keys.mine) as cheat:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await cheat.open()
        assert refused.value.status == 403
    known = raw_http.ask(system.url, "GET", "/connectors", bearer(keys.client))
    assert {row["state"] for row in known.json()["connectors"]} == {"offline"}


async def test_a3_a_revoked_token_closes_its_live_socket_and_is_refused(
    system: System, keys: Keys
) -> None:
    async with (
        welcome(system.url, MAC, token=keys.mine) as revoked,
        welcome(system.url, OTHER, token=keys.other) as stays,
    ):
        revoke(keys, MAC)
        assert await revoked.closed() == protocol.CLOSE_REVOKED
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await revoked.open()
        assert refused.value.status == 401
        assert (await revoked.result("0123", {})).status == 401
        assert (await stays.result("0123", {})).status == 404
    gone = raw_http.ask(system.url, "GET", f"/datasets/{MAC}/a", bearer(keys.client))
    assert (gone.status, gone.code) == (404, "connector_unknown")
    rows = raw_http.ask(system.url, "GET", "/connectors", bearer(keys.client)).json()["connectors"]
    assert [row["mac"] for row in rows] == [OTHER]


async def test_a3_a_token_that_is_bound_anew_closes_the_socket_of_its_old_mac(
    system: System, keys: Keys
) -> None:
    async with (
        welcome(system.url, MAC, token=keys.mine) as moved,
        welcome(system.url, OTHER, token=keys.other) as stays,
    ):
        rewrite(keys, keys.path.read_bytes().replace(MAC.encode(), b"cc-28-aa-00-11-99"))
        assert await moved.closed() == protocol.CLOSE_REVOKED
        assert (await stays.result("0123", {})).status == 404


def test_a3_a_real_connector_tells_that_its_token_was_revoked(system: System, keys: Keys) -> None:
    connector = system.connector(token=keys.mine)
    revoke(keys, MAC)
    connector.wait_for_line("its token was revoked.*the next try is in")
    system.processes[0].wait_for_line(f"connector {MAC}: its token was revoked")
    assert connector.running


def test_a3_tokens_made_and_revoked_by_the_command_line(system: System, keys: Keys) -> None:
    file, router = ("--tokens", keys.path), system.processes[0]
    made = system.cli("token", "create", "--role", "client", *file)
    router.wait_for_line("tokens file read: 4 tokens")
    own = {"TUNNELSYNC_TOKEN": made.out.strip()}
    assert system.cli("connectors", env=own).code == 0
    rows = system.cli("token", "list", "--json", *file).json()["tokens"]
    assert system.cli("token", "revoke", rows[-1]["id"], *file).code == 0
    router.wait_for_line("tokens file read: 3 tokens")
    assert system.cli("connectors", env=own).code == 4


def test_a3_a_clients_revoked_token_is_refused(system: System, keys: Keys) -> None:
    assert system.cli("connectors", env=keys.env).code == 0
    revoke(keys, None)
    system.processes[0].wait_for_line("tokens file read: 2 tokens")
    done = system.cli("connectors", env=keys.env)
    assert done.code == 4, done.err


async def test_a3_a_token_revoked_before_the_hello_is_refused(system: System, keys: Keys) -> None:
    async with cheating(system.url, MAC, token=keys.mine) as slow:
        await slow.open()
        revoke(keys, MAC)
        router = system.processes[0]
        await asyncio.to_thread(router.wait_for_line, "tokens file read: 2 tokens")
        await slow.hello()
        assert (await slow.message()).type is aiohttp.WSMsgType.CLOSE


# --- the tokens file --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"not JSON",
        b'{"tokens":[{"id":"x"}]}',
        b'{"tokens":[{"id":"x","role":"king","sha256":"00"}]}',
        b'{"tokens":[{"id":"x","role":"connector","sha256":"00"}]}',
        b"\xff" * 100,
        b"[" * 100_000,
    ],
)
def test_a_tokens_file_that_is_wrong_leaves_the_old_tokens(
    system: System, keys: Keys, wrong: bytes
) -> None:
    router, right = system.processes[0], keys.path.read_bytes()
    keys.path.write_bytes(wrong)
    router.wait_for_line("ERROR.*tokens file.*stay valid")
    assert raw_http.ask(system.url, "GET", "/connectors", bearer(keys.client)).status == 200
    assert raw_http.ask(system.url, "GET", "/connectors").status == 401
    keys.path.write_bytes(right)
    revoke(keys, OTHER)
    router.wait_for_line("tokens file read: 2 tokens")
    assert raw_http.ask(system.url, "GET", "/connectors", bearer(keys.client)).status == 200


def test_a_tokens_file_that_vanishes_leaves_the_old_tokens(system: System, keys: Keys) -> None:
    keys.path.unlink()
    system.processes[0].wait_for_line("cannot read the tokens file.*stay valid")
    assert raw_http.ask(system.url, "GET", "/connectors", bearer(keys.client)).status == 200
    assert raw_http.ask(system.url, "GET", "/connectors").status == 401


async def test_a_revocation_that_could_not_be_read_at_once_holds_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file does not change again; what failed was this process, or its permissions."""
    path = tmp_path / "tokens.json"
    grants = [new_token(Role.CLIENT)[1] for _ in range(2)]
    path.write_bytes(dump_tokens(grants))
    access = Access(RouterSettings(tokens=str(path)))
    read_bytes, failures = Path.read_bytes, [OSError(errno.EMFILE, os.strerror(errno.EMFILE))] * 3

    def read(self: Path) -> bytes:
        if failures:
            raise failures.pop()
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    changes: asyncio.Queue[Mapping[str, Grant]] = asyncio.Queue()
    watching = asyncio.create_task(access.watch(0.01, changes.put_nowait))
    path.write_bytes(dump_tokens(grants[:1]))
    assert list((await asyncio.wait_for(changes.get(), 20)).values()) == grants[:1]
    watching.cancel()
    assert not failures
    assert caplog.text.count("Too many open files") == 1


def test_a_router_does_not_start_with_a_tokens_file_that_is_wrong(system: System) -> None:
    path = system.tmp_path / "tokens.json"
    missing = system.cli("router", "--port", "0", "--tokens", path)
    assert missing.code == 2
    assert "tokens file" in missing.err
    path.write_bytes(b"{")
    wrong = system.cli("router", "--port", "0", "--tokens", path)
    assert wrong.code == 2
    assert "Traceback" not in missing.err + wrong.err


# --- A5: bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [b"\xff\xfe", "ñandú".encode(), b"\xed\xa0\x80", b"a" * 7000])
def test_a5_a_token_of_any_bytes_is_401(guarded: tuple[System, Keys], token: bytes) -> None:
    system, _ = guarded
    headers: dict[str, str | bytes] = {"Authorization": b"Bearer " + token}
    for method, path in CLIENT_ENDS + CONNECTOR_ENDS:
        assert raw_http.ask(system.url, method, path, headers).status == 401
    assert "Traceback" not in system.processes[0].log


def test_a5_from_the_environment_too(system: System, keys: Keys) -> None:
    spoken = system.cli("connectors", env={"TUNNELSYNC_TOKEN": "ñandú"})
    assert (spoken.code, "Traceback" in spoken.err) == (4, False)
    for token in (os.fsdecode(b"\xff"), "a\nb", "a b", "\x1b"):
        done = system.cli("connectors", env={"TUNNELSYNC_TOKEN": token})
        assert (done.code, "Traceback" in done.err) == (2, False)
    connector = system.connector(connected=False, token="ñandú")
    connector.wait_for_line("refuses this connector: the token is not known to this router")


# --- A6: secrets ------------------------------------------------------------------------------

STORE_KEY, STORE_SECRET = "canary-access-7f3a", "canary-secret-91bd"


@pytest.mark.parametrize(
    "level",
    [
        "info",
        "debug",
    ],
)
def test_a6_no_secret_anywhere(system: System, keys: Keys, level: str) -> None:
    router = system.processes[0]
    router.stop()
    with socket.socket() as taken:  # bound, and nobody listens: a store that is down
        taken.bind(("127.0.0.1", 0))
        system.environ |= {
            "TUNNELSYNC_STORE_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}",
            "TUNNELSYNC_STORE_ACCESS_KEY": STORE_KEY,
            "TUNNELSYNC_STORE_SECRET_KEY": STORE_SECRET,
            "TUNNELSYNC_STORE_ATTEMPTS": "1",
        }
        seen = everything_said(system, keys, level)
    secrets = [keys.client, keys.mine, keys.other, STORE_KEY, STORE_SECRET]
    for where, text in seen.items():
        for number, secret in enumerate(secrets):
            assert secret not in text, f"secret {number} is in {where}"
            assert secret.removeprefix("ts-client-") not in text


def everything_said(system: System, keys: Keys, level: str) -> dict[str, str]:
    """Use everything, rightly and wrongly; return all that it says to anybody."""
    router = system.router("--log-level", level, "--tokens", str(keys.path))
    connector = system.connector("--log-level", level, token=keys.mine)
    refused = system.connector("--log-level", level, connected=False, token=keys.client)
    refused.wait_for_line("refuses")
    make_file(system.tmp_path / "datasets" / "a", 1000)
    sparse_file(system.tmp_path / "datasets" / "big", GIB)
    seen: dict[str, str] = {}
    fetching = system.start("fetch", "--mode", "stream", MAC, "big", "-o", "/dev/full", **env(keys))
    with HeldGet(
        router.url, f"/datasets/{MAC}/big", headers=f"Authorization: Bearer {keys.client}\r\n"
    ) as get:
        for process in (router, connector, refused, fetching):
            seen[f"argv of {process.name}"] = argv(process)
        get.read(1)
        seen["the head of an answer"] = str(get.headers)
        request_id = get.request_id
    for mode in ("buffer", "stream", "offload", "auto"):
        for env_ in (keys.env, {"TUNNELSYNC_TOKEN": keys.mine}, {}):
            done = system.cli("--debug", "fetch", "--force", "--mode", mode, MAC, "a", env=env_)
            seen[f"fetch {mode} {len(seen)}"] = done.out + done.err
    for command in (["connectors"], ["ls", MAC], ["stat", MAC, "a"], ["receipt", request_id]):
        done = system.cli(*command, "--json", env=keys.env)
        seen[" ".join(command)] = done.out + done.err
        assert done.code == 0, done.err
    listed = system.cli("token", "list", "--tokens", keys.path)
    seen["token list"] = listed.out + listed.err
    seen["the tokens file"] = keys.path.read_text()
    for token in (keys.client, keys.mine):
        for method, path in [*CLIENT_ENDS, *CONNECTOR_ENDS, ("GET", f"/transfers/{request_id}")]:
            answer = raw_http.ask(router.url, method, path, bearer(token))
            seen[f"{method} {path} {len(seen)}"] = f"{answer.headers}{answer.body!r}"
        for wrong in (b"\0", b"\x01 ", b"\r \n"):  # in its own answer: he who asked knows it
            broken = bearer(token) | {"Authorization": f"Bearer {token}".encode() + wrong}
            raw_http.ask(router.url, "GET", "/connectors", broken)
    fetching.send(signal.SIGTERM)
    for process in (connector, refused, router, fetching):
        process.wait() if process is fetching else process.stop()
        seen[f"log of {process.name}"] = process.log
        assert process.log
    return seen


def env(keys: Keys) -> dict[str, Any]:
    return {"token": keys.client}


def argv(process: Process) -> str:
    return Path(f"/proc/{process.pid}/cmdline").read_text()


# --- without tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "router.example"])
def test_without_tokens_another_host_is_refused_and_the_way_told(system: System, host: str) -> None:
    done = system.cli("router", "--host", host, "--port", "0")
    assert done.code == 2
    assert "tunnelsync token create" in done.err
    assert "--tokens" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Forwarded": "for=203.0.113.5"},
        {"X-Forwarded-For": "203.0.113.5"},
        {"X-Forwarded-Host": "router.example"},
        {"X-Real-IP": "203.0.113.5"},
        {"Via": "1.1 proxy.example"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example@127.0.0.2.evil"},
        {"Host": "192.0.2.1"},
        {"Host": ""},
    ],
)
def test_without_tokens_a_web_page_gets_nothing(url: str, headers: dict[str, str]) -> None:
    for method, path in CLIENT_ENDS + CONNECTOR_ENDS:
        answer = raw_http.ask(url, method, path, dict(headers))
        assert answer.status == 403, (method, path)
        if method != "HEAD":
            assert answer.code == "forbidden"
            assert "--tokens" in answer.json()["error"]["hint"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8080", "127.9.9.9"]
)
def test_without_tokens_this_machine_is_served(url: str, host: str) -> None:
    assert raw_http.ask(url, "GET", "/connectors", {"Host": host}).status == 200


def test_with_tokens_any_name_and_page_that_has_one_is_served(guarded: tuple[System, Keys]) -> None:
    system, keys = guarded
    headers = bearer(keys.client) | {"Host": "router.example", "Origin": "http://page.example"}
    answer = raw_http.ask(system.url, "GET", "/connectors", headers)
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


# --- P7: what nobody waits for ----------------------------------------------------------------


@pytest.mark.parametrize("path", ["result", "stream/chunk", "stream/init", "stream/complete"])
def test_p7_an_unknown_request_is_refused_before_its_body_is_read(url: str, path: str) -> None:
    for request_id in ("0" * 32, "", "x" * 5000, "%FF", "../../x"):
        target = f"/datasets/{path}?offset=0&request_id={request_id}"
        answer = raw_http.ask(
            url, "POST", target, {"TunnelSync-Connector": MAC}, b"{", announced=10**12
        )
        assert (answer.status, answer.code) == (404, "transfer_unknown")
        assert len(answer.body) < 500


async def test_p7_a_request_that_has_ended_is_410(url: str) -> None:
    async with welcome(url, MAC) as connector:
        asked = asyncio.create_task(ask_for(url, "stream"))
        request_id = (await connector.command()).request_id
        stopped = await asyncio.to_thread(raw_http.ask, url, "DELETE", f"/transfers/{request_id}")
        assert stopped.status == 200
        assert (await asked).status == 410
        assert isinstance(await connector.command(), protocol.Cancel)
        assert (await connector.init(request_id, 3)).status == 410
        assert (await connector.chunk(request_id, 0, b"abc")).status == 410
        assert (await connector.complete(request_id)).status == 410
        assert (await connector.offset(request_id)).status == 410
        assert (await connector.result(request_id, {"data": "x"})).status == 410
        for path in ("result", "stream/chunk"):
            target = f"/datasets/{path}?offset=0&request_id={request_id}"
            late = await asyncio.to_thread(
                raw_http.ask, url, "POST", target, {"TunnelSync-Connector": MAC}, announced=10**12
            )
            assert late.status == 410


async def test_p7_refused_bodies_are_not_kept(system: System) -> None:
    router = system.router()
    before = peak_rss_bytes(router.pid)
    async with cheating(system.url, MAC) as connector:
        for path in ("result", "stream/chunk"):
            for _ in range(20):
                try:
                    said = await connector.post(path, bytes(8 * MIB), request_id="0", offset="0")
                except aiohttp.ClientError:
                    continue  # it closed while we sent
                assert said.status == 404
    assert peak_rss_bytes(router.pid) - before < 48 * MIB


def test_p7_a_result_without_an_id_has_a_small_bound(url: str) -> None:
    for body, status in ((b"{}", 400), (b'{"request_id":1}', 400), (b'{"request_id":"x"}', 404)):
        assert raw_http.ask(url, "POST", "/datasets/result", {}, body).status == status
    answer = raw_http.ask(url, "POST", "/datasets/result", announced=2**20 + 1)
    assert (answer.status, answer.code) == (413, "too_large")


async def test_the_id_inside_a_result_is_accepted_as_the_flow_has_it(url: str) -> None:
    async with welcome(url, MAC) as connector:
        asked = asyncio.create_task(ask_for(url, "sync"))
        request_id = (await connector.command()).request_id
        value = {"request_id": request_id, "status": "success", "data": "x"}
        assert (await connector.post("result", value)).status == 200
        assert orjson.loads((await asked).body) == value


def test_m1_a_socket_that_says_no_hello_is_closed(url: str) -> None:
    for text in ("", "{", "[]", '{"type":"ack"}', '{"type":"hello"}', '{"type":"hello","mac":1}'):
        code = asyncio.run(nonsense(url, text))
        assert code == protocol.CLOSE_PROTOCOL
    known = raw_http.ask(url, "GET", "/connectors").json()["connectors"]
    assert [one for one in known if one["state"] == "connected"] == []


async def nonsense(url: str, text: str) -> int | None:
    async with cheating(url, MAC) as cheat:
        await cheat.open()
        await cheat.ws.send_str(text)
        return await cheat.closed()
