"""S1: addresses of another place than the store."""

from aiohttp import web

from claims import DATA, DIGESTS, FOREIGN, fetched, offer, place
from harness import MAC, System
from played_connector import played, wanting
from played_router import played as served
from store_stage import told


async def test_s1_an_address_of_another_place_is_never_passed_on(system: System) -> None:
    async with place() as other, place() as store:
        right = f"http://127.0.0.1:{store.port}/x"
        system.environ = {"TUNNELSYNC_STORE_ENDPOINT": f"http://127.0.0.1:{store.port}"}
        router = system.router()
        async with played(router.url, MAC) as connector:
            for text in FOREIGN:
                url = text.replace("OTHER", str(other.port)).replace("STORE", str(store.port))
                for answer in (offer(url, right), offer(right, url)):
                    client = wanting(router.url, MAC, "offload")
                    request_id = await connector.command("get_dataset_offload")
                    assert (await connector.result(request_id, answer)).status == 200
                    refused = await client
                    assert (refused.status, refused.code) == (502, "store_untrusted"), url
                client = wanting(router.url, MAC, "auto")
                request_id = await connector.command("get_dataset_auto")
                await connector.result(request_id, offer(url, url))
                assert (await client).code == "store_untrusted", url
            for text in ("http://127.0.0.1:OTHER/x", "file:///etc/passwd"):
                url = text.replace("OTHER", str(other.port))
                done = await fetched(system, connector, offer(url, right))
                assert done.code == 4, done.out
                assert "nothing was downloaded" in told(done)
                assert list(system.tmp_path.iterdir()) == []
        assert (other.visits, store.visits) == (0, 0)


async def test_s1_the_client_goes_nowhere_but_to_the_store_that_it_pins(system: System) -> None:
    async with place() as other, place() as store:
        right = f"http://127.0.0.1:{store.port}/x"
        system.environ = {"TUNNELSYNC_STORE_ENDPOINT": f"http://127.0.0.1:{store.port}"}
        router = system.router()
        pin = {"TUNNELSYNC_CLIENT_STORE_ORIGIN": f"http://127.0.0.1:{other.port}"}
        async with played(router.url, MAC) as connector:
            done = await fetched(system, connector, offer(right, right), **pin)
        assert done.code == 4, done.out
        assert "pinned" in told(done)
        assert (other.visits, store.visits) == (0, 0)


async def test_s1_a_redirect_is_not_followed(system: System) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "away" in request.query:
            raise web.HTTPFound(f"http://127.0.0.1:{other.port}/x")
        return web.Response(body=DIGESTS if request.path == "/blocks" else DATA)

    async with place() as other, served(answer) as store:
        system.environ = {"TUNNELSYNC_STORE_ENDPOINT": store}
        router = system.router()
        async with played(router.url, MAC) as connector:
            for claimed in (
                offer(f"{store}/data?secret=1&away", f"{store}/blocks?secret=1"),
                offer(f"{store}/data?secret=1", f"{store}/blocks?secret=1&away"),
            ):
                done = await fetched(system, connector, claimed)
                assert done.code == 4, done.out
                assert "redirects" in told(done)
                assert "secret" not in done.out + done.err
                assert list(system.tmp_path.iterdir()) == []
        assert other.visits == 0
