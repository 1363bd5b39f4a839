"""The relays that we are measured against: each brings the same file through a process in between.

Tunnels forward to one nginx that serves the file, and ``curl -o`` gets it through them. Each is
given what helps it: no compression (the file is random), no TLS where it can be left out, large
buffers, and its servers run before the first run.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchlib import peers, sshd
from benchlib.processes import BenchFailed, Process, clean_environ, end, free_ports, listens
from benchlib.ways import LOCAL, QUIET_CURL, RUN_SECONDS, Run, Setting, command, measured, through

BORE_CONTROL_PORT = 7835
"""Fixed in bore's source."""
FRP_SERVER = """\
bindAddr = "127.0.0.1"
bindPort = {control}
proxyBindAddr = "127.0.0.1"
"""
FRP_CLIENT = """\
serverAddr = "127.0.0.1"
serverPort = {control}
[[proxies]]
name = "dataset"
type = "tcp"
localIP = "127.0.0.1"
localPort = {origin}
remotePort = {public}
"""
RATHOLE_SERVER = """\
[server]
bind_addr = "127.0.0.1:{control}"
default_token = "bench"
[server.services.dataset]
bind_addr = "127.0.0.1:{public}"
"""
RATHOLE_CLIENT = """\
[client]
remote_addr = "127.0.0.1:{control}"
default_token = "bench"
[client.services.dataset]
local_addr = "127.0.0.1:{origin}"
"""


@dataclass(frozen=True)
class Relay:
    """One contender: what it needs, what it promises, how it is started.

    ``path`` has the relay in capitals. ``verifies`` says who compares what arrives with what was
    sent, end to end. ``reaches_in``: to a machine that accepts no inbound connection, as ours.
    ``version`` is a command, without one it is in `peers.versions`.
    """

    name: str
    needs: str
    path: str
    up: Callable[[Setting], AbstractContextManager[Run]]
    version: str = ""
    verifies: str = "nobody"
    encrypts: str = "nothing"
    reaches_in: bool = True


@contextmanager
def _direct(setting: Setting) -> Iterator[Run]:
    yield through(setting.origin, setting.source)


@contextmanager
def _nginx(setting: Setting) -> Iterator[Run]:
    with peers.nginx_proxy(setting.origin, setting.folder / "nginx-proxy") as proxy:
        yield through(proxy.url, setting.source, [proxy.worker_pid])


@contextmanager
def _socat(setting: Setting) -> Iterator[Run]:
    yield lambda path, sync: peers.socat(setting.source, path, sync=sync)


@contextmanager
def _piping(setting: Setting) -> Iterator[Run]:
    (port,) = free_ports(1)
    words = ("piping-server", "--host", LOCAL, "--http-port", str(port))
    url = f"http://{LOCAL}:{port}/dataset"
    with Process("piping-server", words, setting.home("piping")) as server:
        server.wait_until(lambda: listens(port), f"listen on {port}")

        def receive(path: Path) -> None:
            send = [*QUIET_CURL, "-o", os.devnull, "-T", os.fspath(setting.source), url]
            sender = subprocess.Popen(send, env=clean_environ(), stdin=subprocess.DEVNULL)
            try:
                command(*QUIET_CURL, "-o", path, url)
                if sender.wait(RUN_SECONDS):
                    raise BenchFailed(f"the sending curl ended with {sender.returncode}")
            except subprocess.TimeoutExpired:
                raise BenchFailed("the sending curl does not end") from None
            finally:
                end(sender)

        yield measured(receive, [server.pid])


@contextmanager
def _tunnel(
    setting: Setting,
    server: Sequence[str],
    client: Sequence[str],
    files: dict[str, str] | None = None,
    control: int = 0,
    home: str = "",
) -> Iterator[Run]:
    """Run both sides of a tunnel to the nginx.

    The words and files hold ``{control}``, where its server listens, ``{public}``, where curl gets
    the dataset, and ``{origin}``.
    """
    free, public = free_ports(2)
    control = control or free
    ports = {"control": control, "public": public, "origin": setting.origin_port}
    folder = setting.home(home or server[0])
    for name, text in (files or {}).items():
        (folder / name).write_text(text.format(**ports))
    near, far = ([word.format(**ports) for word in words] for words in (client, server))
    with Process(server[0], far, folder, {"HOME": str(folder)}) as relay:
        relay.wait_until(lambda: listens(control), f"listen on {control}")
        with Process(f"{client[0]} client", near, folder, {"HOME": str(folder)}) as inside:
            inside.wait_until(lambda: listens(public), f"get a listener on {public}")
            yield through(f"http://{LOCAL}:{public}", setting.source, [relay.pid])


def _bore(setting: Setting) -> AbstractContextManager[Run]:
    if listens(BORE_CONTROL_PORT):
        raise BenchFailed(f"its port {BORE_CONTROL_PORT} is taken")
    server = ("bore", "server", "--bind-addr", LOCAL)
    client = ("bore", "local", "--local-host", LOCAL, "--to", LOCAL, "--port", "{public}")
    return _tunnel(setting, server, (*client, "{origin}"), control=BORE_CONTROL_PORT)


