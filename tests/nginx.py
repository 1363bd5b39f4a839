"""A real nginx in front of a router, with nothing of the machine's own settings."""

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness import Process, clean_environ, wait_until
from s3 import free_ports

PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MISSING = "nginx is not installed (`apt-get install nginx` brings it)"
OPERATIONS = Path(__file__).parents[1] / "docs" / "operations.md"

FRAME = """\
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
daemon off;
{user}
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{http}
}}
"""
DEFAULT = """\
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        ''      close;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{router};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            {extra}
        }}
    }}
"""
"""Every limit of nginx as it comes: without these lines for the socket no WebSocket passes."""


def documented() -> str:
    """Return the settings of docs/operations.md, for plain http on a port of ours."""
    text = OPERATIONS.read_text()
    found = re.search(r"```nginx\n(.*?)```", text, re.DOTALL)
    assert found, OPERATIONS
    conf = found[1].replace("{", "{{").replace("}", "}}")
    for was, now in (
        ("server 127.0.0.1:8080;", "server 127.0.0.1:{router};"),
        ("listen 443 ssl;", "listen 127.0.0.1:{port};"),
        ("server_name router.example.org;", "{extra}"),
    ):
        assert was in conf
        conf = conf.replace(was, now)
    conf = re.sub(r"^.*ssl_certificate.*\n", "", conf, flags=re.MULTILINE)
    assert "ssl" not in conf
    return conf


class Nginx(Process):
    """An nginx that listens at ``url``."""

    url = ""


@contextmanager
def nginx(folder: Path, router_port: int, http: str = DEFAULT, extra: str = "") -> Iterator[Nginx]:
    """Serve in front of a router; ``extra`` are more settings of the place that passes it on."""
    assert PROGRAM
    folder.mkdir()
    (port,) = free_ports(1)
    config = folder / "nginx.conf"
    user = "user root root;" if os.geteuid() == 0 else ""
    inner = http.format(port=port, router=router_port, extra=extra)
    config.write_text(FRAME.format(folder=folder, user=user, http=inner))
    command = (PROGRAM, "-p", str(folder), "-c", str(config), "-e", "stderr")
    server = Nginx("nginx", command, clean_environ())
    server.url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: not server.running or _listens(port), 10, "nginx to listen")
        assert server.running, server.log
        yield server
    finally:
        server.stop()


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
