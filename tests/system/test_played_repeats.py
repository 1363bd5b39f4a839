"""What a connector tells a real router twice, too late, or about what is not its own."""

from dataclasses import replace
from typing import Any

import pytest

from harness import Router
from played_connector import (
    PlayedConnector,
    Reply,
    another_mac,
    init,
    played,
    wanting,
)
from played_router import content, digests_of
from played_transfer import receipt, still_works
from tunnelsync import frames
from tunnelsync.protocol import (
    Ack,
    Complete,
    Problem,
    Progress,
)

BODY = content(3000)


async def test_init_and_complete_twice_get_the_first_answer_and_others_409(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    first = await connector.init(request_id, 3000)
    assert first.status == 200
    assert await connector.init(request_id, 3000) == first
    other = await connector.init(request_id, 2999)
    assert (other.status, other.code) == (409, "conflict")
    early = await connector.complete(request_id)
    assert (early.status, early.code) == (409, "conflict")
    assert (await connector.chunk(request_id, 0, BODY)).status == 200
    assert await connector.init(request_id, 3000) == first
    root = frames.root(digests_of(BODY))
    done = await connector.complete(request_id, root=root, count=1)
    assert done.status == 200
    assert (await client).body == BODY
    assert await connector.complete(request_id, root=root, count=1) == done
    assert await connector.init(request_id, 3000) == first
    assert (await connector.complete(request_id, root=root, count=2)).status == 409
    problem = Problem("read_failed", "after the end")
    assert (await connector.complete(request_id, error=problem)).status == 409
    assert (await connector.init(request_id, 2999)).status == 409
    told = await receipt(connector, request_id)
    assert (told["outcome"], told["root"], told["bytes"]) == ("delivered", root, 3000)


async def test_a2_a_result_twice_gets_the_first_answer_and_another_409(
    connector: PlayedConnector,
) -> None:
    value = {"status": "success", "data": "one"}
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    first = await connector.result(request_id, value)
    assert first.status == 200
    assert await connector.result(request_id, value) == first
    assert (await client).json() == value
    assert await connector.result(request_id, value) == first
    other = await connector.result(request_id, value | {"data": "two"})
    assert (other.status, other.code) == (409, "conflict")
    failed = {"status": "error", "error": {"code": "read_failed", "message": "late"}}
    assert (await connector.result(request_id, failed)).status == 409
    assert (await receipt(connector, request_id))["outcome"] == "delivered"


async def test_an_error_result_twice_gets_the_first_answer_and_success_409(
    connector: PlayedConnector,
) -> None:
    failed = {"status": "error", "error": {"code": "read_failed", "message": "the disk"}}
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    first = await connector.result(request_id, failed)
    assert first.status == 200
    answer = await client
    assert (answer.status, answer.code) == (500, "read_failed")
    assert await connector.result(request_id, failed) == first
    assert (await connector.result(request_id, {"status": "success"})).status == 409
    assert (await connector.init(request_id, 3000)).status == 410


async def test_a_result_may_name_its_request_inside(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    value = {"request_id": request_id, "status": "success", "data": "x"}
    assert (await connector.post("result", value)).status == 200
    assert (await client).json() == value


async def test_messages_in_the_headers_cost_one_request_and_may_come_again(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    begin, end = init(request_id, 3000), init_end(request_id)
    reply = await connector.chunk(request_id, 0, BODY, init=begin, complete=end)
    assert reply == Reply(200, {"offset": 3000})
    assert (await client).body == BODY
    again = await connector.chunk(request_id, 0, BODY, init=begin, complete=end)
    assert (again.status, again.code) == (410, "gone")
    assert (await connector.complete(request_id, root=end.root, count=end.count)).status == 200


def init_end(request_id: str) -> Complete:
    """Return the closing word for the whole body."""
    return Complete(request_id, frames.root(digests_of(BODY)), 1)


async def test_headers_that_contradict_are_refused_and_the_transfer_goes_on(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    begin = init(request_id, 3000)
    foreign = replace(begin, request_id="0" * 32)
    assert (await connector.chunk(request_id, 0, BODY, init=foreign)).status == 400
    first = await connector.chunk(request_id, 0, BODY[:1000], init=begin)
    assert first == Reply(200, {"offset": 1000})
    other = replace(begin, etag="v2")
    assert (await connector.chunk(request_id, 1000, BODY[1000:], init=other)).status == 409
    assert (await connector.chunk(request_id, 1000, BODY[1000:], init=begin)).status == 200
    await connector.complete(request_id)
    assert (await client).body == BODY


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": 500},
        {"status": 100},
        {"size": -1},
        {"offset": -1},
        {"offset": 1},
        {"size": 3001},
        {"status": 206, "offset": 1},
        {"etag": 'a"b'},
        {"etag": "a\r\nX: y"},
        {"etag": "\u00e9"},
        {"etag": "e" * 257},
        {"status": 304},
    ],
)
async def test_an_init_that_cannot_be_is_400_and_the_right_one_goes_on(
    connector: PlayedConnector, wrong: dict[str, Any]
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    refused = await connector.init(request_id, 3000, **wrong)
    assert (refused.status, refused.code) == (400, "bad_request")
    reply = await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000))
    assert reply.status == 200
    await connector.complete(request_id)
    assert (await client).body == BODY


async def test_a_root_longer_than_any_is_400_for_its_receipt_would_keep_it(
    connector: PlayedConnector,
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert (await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000))).status == 200
    refused = await connector.complete(request_id, root="r" * 129)
    assert (refused.status, refused.code) == (400, "bad_request")
    assert (await connector.complete(request_id, root="r" * 128)).status == 200
    assert (await client).body == BODY


