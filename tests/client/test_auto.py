"""Mode auto: what the connector chose is followed, and a store that fails costs one retry."""

from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from client.test_offload import Store, told
from played_router import MAC, client, content, json, played, streamed
from tunnelsync.errors import (
    ConnectorOffline,
    ProtocolError,
    StoreRefused,
    StoreUnavailable,
    StoreUntrusted,
    TunnelSyncError,
)
from tunnelsync.protocol import H_MODE, Mode, error_answer

DATA = content(5_000_000)


class Router:
    """Answers the first request as told, and each later one with a stream."""

    def __init__(self, first: Callable[[], web.Response]) -> None:
        self.first = first
        self.accepted: list[list[str]] = []

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        assert request.path == "/datasets/request-auto"
        self.accepted.append((await request.json())["accept"])
        return self.first() if len(self.accepted) == 1 else streamed(DATA)


async def fetched(router: Router, target: Path) -> Mode:
    async with played(router) as url, client(url) as ts:
        used = (await ts.fetch(MAC, "d", target)).mode_used
    assert target.read_bytes() == DATA
    return used


async def test_a_stream_is_taken(tmp_path: Path) -> None:
    router = Router(lambda: streamed(DATA))
    assert await fetched(router, tmp_path / "d") is Mode.STREAM
    assert router.accepted == [["stream", "offload"]]


async def test_an_object_in_the_store_is_taken(tmp_path: Path) -> None:
    async with played(Store(DATA)) as store:
        router = Router(lambda: json(told(store, DATA), headers={H_MODE: "offload"}))
        assert await fetched(router, tmp_path / "d") is Mode.OFFLOAD
    assert len(router.accepted) == 1


@pytest.mark.parametrize("error", [StoreUnavailable("down"), StoreRefused("full")])
async def test_a_store_that_fails_the_connector_costs_one_retry(
    tmp_path: Path, error: TunnelSyncError
) -> None:
    router = Router(lambda: json(error_answer(error), error.status))
    assert await fetched(router, tmp_path / "d") is Mode.STREAM
    assert router.accepted == [["stream", "offload"], ["stream"]]


async def test_a_store_that_fails_us_costs_one_retry(tmp_path: Path) -> None:
    router = Router(lambda: json(told("http://127.0.0.1:1", DATA), headers={H_MODE: "offload"}))
    assert await fetched(router, tmp_path / "d") is Mode.STREAM
    assert router.accepted[1:] == [["stream"]]


async def test_a_store_that_failed_is_not_taken_again_for_the_stream_that_was_asked_for(
    tmp_path: Path,
) -> None:
    async with played(Store(DATA)) as store:
        answers = [told("http://127.0.0.1:1", DATA), told(store, DATA)]

        async def router(request: web.BaseRequest) -> web.Response:
            return json(answers.pop(0), headers={H_MODE: "offload"})

        async with played(router) as url, client(url) as ts:
            with pytest.raises(ProtocolError, match="not among those"):
                await ts.fetch(MAC, "d", tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (lambda: json(error_answer(ConnectorOffline("off")), 503), ConnectorOffline),
        (
            lambda: json(
                told("http://127.0.0.1:1", DATA) | {"store_origins": []},
                headers={H_MODE: "offload"},
            ),
            StoreUntrusted,
        ),
        (lambda: json({}, headers={H_MODE: "buffer"}), ProtocolError),
        (lambda: json({}), ProtocolError),
    ],
)
async def test_nothing_else_is_tried_again(
    tmp_path: Path, first: Callable[[], web.Response], error: type[TunnelSyncError]
) -> None:
    router = Router(first)
    with pytest.raises(error):
        await fetched(router, tmp_path / "d")
    assert len(router.accepted) == 1
    assert not (tmp_path / "d").exists()
