"""TLS at the router itself, plain http refused where it could be read, and proxies on the way."""

import base64
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from yarl import URL

import raw_http
from certificate import Certificate
from connect_proxy import ConnectProxy, connect_proxy
from harness import MAC, System, cli, make_file, sha256
from tunnelsync.identity import Mac, Role, dump_tokens, new_token
from tunnelsync.settings import MIB

NAME = "router.test"
"""A host that no DNS knows (RFC 6761): only the proxy of a test leads to it."""
PASSWORD = "canary-proxy-3c1e"


def own_address() -> str:
    """Return an address of this machine that is not loopback; no packet is sent for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback, so nothing is another host")
        return str(sock.getsockname()[0])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1", f"DNS:{NAME}")


@pytest.fixture
def source(system: System) -> Path:
    return make_file(system.tmp_path / "datasets" / "data", 9 * MIB)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    with connect_proxy() as running:
        yield running


@pytest.fixture
def tokens(system: System) -> dict[str, str]:
    """Write a tokens file; the tokens, by who has them: other hosts need some."""
    made = {"client": new_token(Role.CLIENT), "connector": new_token(Role.CONNECTOR, Mac(MAC))}
    path = system.tmp_path / "tokens.json"
    path.write_bytes(dump_tokens(grant for _, grant in made.values()))
    return {"file": str(path), **{role: token for role, (token, _) in made.items()}}


# --- TLS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["key", "cert"])
def test_a_certificate_that_is_replaced_is_shown_to_who_connects_then(
    system: System, tmp_path: Path, first: str
) -> None:
    """One file alone, as halfway through a replacement, leaves the old ones in use."""
    used, new = (Certificate(tmp_path / name, "IP:127.0.0.1") for name in ("used", "new"))
    system.environ |= used.trust
    router = system.router(*used.flags, tokens_poll_seconds=0.02)
    system.connector()
    at = URL(router.url)
    address = (str(at.host), int(at.port or 0))
    shown = ssl.get_server_certificate(address)
    assert shown == used.cert.read_text()
    files = [(new.key, used.key), (new.cert, used.cert)]
    one, other = files if first == "key" else reversed(files)
    shutil.copy(*one)
    router.wait_for_line("ERROR.*they do not fit; the one read before stays in use")
    assert ssl.get_server_certificate(address) == shown
    shutil.copy(*other)
    router.wait_for_line("certificate read again")
    assert ssl.get_server_certificate(address) == new.cert.read_text()
    listed = system.cli("connectors", env=new.trust)
    assert MAC in listed.out, listed.err  # the connector's socket outlived it


@pytest.mark.parametrize("mode", ["buffer", "stream", "auto"])
def test_everything_goes_by_https(
    system: System, certificate: Certificate, source: Path, out: Path, mode: str
) -> None:
    system.environ |= certificate.trust
    router = system.router(*certificate.flags)
    assert router.url.startswith("https://")
    connector = system.connector()
    assert "connected to https://" in connector.log
    done = system.cli("fetch", "--mode", mode, MAC, "data", "-o", out)
    assert done.code == 0, done.err
    assert sha256(out / "data") == sha256(source)
    for command in (["ls", MAC], ["stat", MAC, "data"], ["connectors"]):
        assert system.cli(*command).code == 0


def test_curl_by_https(system: System, certificate: Certificate, source: Path, out: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed here, so nothing shows that it works")
    router = system.router(*certificate.flags)
    system.connector(SSL_CERT_FILE=certificate.cert)
    (out / "data").write_bytes(source.read_bytes()[: 3 * MIB])
    url = f"{router.url}/datasets/{MAC}/data"
    for ask in (["-C", "-", "-o", "data"], ["-r", "5-14", "-o", "part"]):
        command = [curl, "-sSf", "--cacert", str(certificate.cert), *ask, url]
        done = subprocess.run(command, cwd=out, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert sha256(out / "data") == sha256(source)
    assert (out / "part").read_bytes() == source.read_bytes()[5:15]


def test_a_certificate_that_is_not_trusted_is_told(
    system: System, certificate: Certificate
) -> None:
    router = system.router(*certificate.flags)
    connector = system.connector(connected=False)
    connector.wait_for_line("is away.*certificate")
    done = system.cli("fetch", MAC, "data")
    assert done.code == 5
    assert "certificate" in done.err
    assert "Traceback" not in done.err + connector.log + router.log
    assert connector.log.count("is away") == 1


def test_a_certificate_of_another_name_is_told(system: System, tmp_path: Path) -> None:
    other = Certificate(tmp_path / "other", "DNS:other.test")
    system.environ |= other.trust
    system.router(*other.flags)
    connector = system.connector(connected=False)
    connector.wait_for_line("is away.*certificate")
    done = system.cli("fetch", MAC, "data")
    assert done.code == 5
    assert "certificate" in done.err
    assert "127.0.0.1" in done.err


def test_http_and_https_taken_for_one_another(system: System, certificate: Certificate) -> None:
    system.router()
    mistaken = system.cli("connectors", "--router", system.url.replace("http:", "https:"))
    assert (mistaken.code, "TLS" in mistaken.err) == (5, True), mistaken.err
    secured = system.router(*certificate.flags)
    plain = system.cli("connectors", "--router", secured.url.replace("https:", "http:"))
    assert plain.code == 5, plain.err
    assert "hint" in plain.err
    assert "Traceback" not in plain.err + mistaken.err + secured.log


@pytest.mark.parametrize("wrong", ["missing", "no PEM", "no key", "another key"])
def test_a_certificate_that_cannot_be_used_is_a_usage_error(
    system: System, certificate: Certificate, tmp_path: Path, wrong: str
) -> None:
    cert, key = certificate.cert, certificate.key
    if wrong == "missing":
        cert = tmp_path / "none.pem"
    elif wrong == "no PEM":
        cert = tmp_path / "text.pem"
        cert.write_text("text")
    elif wrong == "no key":
        key = tmp_path / "none.pem"
    else:
        key = Certificate(tmp_path / "other", "DNS:other.test").key
    done = cli("router", "--port", "0", "--tls-cert", cert, "--tls-key", key)
    assert done.code == 2, done.err
    assert "certificate" in done.err
    assert "Traceback" not in done.err


# --- plain http to another host ---------------------------------------------------------------


@pytest.mark.parametrize("host", [NAME, "192.0.2.1", "[2001:db8::1]", "127.0.0.1.router.test"])
def test_plain_http_to_another_host_is_refused(system: System, host: str) -> None:
    url = f"http://{host}:8080"
    own = ["--mac", MAC, "--root", system.tmp_path]
    for command in (["fetch", MAC, "data"], ["ls", MAC], ["connectors"], ["connector", *own]):
        done = system.cli(*command, "--router", url)
        assert done.code == 4, done.err
        assert "https" in done.err
        assert "--allow-plaintext" in done.err


def test_plain_http_to_another_host_goes_if_told(
    system: System, tokens: dict[str, str], source: Path, out: Path
) -> None:
    address = own_address()
    router = system.router("--host", address, "--tokens", tokens["file"])
    assert router.url.startswith(f"http://{address}:")
    refused = system.connector(connected=False, token=tokens["connector"])
    assert refused.wait() == 4
    assert "--allow-plaintext" in refused.log
    system.connector("--allow-plaintext", token=tokens["connector"])
    env = {"TUNNELSYNC_TOKEN": tokens["client"]}
    assert system.cli("fetch", MAC, "data", "-o", out, env=env).code == 4
    done = system.cli("fetch", "--allow-plaintext", MAC, "data", "-o", out, env=env)
    assert done.code == 0, done.err
    assert sha256(out / "data") == sha256(source)


# --- proxies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_https_proxy_is_honoured_by_connector_and_client(
    system: System,
    certificate: Certificate,
    tokens: dict[str, str],
    proxy: ConnectProxy,
    source: Path,
    out: Path,
    variable: str,
) -> None:
    system.environ |= certificate.trust | {variable: proxy.url}
    router = system.router(*certificate.flags, "--tokens", tokens["file"])
    named = f"https://{NAME}:{router.port}"
    system.connector("--router", named, token=tokens["connector"])
    assert len(proxy.targets) == 1
    env = {"TUNNELSYNC_TOKEN": tokens["client"], "TUNNELSYNC_ROUTER": named}
    for mode in ("buffer", "stream"):
        done = system.cli("fetch", "--force", "--mode", mode, MAC, "data", "-o", out, env=env)
        assert done.code == 0, done.err
        assert sha256(out / "data") == sha256(source)
    assert len(proxy.targets) >= 4, "the socket, the uploads, and each client"
    assert set(proxy.targets) == {f"{NAME}:{router.port}"}


def test_a_proxy_that_wants_a_password_gets_it_and_nobody_else_does(
    system: System, certificate: Certificate, tokens: dict[str, str], source: Path, out: Path
) -> None:
    wanted = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    with connect_proxy(f"Proxy-Authorization: {wanted}\r\n") as proxy:
        given = proxy.url.replace("//", f"//me:{PASSWORD}@")
        router = system.router(*certificate.flags, "--tokens", tokens["file"])
        system.environ |= certificate.trust | {"HTTPS_PROXY": given}
        named = f"https://{NAME}:{router.port}"
        connector = system.connector("--router", named, token=tokens["connector"])
        env = {"TUNNELSYNC_TOKEN": tokens["client"], "TUNNELSYNC_ROUTER": named}
        done = system.cli("fetch", MAC, "data", "-o", out, env=env)
        assert done.code == 0, done.err
        assert sha256(out / "data") == sha256(source)
        for head in proxy.heads:
            assert tokens["client"] not in head
            assert tokens["connector"] not in head
        wrong = proxy.url.replace("//", f"//me:{PASSWORD}2@")
        refused = system.cli("connectors", env=env | {"HTTPS_PROXY": wrong})
        assert (refused.code, "proxy answered 407" in refused.err) == (5, True), refused.err
        away = system.connector(
            "--router", named, connected=False, token=tokens["connector"], HTTPS_PROXY=wrong
        )
        away.wait_for_line("is away")
    for text in (router.log, connector.log, away.log, done.err, refused.err, done.out):
        assert PASSWORD not in text


def test_a_proxy_that_is_away_is_told(system: System, proxy: ConnectProxy) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        env = {"HTTPS_PROXY": dead, "TUNNELSYNC_ROUTER": f"https://{NAME}"}
        done = system.cli("connectors", env=env)
    assert done.code == 5
    assert "proxy" in done.err
    nonsense = system.cli("connectors", env=env | {"HTTPS_PROXY": "ftp://x:99999"})
    assert (nonsense.code, "Traceback" in nonsense.err) == (2, False)


def test_no_proxy_goes_past_it(
    system: System,
    certificate: Certificate,
    tokens: dict[str, str],
    proxy: ConnectProxy,
    tmp_path: Path,
    source: Path,
    out: Path,
) -> None:
    address = own_address()
    mine = Certificate(tmp_path / "mine", f"IP:{address}")
    system.environ |= mine.trust | {"HTTPS_PROXY": proxy.url, "NO_PROXY": f"other.test,{address}"}
    system.router("--host", address, *mine.flags, "--tokens", tokens["file"])
    system.connector(token=tokens["connector"])
    env = {"TUNNELSYNC_TOKEN": tokens["client"]}
    done = system.cli("fetch", MAC, "data", "-o", out, env=env)
    assert done.code == 0, done.err
    assert sha256(out / "data") == sha256(source)
    assert proxy.targets == []
    through = system.cli("connectors", env=env | {"NO_PROXY": "other.test"})
    assert through.code == 5, "the proxy leads to loopback, where this router does not listen"
    assert proxy.heads


def test_loopback_never_goes_by_a_proxy(
    system: System, certificate: Certificate, proxy: ConnectProxy, source: Path, out: Path
) -> None:
    system.environ |= certificate.trust | {
        "HTTPS_PROXY": proxy.url,
        "HTTP_PROXY": proxy.url,
        "ALL_PROXY": proxy.url,
    }
    for flags in ((), certificate.flags):
        router = system.router(*flags)
        connector = system.connector()
        done = system.cli("fetch", "--force", MAC, "data", "-o", out)
        assert done.code == 0, done.err
        assert sha256(out / "data") == sha256(source)
        connector.stop()
        router.stop()
    assert proxy.heads == []


def test_a_handshake_that_is_none_harms_nobody(
    system: System, certificate: Certificate, source: Path, out: Path
) -> None:
    system.environ |= certificate.trust
    router = system.router(*certificate.flags)
    system.connector()
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"", b"\xff" * 4096):
        with raw_http.connect(router.url) as sock:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                raw_http.read_all(sock)
    assert system.cli("fetch", MAC, "data", "-o", out).code == 0
    assert "Traceback" not in router.log


def test_a_key_without_a_certificate_serves_nobody(system: System, tmp_path: Path) -> None:
    other = Certificate(tmp_path / "other", "DNS:other.test")
    given = Certificate(tmp_path / "given", "DNS:router.test")
    missing = str(tmp_path / "missing.pem")
    for flags, told in (
        (("--tls-key", str(given.key)), "without a certificate"),
        (("--tls-cert", str(given.cert)), "its key is not in it"),
        (("--tls-cert", str(given.cert), "--tls-key", str(other.key)), "they do not fit"),
        (("--tls-cert", missing), "missing.pem for TLS: No such file"),
    ):
        done = cli("router", "--port", "0", *flags, env=system.environ, seconds=20)
        assert (done.code, told in done.err, "--tls-cert" in done.err) == (2, True, True), done.err