async def test_what_is_out_of_order_or_of_another_kind_is_409(connector: PlayedConnector) -> None:
    streamed = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    assert (await connector.chunk(request_id, 0, BODY)).code == "conflict"
    assert (await connector.complete(request_id)).code == "conflict"
    assert (await connector.result(request_id, {"status": "success"})).code == "conflict"
    assert (await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000))).status == 200
    assert (await connector.result(request_id, {"status": "success"})).status == 409
    await connector.complete(request_id)
    assert (await streamed).body == BODY

    buffered = wanting(connector.url, connector.mac, "sync")
    request_id = await connector.command("get_dataset")
    assert (await connector.init(request_id, 3000)).code == "conflict"
    assert (await connector.chunk(request_id, 0, BODY)).code == "conflict"
    assert (await connector.result(request_id, {"data": "x"})).status == 200
    assert (await buffered).json() == {"data": "x"}


async def test_after_the_end_everything_is_410(connector: PlayedConnector) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.chunk(request_id, 0, BODY, init=init(request_id, 3000))
    await connector.complete(request_id)
    assert (await client).body == BODY
    for reply in (
        await connector.chunk(request_id, 0, BODY),
        await connector.chunk(request_id, 3000, b""),
        await connector.offset(request_id),
        await connector.result(request_id, {"data": "x"}),
    ):
        assert (reply.status, reply.code) == (410, "gone"), reply
    assert (await connector.offset("f" * 32)).status == 404


async def test_a1_another_connector_cannot_touch_a_transfer(
    connector: PlayedConnector, shared: Router
) -> None:
    client = wanting(connector.url, connector.mac)
    request_id = await connector.command("get_dataset_stream")
    await connector.chunk(request_id, 0, BODY[:1000], init=init(request_id, 3000))
    async with played(connector.url, another_mac()) as other:
        problem = Problem("read_failed", "ha")
        for reply in (
            await other.init(request_id, 3000),
            await other.chunk(request_id, 1000, b"evil"),
            await other.result(request_id, {"data": "evil"}),
            await other.complete(request_id, error=problem),
            await other.offset(request_id),
        ):
            assert (reply.status, reply.code) == (403, "forbidden"), reply
        await other.say(Ack(request_id))
        await other.say(Progress(request_id, "reading"))
        shared.wait_for_line(f"request {request_id} was not sent to {other.mac}")
        await still_works(other)
    await connector.chunk(request_id, 1000, BODY[1000:])
    await connector.complete(request_id)
    assert (await client).body == BODY
