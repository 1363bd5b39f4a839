"""What whoever runs a router sees of what goes wrong: in log and metrics, and in how it ends."""

import asyncio
import re
from pathlib import Path

import orjson
import pytest

import raw_http
from harness import MAC, System, make_file
from played_connector import another_mac, asking, played, wanting
from tunnelsync.errors import Internal
from tunnelsync.identity import Mac, Role, dump_tokens, new_token
from tunnelsync.router import app
from tunnelsync.router.access import Access
from tunnelsync.settings import RouterSettings, StoreSettings
from watched import metric


def errors(url: str, code: str) -> float:
    return metric(url, f'tunnelsync_errors_total{{code="{code}"}}')


async def test_a_request_that_begins_no_transfer_is_counted_and_logged(system: System) -> None:
    router = system.router(return_grace_seconds=0, command_queue=1)
    async with played(router.url, another_mac()) as connector:
        first = wanting(router.url, connector.mac, "sync")
        await connector.command("get_dataset", ack=False)
        assert (await wanting(router.url, connector.mac, "sync")).code == "router_busy"
        await connector.lose()
        assert (await first).code == "connector_offline"
        assert (await wanting(router.url, connector.mac, "sync")).code == "connector_offline"
        assert (await wanting(router.url, MAC, "sync")).code == "connector_unknown"
    for code, count, why in (
        ("router_busy", 1, "1 commands wait for connector"),
        ("connector_offline", 2, f"connector {connector.mac} is offline"),
        ("connector_unknown", 1, f"no connector {MAC} has connected"),
    ):
        assert await asyncio.to_thread(errors, router.url, code) == count
        line = f"WARNING tunnelsync.router: refused POST /datasets/request-sync from .*: {why}"
        router.wait_for_line(line)
        assert len(re.findall(line, router.log)) == 1  # a transfer's end is told by its own line


def test_an_error_names_the_transfer_that_the_router_logs(system: System, tmp_path: Path) -> None:
    router = system.router()
    connector = system.connector()
    plain = system.cli("fetch", MAC, "nope", "-o", "nope")
    (found,) = re.findall(r"^  transfer: (\w{32}), by which", plain.err, re.MULTILINE)
    router.wait_for_line(f"transfer {found}: auto of .nope. from {MAC} to 127.0.0.1: refused")
    assert found in connector.log
    kept = tmp_path / "receipt.json"
    told = system.cli("fetch", MAC, "nope", "-o", "nope", "--json", "--receipt", kept)
    value = orjson.loads(told.out)
    assert (value["status"], value["error"]["code"]) == ("error", "dataset_not_found")
    router.wait_for_line(f"transfer {value['request_id']}: auto of")
    (transfer,) = orjson.loads(kept.read_bytes())["transfers"]
    assert transfer["request_id"] == value["request_id"]
    assert "transfer:" not in system.cli("ls", "cc-28-aa-00-99-99").err
    assert metric(router.url, 'tunnelsync_errors_total{code="internal"}') == 0


def test_the_log_tells_whose_token_a_transfer_was_for(system: System) -> None:
    token, grant = new_token(Role.CLIENT)
    connectors = new_token(Role.CONNECTOR, Mac(MAC))
    path = system.tmp_path / "tokens.json"
    path.write_bytes(dump_tokens([grant, connectors[1]]))
    router = system.router("--tokens", str(path))
    make_file(system.tmp_path / "datasets" / "a", 10)
    system.connector(token=connectors[0])
    assert system.cli("fetch", MAC, "a", "-o", "a", env={"TUNNELSYNC_TOKEN": token}).code == 0
    whom = rf"127\.0\.0\.1 \(token {grant.id}\)"
    router.wait_for_line(f"stream of .a. from {MAC} to {whom}: delivered")
    assert token not in router.log


