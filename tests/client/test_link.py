"""What goes wrong on the way to a router becomes one of our errors, in plain words."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from cli.ran import ran
from played_router import MAC, client, content, json, played, played_raw, streamed
from tunnelsync.client import TunnelSync
from tunnelsync.dial import proxy_for
from tunnelsync.errors import (
    BadSetting,
    DatasetNotFound,
    NotARouter,
    PlaintextRefused,
    ProtocolError,
    RouterUnreachable,
    TimedOut,
    TunnelSyncError,
    Usage,
)
from tunnelsync.protocol import H_ERROR, Mode
from tunnelsync.settings import ClientSettings, Secret

DATA = content(5_000_000)


async def asked(url: str) -> TunnelSyncError:
    """Ask for the connectors, and return the error."""
    with pytest.raises(TunnelSyncError) as caught:
        async with client(url) as ts:
            await ts.connectors()
    return caught.value


@pytest.mark.parametrize("status", [301, 302, 400, 401, 403, 404, 413, 500, 502, 504, 522])
async def test_an_answer_of_something_else_names_its_status(status: int) -> None:
    async def proxy(request: web.Request) -> web.StreamResponse:
        page = "<html>nginx</html>"
        return web.Response(text=page, status=status, headers={"Location": "http://x/"})

    async with played(proxy) as url:
        error = await asked(url)
    assert type(error) is (RouterUnreachable if status > 500 else NotARouter)
    assert error.retry is (status > 500)
    assert f"answered {status}" in error.message
    assert "proxy" in error.hint


@pytest.mark.parametrize("body", ["", "<html>", "[]", "7", '{"connectors": 7}', "{}", "[" * 9999])
async def test_a_success_that_is_not_understood_is_a_protocol_error(body: str) -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body)

    async with played(router) as url:
        assert type(await asked(url)) is ProtocolError


@pytest.mark.parametrize("error", [7, None, [], {"code": 7}, {"code": "of the future"}])
async def test_an_error_of_an_unknown_form_is_still_an_error(error: object) -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        return json({"status": "error", "error": error}, 500)

    async with played(router) as url:
        assert (await asked(url)).exit_code in (5, 7)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("7", 7), (" 0 ", 0), ("61", 60), ("9" * 5000, 60)]
    + [(told, None) for told in ("", "-1", "1.5", "\u00b2", "Fri, 31 Dec 1999 23:59:59 GMT")],
)
async def test_a_pause_that_is_told_has_a_bound(told: str, seconds: int | None) -> None:
    async def proxy(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": told})

    async with played(proxy) as url:
        assert (await asked(url)).retry_after_seconds == seconds


async def test_a_head_tells_its_error_in_a_header() -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        assert request.method == "HEAD"
        text = '{"code": "dataset_not_found", "message": "no such dataset", "hint": "h"}'
        return web.Response(status=404, headers={H_ERROR: text})

    async with played(router) as url, client(url) as ts:
        with pytest.raises(TunnelSyncError, match="no such dataset") as caught:
            await ts.stat(MAC, "d")
    assert caught.value.code == "dataset_not_found"


@pytest.mark.parametrize(
    ("header", "request_id"), [(b"0123ab", "0123ab"), (b"ab\xff", ""), (b"x" * 129, "")]
)
async def test_the_id_of_a_transfer_is_taken_from_an_error_if_it_can_be_one(
    header: bytes, request_id: str
) -> None:
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nTunnelSync-Request-Id: "
    async with played_raw(head + header + b"\r\n\r\n") as url:
        assert (await asked(url)).request_id == request_id


@pytest.mark.parametrize("answer", [b"", b"\x15\x03\x01\x00\x02", b"SSH-2.0-x\r\n\r\n"])
async def test_what_is_no_http_is_no_router(answer: bytes) -> None:
    async with played_raw(answer) as url:
        assert type(await asked(url)) is RouterUnreachable


@pytest.mark.parametrize("mode", Mode)
async def test_a_fetch_that_fails_leaves_the_task_that_called_it_as_it_was(
    mode: Mode, tmp_path: Path
) -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        return json({"status": "error", "error": {"code": "dataset_not_found"}}, 404)

    task = asyncio.current_task()
    assert task is not None
    async with played(router) as url, client(url) as ts:
        with pytest.raises(DatasetNotFound):
            await ts.fetch(MAC, "d", tmp_path / "d", mode=mode)
        assert task.cancelling() == 0
        with pytest.raises(DatasetNotFound):
            async for _ in ts.blocks(MAC, "d"):
                pass
        assert task.cancelling() == 0


async def test_a_client_that_is_not_open_or_was_closed_says_so() -> None:
    async with played(lambda _: None) as url:  # type: ignore[arg-type, return-value]
        ts = client(url)
        with pytest.raises(Usage, match="not open"):
            await ts.connectors()
        async with ts:
            pass
        with pytest.raises(Usage, match="not open"):
            await ts.connectors()


async def test_a_fetch_whose_client_is_closed_says_so(tmp_path: Path) -> None:
    came = asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        came.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with played(silent) as url:
        async with client(url) as ts:
            task = asyncio.create_task(ts.fetch(MAC, "d", tmp_path))
            await asyncio.wait_for(came.wait(), 10)
        with pytest.raises(Usage, match="not open"):
            await asyncio.wait_for(task, 30)
    assert list(tmp_path.iterdir()) == []


async def test_nobody_there_is_connection_refused() -> None:
    error = await asked("http://127.0.0.1:1")
    assert type(error) is RouterUnreachable
    assert "connection refused" in error.message


async def test_https_to_a_plain_port_says_so() -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        return json({})

    async with played(router) as url:
        error = await asked(url.replace("http:", "https:"))
    assert type(error) is RouterUnreachable
    assert "https:// or http://" in error.message


async def test_an_unknown_name_says_so() -> None:
    error = await asked("https://router.invalid")
    assert type(error) is RouterUnreachable
    assert "router.invalid" in error.message
    assert "DNS" in error.message


async def test_a_router_that_does_not_answer_is_timed_out() -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return json({})

    async with played(router) as url:
        settings = ClientSettings(router=url, answer_seconds=0.2)
        async with TunnelSync(settings=settings) as ts:
            with pytest.raises(TimedOut, match=r"0\.2 s"):
                await ts.connectors()


def test_what_cannot_be_used_is_refused_at_once() -> None:
    with pytest.raises(PlaintextRefused):
        TunnelSync("http://router.example.org")
    for token in ("a\nb", "a b", "\udcff"):
        with pytest.raises(BadSetting) as caught:
            TunnelSync(settings=ClientSettings(token=Secret(token)))
        assert token not in caught.value.message


@pytest.mark.parametrize(
    ("no_proxy", "url", "proxied"),
    [
        ("", "https://router.example.org", True),
        ("router.example.org", "https://router.example.org", False),
        (".example.org", "https://router.example.org:8443", False),
        ("router.example.org:8443", "https://router.example.org:8443", False),
        ("router.example.org:8443", "https://router.example.org", True),
        ("*", "https://router.example.org", False),
        ("", "https://127.0.0.1", False),
        ("", "https://localhost", False),
        ("", "http://router.example.org", False),
    ],
)
def test_which_address_goes_by_the_proxy(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, proxied: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:p%40ss@proxy.example.org:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    chosen = proxy_for(URL(url))
    assert bool(chosen) is proxied
    if proxied:
        assert chosen["proxy"] == URL("http://proxy.example.org:3128")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://host:port", "http://"])
def test_a_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(BadSetting, match="HTTPS_PROXY"):
        proxy_for(URL("https://router.example.org"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the certificate and key of an authority that signs itself, for router.test."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made = (folder / "cert.pem", folder / "key.pem")
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=router.test", "-out", made[0], "-keyout", made[1]),
            *("-addext", "subjectAltName=DNS:router.test,DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    return made


@asynccontextmanager
async def tls_router(certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """Serve DATA over TLS, and yield the port."""

    async def router(request: web.Request) -> web.StreamResponse:
        return streamed(DATA)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with played(router) as inner:
        port = URL(inner).port
        server = await asyncio.start_server(
            lambda r, w: _joined(r, w, "127.0.0.1", port or 0), "127.0.0.1", 0, ssl=context
        )
        async with server:
            yield server.sockets[0].getsockname()[1]


async def _joined(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
) -> None:
    other_reader, other_writer = await asyncio.open_connection(host, port)
    await asyncio.gather(_copied(reader, other_writer), _copied(other_reader, writer))


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def connect_proxy(port: int, seen: list[str]) -> AsyncIterator[str]:
    """A proxy whose every tunnel leads to one port of this machine."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await _joined(reader, writer, "127.0.0.1", port)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_an_authority_of_ones_own_is_trusted_by_ssl_cert_file(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    async with tls_router(certificate) as port:
        url = f"https://localhost:{port}"
        without = await ran("fetch", "--router", url, MAC, "d", cwd=tmp_path)
        trusting = {"SSL_CERT_FILE": str(certificate[0])}
        other = await ran(
            *("fetch", "--router", f"https://127.0.0.1:{port}", MAC, "d"), cwd=tmp_path, **trusting
        )
        done = await ran("fetch", "--router", url, MAC, "d", cwd=tmp_path, **trusting)
    assert (without.code, "certificate is refused" in without.err) == (5, True)
    assert (other.code, "certificate is refused" in other.err) == (5, True)
    assert done.code == 0
    assert (tmp_path / "d").read_bytes() == DATA


async def test_a_proxy_from_the_environment_is_used(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    seen: list[str] = []
    async with tls_router(certificate) as port, connect_proxy(port, seen) as proxy:
        done = await ran(
            *("fetch", "--router", "https://router.test", MAC, "d"),
            cwd=tmp_path,
            SSL_CERT_FILE=str(certificate[0]),
            HTTPS_PROXY=f"http://user:p%40ss@{proxy}",
        )
    assert done.code == 0, done.err
    assert (tmp_path / "d").read_bytes() == DATA
    assert seen[0].startswith("CONNECT router.test:443 ")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in seen[0]
    assert "canary" not in seen[0]
