"""Mode auto in the middle of a dataset: when the store fails, every stream goes on without it."""

from pathlib import Path

import orjson
import pytest
from aiohttp import web

from client.test_offload import Store, told
from played_router import MAC, Streaming, client, content, json, played
from tunnelsync.client import Record
from tunnelsync.errors import StoreRefused, StoreUnavailable, TunnelSyncError
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import H_MODE, Mode, error_answer

DATA = content(9 * BLOCK_BYTES + 5)


class Router(Streaming):
    """Offers the store's object once; to be asked for it again is an error, and a stream works."""

    def __init__(self, store: str, error: TunnelSyncError) -> None:
        super().__init__(DATA)
        self.store, self.error = store, error
        self.paths: list[str] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        if request.path == "/datasets/request-offload":
            return json(error_answer(self.error), self.error.status)
        accept = orjson.loads(await request.read()).get("accept", ())
        if request.path == "/datasets/request-auto" and "offload" in accept:
            return json(told(self.store, DATA), headers={H_MODE: "offload"})
        return await super().__call__(request)


class Expiring(Store):
    """A store whose address holds for the first part, and no other."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        before = sum(one.path == "/data" for one in self.asked)
        answer = await super().__call__(request)
        return web.Response(status=403) if before and request.path == "/data" else answer


@pytest.mark.parametrize("parallel", [1, 2, 4])
@pytest.mark.parametrize("error", [StoreRefused("no space"), StoreUnavailable("down")])
async def test_s3_a_store_that_refuses_in_the_middle_costs_no_stream(
    tmp_path: Path, error: TunnelSyncError, parallel: int
) -> None:
    settings = {"parallel": parallel, "parallel_least_bytes": 1, "retry_for_seconds": 20.0}
    notes: list[str] = []
    async with played(Expiring(DATA)) as store:
        router = Router(store, error)
        async with played(router) as url, client(url, backoff_first_seconds=0.0, **settings) as ts:
            await ts.fetch(MAC, "d", tmp_path, record=Record(notes.append))
    assert (tmp_path / "d").read_bytes() == DATA
    assert sum("going on in mode stream" in one for one in notes) <= 1
    if parallel > 1:
        assert "/datasets/request-offload" in router.paths


async def test_s4_digests_that_are_altered_in_the_store_send_auto_to_the_stream(
    tmp_path: Path,
) -> None:
    store = Store(DATA)
    store.digests = bytes(32) + store.digests[32:]
    async with played(store) as at:
        router = Router(at, StoreRefused("not asked"))
        async with played(router) as url, client(url) as ts:
            used = (await ts.fetch(MAC, "d", tmp_path)).mode_used
    assert used is Mode.STREAM
    assert (tmp_path / "d").read_bytes() == DATA
