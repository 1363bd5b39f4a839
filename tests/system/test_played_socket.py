"""The socket between a real router and a connector: what is on it, and how it comes back."""

import asyncio
from dataclasses import replace

import pytest
from aiohttp import WSMsgType

import raw_http
from harness import Router, System
from played_connector import (
    PlayedConnector,
    another_mac,
    asking,
    init,
    played,
    wanting,
)
from played_router import blocks_of, content, framed
from played_transfer import decoded, receipt, still_works
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import (
    CLOSE_CLASH,
    CLOSE_PROTOCOL,
    CLOSE_REPLACED,
    Ack,
    Fault,
    Progress,
)
from tunnelsync.settings import KIB
from tunnelsync.wire import dumps

BODY = content(3000)
BLOCKS = content(2 * BLOCK_BYTES) + b"and a bit"


# --- M1: what is on the socket ------------------------------------------------------------------

WRONG: dict[str, str | bytes] = {
    "deep": "[" * 30_000,
    "deep and closed": '{"type":"ack","request_id":' + "[" * 20_000 + "]" * 20_000 + "}",
    "deep objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "NaN": '{"type":"progress","request_id":"RID","state":"x","done":NaN}',
    "Infinity": '{"type":"progress","request_id":"RID","state":"x","done":-Infinity}',
    "a huge number": '{"type":"progress","request_id":"RID","state":"x","done":' + "9" * 400 + "}",
    "2**63": '{"type":"progress","request_id":"RID","state":"x","done":9223372036854775808}',
    "1e999": '{"type":"progress","request_id":"RID","state":"x","done":1e999}',
    "a fraction": '{"type":"progress","request_id":"RID","state":"x","done":1.5}',
    "a boolean": '{"type":"progress","request_id":"RID","state":"x","done":true}',
    "duplicate keys": '{"type":"ack","request_id":"RID","request_id":["RID"]}',
    "two types": '{"type":"ack","type":"nothing","request_id":"RID"}',
    "a list for a text": '{"type":"ack","request_id":["RID"]}',
    "a number for a text": '{"type":"ack","request_id":1}',
    "a missing member": '{"type":"ack"}',
    "null for a member": '{"type":"ack","request_id":null}',
    "a type that is none": '{"type":"reboot","request_id":"RID"}',
    "a type of another type": '{"type":{"ack":1},"request_id":"RID"}',
    "no type": '{"request_id":"RID"}',
    "a command": '{"command":"cancel","request_id":"RID"}',
    "a list": "[1,2,3]",
    "a text": '"ack"',
    "nothing": "",
    "no JSON": "hello?",
    "half a character": '{"type":"ack","request_id":"\\ud800"}',
    "a second hello": '{"type":"hello","mac":"cc-28-aa-00-11-22","version":"1","instance":"x"}',
    "an unknown protocol": (
        '{"type":"hello","mac":"cc-28-aa-00-11-22","version":"1","instance":"x","protocol":99}'
    ),
    "binary": b'{"type":"ack","request_id":"RID"}',
    "binary nonsense": bytes(range(256)),
}


async def test_m1_what_is_not_understood_is_answered_and_everything_goes_on(
    connector: PlayedConnector,
) -> None:
    """Each in the middle of a transfer; before the ack, which does come in the end."""
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream", ack=False)
    await connector.chunk(request_id, 0, BODY[:1000], init=init(request_id, 3000))
    for name, wrong in WRONG.items():
        if isinstance(wrong, bytes):
            await connector.say(wrong.replace(b"RID", request_id.encode()))
        else:
            await connector.say(wrong.replace("RID", request_id))
        heard = await connector.hear()
        assert heard["type"] == "error", (name, heard)
        assert heard["code"] in ("bad_request", "unsupported"), (name, heard)
        assert len(dumps(heard)) < 4 * KIB, (name, heard)
    # What is understood, and means nothing here: no answer, and no harm.
    await connector.say(Ack("f" * 32))
    await connector.say(Progress(request_id, "x" * 1000, -1))
    await connector.say('{"type":"error","code":"\\u001b[2J","message":"\\n\\u0000forged"}')
    await connector.say('{"type":"ack","request_id":"' + request_id + '","later":[[[]]]}')
    await still_works(connector)
    await connector.chunk(request_id, 1000, BODY[1000:])
    await connector.complete(request_id)
    assert (await client).body == BODY


