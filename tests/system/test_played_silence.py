"""A connector that does not acknowledge, falls silent, or is left by its client."""

import asyncio

import raw_http
from harness import System
from played_connector import (
    PlayedConnector,
    another_mac,
    asking,
    init,
    is_whole,
    played,
    wanting,
)
from played_router import content
from played_transfer import receipt, still_works
from tunnelsync.protocol import (
    Progress,
)

BODY = content(3000)


async def test_a_connector_that_never_acknowledges_is_told_of(system: System) -> None:
    url = system.router(ack_seconds=0.5).url
    async with played(url, another_mac()) as connector:
        target = system.tmp_path / "out"
        fetch = asyncio.create_task(
            asyncio.to_thread(system.cli, "fetch", connector.mac, "d", "-o", target)
        )
        request_id = await connector.command("get_dataset_auto", ack=False)
        done = await fetch
        assert done.code == 6, done.err
        assert "acknowledge" in done.err
        assert connector.mac in done.err
        assert not target.exists()
        cancel = await connector.hear()
        assert (cancel["command"], cancel["request_id"]) == ("cancel", request_id)
        await still_works(connector)


async def test_a_connector_that_acknowledges_and_falls_silent_is_told_of(system: System) -> None:
    url = system.router(ack_seconds=10, answer_seconds=0.5).url
    async with played(url, another_mac()) as connector:
        target = system.tmp_path / "out"
        fetch = asyncio.create_task(
            asyncio.to_thread(system.cli, "fetch", connector.mac, "d", "-o", target)
        )
        request_id = await connector.command("get_dataset_auto")
        done = await fetch
        assert done.code == 6, done.err
        assert "its answer, or a sign of life" in done.err
        assert not target.exists()
        told = await receipt(connector, request_id)
        assert (told["outcome"], told["state"]) == ("timed_out", "ended")


async def test_signs_of_life_keep_a_request_alive(system: System) -> None:
    """Eight times a quarter of the deadline: twice that in all."""
    url = system.router(answer_seconds=1).url
    async with played(url, another_mac()) as connector:
        client = wanting(url, connector.mac, "sync")
        request_id = await connector.command("get_dataset")
        for done in range(8):
            await connector.say(Progress(request_id, "reading", done))
            await asyncio.wait({client}, timeout=0.25)
            assert not client.done()
        told = (await asking(url, "GET", f"/transfers/{request_id}")).json()
        assert (told["progress"], told["progress_done"]) == ("reading", 7)
        await connector.result(request_id, {"data": "x"})
        assert (await client).json() == {"data": "x"}


async def test_l2_an_upload_that_stops_is_broken_off(system: System) -> None:
    url = system.router(idle_seconds=0.5).url
    async with played(url, another_mac()) as connector:
        client = wanting(url, connector.mac)
        request_id = await connector.command("get_dataset_stream")
        await connector.init(request_id, 3000)
        held = await connector.held_chunk(request_id, 0, 3000)
        await held.send(BODY[:1000])
        answer = await client
        assert answer.body == BODY[:1000]
        assert not is_whole(answer)
        told = await receipt(connector, request_id)
        assert (told["outcome"], told["error"]["code"]) == ("timed_out", "stalled")
        ended = await held.reply()
        assert ended is None or ended.status == 410


async def test_l2_a_result_that_stops_is_not_waited_for(system: System) -> None:
    url = system.router(idle_seconds=0.5).url
    async with played(url, another_mac()) as connector:
        client = wanting(url, connector.mac, "sync")
        request_id = await connector.command("get_dataset")
        held = await connector.held_post(f"result?request_id={request_id}", 3000)
        await held.send(BODY[:1000])
        reply = await held.reply()
        assert reply is not None
        assert reply.code == "stalled"
        assert (await connector.result(request_id, {"data": "x"})).status == 200
        assert (await client).json() == {"data": "x"}


async def test_l2_words_do_not_keep_an_upload_alive_that_stops(system: System) -> None:
    url = system.router(idle_seconds=1.5, answer_seconds=60).url
    async with played(url, another_mac()) as connector:
        client = wanting(url, connector.mac)
        request_id = await connector.command("get_dataset_stream")
        await connector.chunk(request_id, 0, BODY[:1000], init=init(request_id, 3000))
        async with asyncio.timeout(10):
            while not client.done():
                await connector.say(Progress(request_id, "reading", 1))
                await asyncio.wait({client}, timeout=0.1)
        assert (await client).body == BODY[:1000]
        told = await receipt(connector, request_id)
        assert (told["outcome"], told["error"]["code"]) == ("timed_out", "stalled")


async def test_without_a_closing_word_what_came_whole_is_delivered(system: System) -> None:
    url = system.router(complete_seconds=0.3).url
    async with played(url, another_mac()) as connector:
        client = wanting(url, connector.mac)
        request_id = await connector.command("get_dataset_stream")
        await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000))
        assert (await client).body == BODY
        assert (await receipt(connector, request_id))["outcome"] == "delivered"
        assert (await connector.complete(request_id)).status == 410


async def test_a_client_that_leaves_cancels_at_the_connector(connector: PlayedConnector) -> None:
    at = f"/datasets/{connector.mac}/d"
    with raw_http.connect(connector.url) as sock:
        sock.sendall(raw_http.head("GET", at, {}))
        request_id = await connector.command("get_dataset_stream")
    cancel = await connector.hear()
    assert (cancel["command"], cancel["request_id"]) == ("cancel", request_id)
    for reply in (
        await connector.init(request_id, 3000),
        await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000)),
        await connector.result(request_id, {"data": "x"}),
        await connector.complete(request_id),
    ):
        assert (reply.status, reply.code) == (410, "gone"), reply
    assert (await receipt(connector, request_id))["outcome"] == "cancelled"