def _rathole(setting: Setting) -> AbstractContextManager[Run]:
    files = {"server.toml": RATHOLE_SERVER, "client.toml": RATHOLE_CLIENT}
    server, client = ("rathole", "--server", "server.toml"), ("rathole", "--client", "client.toml")
    return _tunnel(setting, server, client, files)


def _frp(setting: Setting) -> AbstractContextManager[Run]:
    """Run frp as it comes: with TLS, and many connections in one."""
    return _frps(setting, "frp", "", "")


def _frp_plain(setting: Setting) -> AbstractContextManager[Run]:
    one_each = "transport.tcpMux = false"
    return _frps(setting, "frp-plain", one_each, f"{one_each}\ntransport.tls.enable = false")


def _frps(setting: Setting, home: str, server: str, client: str) -> AbstractContextManager[Run]:
    files = {"frps.toml": FRP_SERVER + server, "frpc.toml": f"{client}\n{FRP_CLIENT}"}
    words = ("frps", "-c", "frps.toml"), ("frpc", "-c", "frpc.toml")
    return _tunnel(setting, *words, files, home=home)


def _chisel(setting: Setting) -> AbstractContextManager[Run]:
    server = ("chisel", "server", "--host", LOCAL, "--port", "{control}", "--reverse")
    client = ("chisel", "client", f"http://{LOCAL}:{{control}}")
    return _tunnel(setting, server, (*client, f"R:{LOCAL}:{{public}}:{LOCAL}:{{origin}}"))


@contextmanager
def _croc(setting: Setting) -> Iterator[Run]:
    """Run croc's own relay; a sender is started anew, and has hashed the file, before each run."""
    home = setting.home("croc")
    ports = free_ports(5)
    alone = {"HOME": str(home), "CROC_SECRET": "1234-bench-bench-bench"}
    words = ("croc", "relay", "--host", LOCAL, "--ports", ",".join(map(str, ports)))
    address = f"{LOCAL}:{ports[0]}"
    always = ("croc", "--yes", "--overwrite", "--no-compress", "--ignore-stdin", "--relay6", "")
    send = (*always, "--disable-clipboard", "--relay", address, "send", "--no-local")
    # With --ip it takes that relay and looks for no sender in the network.
    get = (*always, "--relay", address, "--ip", address)
    senders: list[Process] = []

    def prepare() -> None:
        _ended(senders)
        sender = Process("croc sender", (*send, setting.source), home, alone)
        senders.append(sender)
        sender.wait_for_line("Code is")

    def receive(path: Path) -> None:
        folder = path.with_suffix(".croc")
        folder.mkdir(exist_ok=True)
        command(*get, "--out", folder, environ=alone)
        (folder / setting.source.name).replace(path)
        folder.rmdir()

    try:
        with Process("croc relay", words, home, alone) as relay:
            for port in ports:
                relay.wait_until(lambda port=port: listens(port), f"listen on {port}")  # type: ignore[misc]
            yield measured(receive, [relay.pid], prepare)
    finally:
        _ended(senders)


def _ended(senders: list[Process]) -> None:
    while senders:
        end(senders.pop().popen)


RELAYS = (
    Relay("nginx, no relay", "nginx curl", "nginx > curl", _direct, reaches_in=False),
    Relay("nginx as a proxy", "nginx curl", "nginx > NGINX > curl", _nginx, reaches_in=False),
    Relay("socat", "socat", "socat > SOCAT > socat", _socat, reaches_in=False),
    Relay(
        "piping-server",
        "piping-server node curl",
        "curl > PIPING-SERVER > curl",
        _piping,
        "piping-server --version",
    ),
    Relay("bore", "bore nginx curl", "nginx > bore > BORE > curl", _bore, "bore --version"),
    Relay(
        "rathole",
        "rathole nginx curl",
        "nginx > rathole > RATHOLE > curl",
        _rathole,
        "rathole --version",
    ),
    Relay(
        "frp",
        "frps frpc nginx curl",
        "nginx > frpc > FRPS > curl",
        _frp,
        "frps --version",
        encrypts="the tunnel",
    ),
    Relay(
        "frp, no TLS, no mux",
        "frps frpc nginx curl",
        "nginx > frpc > FRPS > curl",
        _frp_plain,
    ),
    Relay(
        "chisel",
        "chisel nginx curl",
        "nginx > chisel > CHISEL > curl",
        _chisel,
        "chisel --version",
        encrypts="the tunnel",
    ),
    Relay(
        "ssh -R",
        "ssh sshd ssh-keygen nginx curl",
        "nginx > ssh > SSHD > curl",
        sshd.remote,
        "ssh -V",
        encrypts="the tunnel",
    ),
    Relay(
        "croc",
        "croc",
        "croc > CROC RELAY > croc",
        _croc,
        "croc --version",
        verifies="receiver (xxHash)",
        encrypts="end to end",
    ),
)


def versions() -> dict[str, str]:
    """Return what the relays say of themselves; those that are not here are left out."""
    found = {}
    for relay in RELAYS:
        words = relay.version.split()
        if words and not peers.found(words[0]):
            said = re.search(r"\d+\.\d[^\s,]*", command(*words))
            found[words[0]] = said[0] if said else "unknown"
    return found