async def test_a_router_that_a_defect_stops_says_so_by_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A supervisor starts again what failed, and leaves what ended well."""

    async def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Access, "watch", fails)
    with pytest.raises(Internal, match="a task of the router failed"):
        await asyncio.wait_for(app.run(RouterSettings(port=0), StoreSettings()), 30)
    assert "MemoryError" in caplog.text


def test_a_connector_that_has_a_token_is_offline_until_it_comes(system: System) -> None:
    """So who asks while a router has only just started waits for it."""
    token, grant = new_token(Role.CLIENT)
    path = system.tmp_path / "tokens.json"
    path.write_bytes(dump_tokens([grant, new_token(Role.CONNECTOR, Mac(MAC))[1]]))
    router = system.router("--tokens", str(path))
    bearer = {"Authorization": f"Bearer {token}"}
    answer = raw_http.ask(router.url, "GET", f"/datasets/{MAC}/a", bearer)
    assert (answer.status, answer.code) == (503, "connector_offline")
    shown = system.cli("connectors", env={"TUNNELSYNC_TOKEN": token})
    assert shown.out == f"{MAC}\t-\t\toffline\t0\n"


def test_a_connector_that_has_gone_is_shown_and_counted(system: System) -> None:
    router = system.router(return_grace_seconds=0)
    connector = system.connector()
    assert metric(router.url, "tunnelsync_connectors") == 1
    assert metric(router.url, "tunnelsync_connectors_offline") == 0
    connector.stop()
    router.wait_for_line(f"WARNING .* connector {MAC} is offline")
    assert metric(router.url, "tunnelsync_connectors") == 0
    assert metric(router.url, "tunnelsync_connectors_offline") == 1
    assert metric(router.url, "process_open_fds") > 3
    assert system.cli("connectors").out == f"{MAC}\t-\t\toffline\t0\n"


def test_a_log_for_programs_is_an_object_a_line(system: System) -> None:
    router = system.router("--log-format", "json")
    system.connector("--log-format", "json")
    make_file(system.tmp_path / "datasets" / "ä\n.csv", 10)
    assert system.cli("fetch", MAC, "ä\n.csv", "-o", "a").code == 0
    assert system.cli("fetch", MAC, "nope", "-o", "b").code == 3
    router.wait_for_line("dataset_not_found")
    rows = [orjson.loads(line) for line in router.log.splitlines()]
    assert {"time", "level", "logger", "message"} == set.intersection(*map(set, rows))
    done, refused = [row for row in rows if "transfer" in row]
    about = {key: done[key] for key in ("level", "mode", "dataset", "mac", "outcome", "code")}
    assert about == {
        "level": "INFO",
        "mode": "stream",
        "dataset": "ä\n.csv",
        "mac": MAC,
        "outcome": "delivered",
        "code": None,
    }
    assert (refused["outcome"], refused["code"]) == ("refused", "dataset_not_found")
    (told,) = [
        row for row in map(orjson.loads, system.processes[1].log.splitlines()) if "code" in row
    ]
    assert (told["transfer"], told["code"]) == (refused["transfer"], "dataset_not_found")


async def test_a_connector_that_may_return_is_not_counted_as_connected(system: System) -> None:
    router = system.router(return_grace_seconds=600)
    async with played(router.url, another_mac()) as connector:
        assert await asyncio.to_thread(metric, router.url, "tunnelsync_connectors") == 1
        await connector.lose()
        async with asyncio.timeout(20):
            while state(await asking(router.url, "GET", "/connectors")) == "connected":
                await asyncio.sleep(0.01)
        assert state(await asking(router.url, "GET", "/connectors")) == "returning"
        for name in ("tunnelsync_connectors", "tunnelsync_connectors_offline"):
            assert await asyncio.to_thread(metric, router.url, name) == 0


def state(answer: raw_http.Answer) -> str:
    """Return the state of the only connector."""
    (one,) = answer.json()["connectors"]
    return str(one["state"])


async def test_bytes_are_counted_as_they_are_sent(system: System) -> None:
    router = system.router()
    async with played(router.url, another_mac()) as connector:
        client = wanting(router.url, connector.mac)
        request_id = await connector.command("get_dataset_stream")
        assert (await connector.init(request_id, 3000)).status == 200
        for sent in (1000, 3000):
            chunk = bytes(sent - 1000 or 1000)
            assert (await connector.chunk(request_id, sent - len(chunk), chunk)).status == 200
            counted = await asyncio.to_thread(metric, router.url, "tunnelsync_bytes_total")
            assert counted == sent
        await connector.complete(request_id)
        assert len((await client).body) == 3000
    assert await asyncio.to_thread(metric, router.url, "tunnelsync_bytes_total") == 3000