async def test_m1_a_message_over_the_limit_ends_the_socket_and_not_the_transfer(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.chunk(request_id, 0, BODY[:1000], init=init(request_id, 3000))
    await connector.say('"' + "x" * 70_000 + '"')
    assert await connector.close_code() == 1009
    await connector.connect()
    await still_works(connector)
    await connector.chunk(request_id, 1000, BODY[1000:])
    await connector.complete(request_id)
    assert (await client).body == BODY


GOOD = '{"type":"hello","mac":"MAC","version":"1","instance":"i","protocol":1}'


@pytest.mark.parametrize(
    "hello",
    [
        GOOD.replace('"protocol":1', '"protocol":2'),
        GOOD.replace('"protocol":1', '"protocol":"1"'),
        GOOD.replace('"MAC"', '"nothing"'),
        GOOD.replace('"MAC"', '"cc-28-aa-ff-ff-ff"'),
        GOOD.replace('"instance":"i",', ""),
        '{"type":"ack","request_id":"x"}',
        "{",
        GOOD.encode(),
    ],
)
async def test_a_wrong_hello_closes_with_4004(shared: Router, hello: str | bytes) -> None:
    mac = another_mac()
    async with PlayedConnector(shared.url, mac) as connector:
        await connector.open()
        if isinstance(hello, bytes):
            await connector.say(hello.replace(b"MAC", mac.encode()))
        else:
            await connector.say(hello.replace("MAC", mac))
        assert await connector.close_code() == CLOSE_PROTOCOL
        rows = (await asking(shared.url, "GET", "/connectors")).json()["connectors"]
        assert mac not in [row["mac"] for row in rows]
        await connector.connect()
        await still_works(connector)


def test_a_socket_without_the_subprotocol_is_refused(shared: Router) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for offered in ({}, {"Sec-WebSocket-Protocol": "tunnelsync.v2"}):
        with raw_http.connect(shared.url) as sock:
            sock.sendall(raw_http.head("GET", "/connectors/ws", upgrade | offered))
            answer = raw_http.parsed(sock.recv(65536))
        assert (answer.status, answer.code) == (501, "unsupported")


async def test_no_hello_within_the_deadline_closes_with_4004(system: System) -> None:
    url = system.router(ack_seconds=0.3).url
    async with PlayedConnector(url, another_mac()) as connector:
        await connector.open()
        assert await connector.close_code() == CLOSE_PROTOCOL


# --- L8: the socket goes and comes back ---------------------------------------------------------


async def state_of(connector: PlayedConnector) -> tuple[str, int]:
    """Return what the router says of the connector: its state, and its transfers under way."""
    rows = (await asking(connector.url, "GET", "/connectors")).json()["connectors"]
    found = [row for row in rows if row["mac"] == connector.mac]
    return (found[0]["state"], found[0]["transfers"]) if found else ("offline", 0)


async def until(connector: PlayedConnector, state: str, transfers: int) -> None:
    """Wait until the router says so."""
    async with asyncio.timeout(20):
        while await state_of(connector) != (state, transfers):
            pass


async def test_l8_a_command_waits_for_the_socket_and_comes_once(connector: PlayedConnector) -> None:
    await connector.lose()
    await until(connector, "returning", 0)
    client = wanting(connector.url, connector.mac, "sync")
    await until(connector, "returning", 1)
    await connector.connect()
    request_id = await connector.command("get_dataset")
    await connector.result(request_id, {"data": "x"})
    assert (await client).json() == {"data": "x"}
    await still_works(connector)  # the next command is another one


async def test_l8_a_command_that_cannot_be_sent_fails_alone_when_the_connector_returns(
    system: System,
) -> None:
    router = system.router(message_bytes=1000)
    async with played(router.url, another_mac()) as connector:
        await connector.lose()
        await until(connector, "returning", 0)
        long = wanting(connector.url, connector.mac, dataset="d" * 900)
        await until(connector, "returning", 1)
        client = wanting(connector.url, connector.mac, "sync")
        await until(connector, "returning", 2)
        await connector.connect()
        assert ((answer := await long).status, answer.code) == (413, "too_large")
        request_id = await connector.command("get_dataset")
        await connector.result(request_id, {"data": "x"})
        assert (await client).json() == {"data": "x"}
        await still_works(connector)


async def test_l8_what_was_not_acknowledged_comes_again_and_nothing_else(
    connector: PlayedConnector,
) -> None:
    clients = [wanting(connector.url, connector.mac, "sync") for _ in range(2)]
    acked = await connector.command("get_dataset")
    unacked = await connector.command("get_dataset", ack=False)
    await connector.say("fence")
    assert (await connector.hear())["type"] == "error"  # so the ack was read
    for _ in range(3):
        await connector.lose()
        await until(connector, "returning", 2)
        await connector.connect()
        assert await connector.command("get_dataset", ack=False) == unacked
    await still_works(connector)
    for request_id in (acked, unacked):
        await connector.result(request_id, {"data": "x"})
    for client in clients:
        assert (await client).json() == {"data": "x"}


async def test_l8_a_second_hello_of_the_same_process_takes_over(connector: PlayedConnector) -> None:
    """The router has not noticed yet that the first socket is dead; nothing ends for that."""
    flowing = wanting(connector.url, connector.mac)
    flowing_id = await connector.command("get_dataset_stream")
    await connector.chunk(flowing_id, 0, BODY[:1000], init=init(flowing_id, 3000))
    waiting = wanting(connector.url, connector.mac, "sync")
    waiting_id = await connector.command("get_dataset", ack=False)
    async with connector.another() as second:
        second.instance = connector.instance
        await second.open()
        await second.say(second.hello())
        welcome = await second.hear()
        assert (welcome["type"], welcome["epoch"], welcome["protocol"]) == ("welcome", 2, 1)
        assert await second.command("get_dataset") == waiting_id
        assert await connector.close_code() == CLOSE_REPLACED
        await second.result(waiting_id, {"data": "x"})
        assert (await waiting).json() == {"data": "x"}
        await second.chunk(flowing_id, 1000, BODY[1000:])
        await second.complete(flowing_id)
        assert (await flowing).body == BODY
        await still_works(second)


async def test_l8_a_transfer_that_flows_outlives_the_socket_and_its_grace(system: System) -> None:
    router = system.router(return_grace_seconds=0.2)
    async with played(router.url, another_mac()) as connector:
        flowing = wanting(router.url, connector.mac)
        flowing_id = await connector.command("get_dataset_stream")
        await connector.chunk(flowing_id, 0, BODY[:1000], init=init(flowing_id, 3000))
        waiting = wanting(router.url, connector.mac, "sync")
        await connector.command("get_dataset")
        await connector.lose()
        answer = await waiting
        assert (answer.status, answer.code) == (503, "connector_offline")
        assert int(answer.headers["retry-after"]) >= 0
        assert await state_of(connector) == ("offline", 0)
        await connector.chunk(flowing_id, 1000, BODY[1000:])
        await connector.complete(flowing_id)
        assert (await flowing).body == BODY
        await connector.connect()
        await still_works(connector)


async def test_l8_a_connector_that_came_back_outlives_the_grace(system: System) -> None:
    """One that was lost later is given up: the grace of the first would be over before."""
    router = system.router(return_grace_seconds=0.5)
    async with played(router.url, another_mac()) as first, played(router.url, another_mac()) as two:
        await first.lose()
        await until(first, "returning", 0)
        await first.connect()
        await two.lose()
        await until(two, "offline", 0)
        assert await state_of(first) == ("connected", 0)
        await still_works(first)


async def test_l8_a_command_whose_client_left_meanwhile_does_not_come(
    connector: PlayedConnector,
) -> None:
    clients = [wanting(connector.url, connector.mac, "sync") for _ in range(2)]
    ids = [await connector.command("get_dataset", ack=False) for _ in clients]
    await connector.lose()
    await until(connector, "returning", 2)
    clients[0].cancel()
    await until(connector, "returning", 1)
    await connector.connect()
    left = await connector.command("get_dataset")
    assert left in ids
    await still_works(connector)
    await connector.result(left, {"data": "x"})
    assert (await clients[1]).json() == {"data": "x"}


async def test_l6_swaps_are_forgotten_after_the_window(system: System) -> None:
    router = system.router(clash_swaps=1, clash_window_seconds=2, heartbeat_seconds=60)
    async with played(router.url, another_mac()) as first, first.another() as second:
        await second.connect()
        assert await first.close_code() == CLOSE_REPLACED
        codes = []
        async with asyncio.timeout(20):
            while second.socket.close_code is None:
                third = first.another()
                async with third:
                    await third.open()
                    await third.say(third.hello())
                    heard = await third.socket.receive()
                    codes.append(heard.data if heard.type is WSMsgType.CLOSE else 0)
                    if not codes[-1]:
                        break
        assert codes[0] == CLOSE_CLASH
        assert codes[-1] == 0


async def test_l6_one_that_yields_takes_nothing_from_one_that_may_return(system: System) -> None:
    url = system.router(return_grace_seconds=1.5).url
    async with played(url, another_mac()) as first:
        client = wanting(url, first.mac, "sync")
        request_id = await first.command("get_dataset")
        await first.lose()
        await until(first, "returning", 1)
        async with first.another() as second:
            await second.open()
            await second.say(replace(second.hello(), yields=True))
            assert await second.close_code() == CLOSE_CLASH
        await first.connect()
        await first.result(request_id, {"data": "x"})
        assert (await client).json() == {"data": "x"}
        await first.lose()
        await until(first, "offline", 0)
        async with first.another() as second:
            await second.open()
            await second.say(replace(second.hello(), yields=True))
            assert (await second.hear())["yields"] is True
            await still_works(second)


async def test_l6_another_process_replaces_and_both_commands_in_flight_end(
    connector: PlayedConnector,
) -> None:
    framed_body = framed(BLOCKS)
    flowing = wanting(connector.url, connector.mac, coding="blocks")
    flowing_id = await connector.command("get_dataset_stream")
    sent = framed(BLOCKS[:BLOCK_BYTES], end=False)
    begin = init(flowing_id, len(framed_body), size=len(BLOCKS))
    await connector.chunk(flowing_id, 0, sent, init=begin)
    waiting = wanting(connector.url, connector.mac, "sync")
    waiting_id = await connector.command("get_dataset")
    async with connector.another() as second:
        await second.connect()
        assert await connector.close_code() == CLOSE_REPLACED
        answer = await waiting
        assert (answer.status, answer.code) == (503, "connector_replaced")
        blocks, error = decoded((await flowing).body)
        assert blocks == blocks_of(BLOCKS)[:1]
        assert error is not None
        assert error.code == "connector_replaced"
        for request_id in (waiting_id, flowing_id):
            told = await receipt(second, request_id)
            assert (told["outcome"], told["error"]["code"]) == ("offline", "connector_replaced")
        assert (await second.result(waiting_id, {"data": "x"})).status == 410
        assert (await second.chunk(flowing_id, len(sent), b"x")).status == 410
        await still_works(second)


async def test_l2_a_connector_that_takes_no_more_commands_is_told_as_busy(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    await connector.say(Fault("connector_busy", "2000 commands are in hand already", request_id))
    answer = await client
    assert (answer.status, answer.code) == (503, "connector_busy")
    assert (await connector.hear())["command"] == "cancel"
    await still_works(connector)


async def test_a_fault_that_comes_late_does_not_end_what_flows(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.chunk(request_id, 0, BODY[:1000], init=init(request_id, 3000))
    await connector.say(Fault("bad_request", "what was that?", request_id))
    await still_works(connector)  # so the fault was read
    await connector.chunk(request_id, 1000, BODY[1000:])
    await connector.complete(request_id)
    assert (await client).body == BODY
