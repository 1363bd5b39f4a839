"""A request that prefers not to wait in silence: 202, then the receipt, then the answer."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raw_http
from harness import Router, System
from played_connector import (
    PlayedConnector,
    another_mac,
    asking,
    held_bytes,
    init,
    is_whole,
    played,
    router_alone,
)
from played_router import content
from raw_http import Answer
from tunnelsync.errors import DatasetNotFound
from tunnelsync.protocol import Complete, Progress, error_answer
from tunnelsync.settings import MIB

BODY = content(3000)
STORE = "http://127.0.0.1:9"
OFFERED = {
    "download_url": f"{STORE}/data?signature=canary",
    "blocks_url": f"{STORE}/blocks?signature=canary",
    "dataset": "d",
    "size": 1,
    "etag": "v1",
    "modified_ns": 1,
    "root": "r",
    "count": 1,
    "expires_seconds": 60,
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    environ = {"TUNNELSYNC_STORE_ENDPOINT": STORE}
    limits = {"async_wait_seconds": 20, "detached_seconds": 20}
    with router_alone(tmp_path_factory.mktemp("detached"), environ, **limits) as router:
        yield router


async def preferring(
    connector: PlayedConnector, how: str = "stream", prefer: str = "respond-async, wait=0"
) -> Answer:
    """Ask for dataset ``d`` as a client that comes again."""
    asked = {"mac": connector.mac, "dataset": "d"}
    return await asyncio.to_thread(
        raw_http.post, connector.url, f"/datasets/request-{how}", asked, Prefer=prefer
    )


async def told(connector: PlayedConnector, request_id: str, wait: int = 20) -> dict[str, Any]:
    """Return the receipt; it comes early when the answer is ready, or the transfer ended."""
    answer = await asking(connector.url, "GET", f"/transfers/{request_id}?wait={wait}")
    assert answer.status == 200, answer
    return answer.json()


def result(connector: PlayedConnector, request_id: str) -> "asyncio.Task[Answer]":
    return asking(connector.url, "GET", f"/transfers/{request_id}/result")


async def attached(connector: PlayedConnector, request_id: str) -> "asyncio.Task[Answer]":
    """Ask for the result twice: one request has it, the other is refused, so the one is there."""
    both = {result(connector, request_id), result(connector, request_id)}
    done, waiting = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    assert [(one.result().status, one.result().code) for one in done] == [(409, "conflict")]
    return waiting.pop()


async def test_a_stream_is_answered_202_and_comes_by_its_result(connector: PlayedConnector) -> None:
    answer = await preferring(connector)
    request_id = await connector.command("get_dataset_stream")
    assert answer.status == 202
    assert answer.headers["location"] == f"/transfers/{request_id}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["tunnelsync-request-id"] == request_id
    assert answer.json()["request_id"] == request_id
    assert "result" not in answer.json()
    await connector.say(Progress(request_id, "queued", 3))
    while (seen := await told(connector, request_id, 0)).get("progress") != "queued":
        pass
    assert (seen["state"], seen["progress_done"]) == ("accepted", 3)
    sending = asyncio.create_task(
        connector.chunk(
            request_id, 0, BODY, init=init(request_id, 3000), complete=Complete(request_id)
        )
    )
    ready = await told(connector, request_id)
    assert ready["result"] == f"/transfers/{request_id}/result"
    assert (ready["state"], ready["bytes"]) == ("flowing", 0)
    got = await result(connector, request_id)
    assert (got.status, got.body) == (200, BODY)
    assert is_whole(got)
    assert got.headers["etag"] == '"v1"'
    assert got.headers["tunnelsync-request-id"] == request_id
    assert (await sending).status == 200
    ended = await told(connector, request_id)
    assert (ended["outcome"], ended["bytes"]) == ("delivered", 3000)
    assert "result" not in ended


async def test_who_attaches_before_it_is_ready_waits_for_it(connector: PlayedConnector) -> None:
    assert (await preferring(connector, "sync")).status == 202
    request_id = await connector.command("get_dataset")
    waiting = await attached(connector, request_id)
    assert (await connector.result(request_id, {"data": "x"})).status == 200
    assert (await waiting).json() == {"data": "x"}


async def test_a6_the_addresses_of_the_store_are_in_the_answer_and_not_in_the_receipt(
    connector: PlayedConnector,
) -> None:
    assert (await preferring(connector, "auto")).status == 202
    request_id = await connector.command("get_dataset_auto")
    assert (await connector.result(request_id, OFFERED)).status == 200
    receipt = await told(connector, request_id)
    assert receipt["result"]
    assert "canary" not in str(receipt)
    got = await result(connector, request_id)
    assert got.json()["download_url"] == OFFERED["download_url"]
    assert got.headers["tunnelsync-mode"] == "offload"
    assert "canary" not in str(await told(connector, request_id))


@pytest.mark.parametrize("early", [False, True])
async def test_an_error_is_that_of_the_request(connector: PlayedConnector, early: bool) -> None:
    assert (await preferring(connector)).status == 202
    request_id = await connector.command("get_dataset_stream")
    waiting = await attached(connector, request_id) if early else None
    error = error_answer(DatasetNotFound("no such thing"))
    assert (await connector.result(request_id, error)).status == 200
    receipt = await told(connector, request_id)
    assert (receipt["outcome"], receipt["error"]["code"]) == ("refused", "dataset_not_found")
    got = await (waiting or result(connector, request_id))
    assert (got.status, got.code) == (404, "dataset_not_found")


@pytest.mark.parametrize("prefer", ["wait=0", "return=minimal", ""])
async def test_without_the_preference_a_request_waits(
    connector: PlayedConnector, prefer: str
) -> None:
    waiting = asyncio.create_task(preferring(connector, "sync", prefer))
    request_id = await connector.command("get_dataset")
    assert not waiting.done()
    assert (await connector.result(request_id, {"data": "x"})).status == 200
    answer = await waiting
    assert (answer.status, answer.json()) == (200, {"data": "x"})


@pytest.mark.parametrize(
    "prefer", ["respond-async, wait=15", "Respond-Async;x=1 , wait=999", "respond-async, wait=-1"]
)
async def test_an_answer_that_comes_in_time_is_given_at_once(
    connector: PlayedConnector, prefer: str
) -> None:
    waiting = asyncio.create_task(preferring(connector, "sync", prefer))
    request_id = await connector.command("get_dataset")
    assert (await connector.result(request_id, {"data": "x"})).status == 200
    answer = await waiting
    assert (answer.status, answer.json()) == (200, {"data": "x"})
    assert "preference-applied" not in answer.headers


@pytest.mark.parametrize("ready", [False, True])
async def test_p2_one_that_is_deleted_ends_at_once(connector: PlayedConnector, ready: bool) -> None:
    assert (await preferring(connector)).status == 202
    request_id = await connector.command("get_dataset_stream")
    if ready:
        assert (await connector.init(request_id, 3000)).status == 200
        assert (await told(connector, request_id))["result"]
    assert (await asking(connector.url, "DELETE", f"/transfers/{request_id}")).status == 200
    assert (await told(connector, request_id))["outcome"] == "cancelled"
    assert (await connector.hear())["command"] == "cancel"
    assert (await result(connector, request_id)).code == "cancelled"


async def test_p2_a_client_that_attached_and_left_ends_it(connector: PlayedConnector) -> None:
    assert (await preferring(connector)).status == 202
    request_id = await connector.command("get_dataset_stream")
    (await attached(connector, request_id)).cancel()
    assert (await connector.hear()) == {"command": "cancel", "request_id": request_id}
    assert (await told(connector, request_id))["outcome"] == "cancelled"


async def test_l1_a_connector_that_goes_offline_ends_it(system: System) -> None:
    router = system.router(return_grace_seconds=0)
    async with played(router.url, another_mac()) as connector:
        assert (await preferring(connector)).status == 202
        request_id = await connector.command("get_dataset_stream")
        asked = asyncio.create_task(told(connector, request_id))
        await connector.lose()
        assert (await asked)["outcome"] == "offline"
        assert (await result(connector, request_id)).status == 503


@pytest.mark.parametrize("ready", [False, True])
async def test_p7_one_that_nobody_asks_for_is_cancelled(system: System, ready: bool) -> None:
    router = system.router(detached_seconds=0.5)
    async with played(router.url, another_mac()) as connector:
        assert (await preferring(connector, "sync")).status == 202
        request_id = await connector.command("get_dataset")
        if ready:
            assert (await connector.result(request_id, {"data": "x"})).status == 200
        else:
            assert (await connector.hear())["command"] == "cancel"
        await asyncio.to_thread(router.wait_for_line, f"{request_id}: .*cancelled")
        receipt = await told(connector, request_id)
        assert receipt["outcome"] == "cancelled"
        assert "nobody" in receipt["error"]["message"]
        assert (await result(connector, request_id)).status == 410


async def test_p7_asking_keeps_it_until_it_is_ready_and_no_longer(system: System) -> None:
    router = system.router(detached_seconds=0.5, receipt_wait_seconds=1)
    async with played(router.url, another_mac()) as connector:
        assert (await preferring(connector, "sync")).status == 202
        request_id = await connector.command("get_dataset")
        assert "outcome" not in await told(connector, request_id)  # a second, with one request
        assert (await connector.result(request_id, {"data": "x"})).status == 200
        async with asyncio.timeout(20):
            while (await told(connector, request_id, 0)).get("outcome") is None:
                pass
        assert (await result(connector, request_id)).code == "cancelled"


async def test_l3_a_router_that_stops_waits_for_who_comes(system: System) -> None:
    router = system.router(drain_seconds=20)
    async with played(router.url, another_mac()) as connector:
        assert (await preferring(connector, "sync")).status == 202
        request_id = await connector.command("get_dataset")
        router.popen.terminate()
        router.ended_on_purpose = True
        await asyncio.to_thread(router.wait_for_line, "stopping")
        assert (await connector.result(request_id, {"data": "x"})).status == 200
        assert (await told(connector, request_id))["result"]
        assert (await result(connector, request_id)).json() == {"data": "x"}
    assert await asyncio.to_thread(router.wait) == 0


async def test_l3_one_that_outlasts_the_grace_is_broken_off(system: System) -> None:
    router = system.router(drain_seconds=0.5)
    async with played(router.url, another_mac()) as connector:
        assert (await preferring(connector)).status == 202
        request_id = await connector.command("get_dataset_stream")
        assert (await connector.init(request_id, 3000)).status == 200
        assert await asyncio.to_thread(router.stop) == 0
    assert f"{request_id}: stream" in router.log
    assert "(draining:" in router.log


async def test_a3_only_a_client_gets_the_result(system: System) -> None:
    tokens = system.tmp_path / "tokens.json"
    made = {
        role: system.cli("token", "create", "--role", role, *mac, "--tokens", tokens).out.strip()
        for role, mac in (("client", ()), ("connector", ("--mac", "cc-28-aa-00-11-22")))
    }
    router = system.router("--tokens", str(tokens))
    for token, status in (("", 401), (made["connector"], 403), (made["client"], 404)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = raw_http.ask(router.url, "GET", "/transfers/abc/result", headers)
        assert answer.status == status


async def test_a_result_that_names_its_request_inside_is_held_like_any_other(
    tmp_path: Path,
) -> None:
    with router_alone(tmp_path, buffers_bytes=MIB, detached_seconds=20) as router:
        async with played(router.url, another_mac()) as connector:
            value = {"data": "x" * 600_000}
            replies = []
            for _ in range(2):
                assert (await preferring(connector, "sync")).status == 202
                request_id = await connector.command("get_dataset")
                replies.append(await connector.post("result", value | {"request_id": request_id}))
            assert [one.status for one in replies] == [200, 503]
            assert 600_000 < await held_bytes(router.url) < MIB
