"""What we are measured against: other tools that move the same file on the same machine.

Each is given what helps it: nginx sends with sendfile, socat copies 256 KiB at a time (its default
of 8 KiB is half as fast), rclone uploads parts of the size and number that ours have.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchlib.processes import (
    BenchFailed,
    Process,
    clean_environ,
    end,
    free_ports,
    listens,
    metered,
    watched,
)
from benchlib.runs import Sample
from benchlib.store import S3Server

PEER_SECONDS = 300
SOCAT_BUFFER_BYTES = 256 * 1024
NGINX_CONF = """\
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
daemon off;
{user}
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    default_type application/octet-stream;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {serve}
    }}
}}
"""
NGINX_RELAYS = """\
location / {{
            proxy_pass {origin};
            proxy_http_version 1.1;
            proxy_buffers 32 64k;
            proxy_buffer_size 64k;
            proxy_busy_buffers_size 512k;
            proxy_max_temp_file_size 0;
        }}"""


def found(*names: str) -> list[str]:
    """Return which of these programs are missing here; nginx may be in an ``sbin``."""
    return [name for name in names if program(name) is None]


def program(name: str) -> str | None:
    """Return the path of a program, or None."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Nginx:
    """A static nginx on loopback: its address, and the one process that serves."""

    url: str
    worker_pid: int

    def fetch(self, dataset: str, path: Path, *, sync: bool) -> Sample:
        """Download a file with ``curl -o``."""
        return curl(f"{self.url}/{dataset}", path, {"nginx": self.worker_pid}, sync=sync)

    def latencies(self, dataset: str, path: Path, times: int) -> list[float]:
        """Download a file so many times with one curl, over one connection."""
        each = ["-o", str(path), f"{self.url}/{dataset}"] * times
        text, _, _ = _run(_curl("%{time_total}\n", *each))
        return [float(line) for line in text.split()]


def nginx(root: Path, folder: Path) -> AbstractContextManager[Nginx]:
    """Serve the files of a folder, with sendfile."""
    return _nginx(f'root "{root}";', folder)


def nginx_proxy(origin: str, folder: Path) -> AbstractContextManager[Nginx]:
    """Relay what another server serves, with buffers that cost it little CPU, and no files."""
    return _nginx(NGINX_RELAYS.format(origin=origin), folder)


@contextmanager
def _nginx(serve: str, folder: Path) -> Iterator[Nginx]:
    """Run an nginx with one worker and nothing of the machine's own settings."""
    folder.mkdir()
    (port,) = free_ports(1)
    config = folder / "nginx.conf"
    user = "user root root;" if os.geteuid() == 0 else ""
    config.write_text(NGINX_CONF.format(folder=folder, port=port, serve=serve, user=user))
    command = (program("nginx") or "nginx", "-p", folder, "-c", config, "-e", "stderr")
    with Process("nginx", command, folder) as master:
        master.wait_until(lambda: listens(port), f"listen on {port}")
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children")
        workers = master.wait_until(lambda: children.read_text().split(), "start its worker")
        yield Nginx(f"http://127.0.0.1:{port}", int(workers[0]))


def curl(url: str, path: Path, pids: Mapping[str, int], *, sync: bool = False) -> Sample:
    """Download an address into a file. The time is curl's own, without the start of its process."""
    cpu: dict[str, float] = {}
    with metered(pids, cpu):
        text, used, _ = _run(_curl("%{time_total} %{time_starttransfer}", "-o", str(path), url))
    total, first = (float(one) for one in text.split())
    extra = synced(path) if sync else 0.0
    return Sample(total + extra, first, {**cpu, "curl": used})


def _curl(told: str, *args: str) -> list[str]:
    always = ["curl", "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*"]
    return [*always, "--max-time", str(PEER_SECONDS), "--write-out", told, *args]


def socat(source: Path, path: Path, *, sync: bool) -> Sample:
    """Send a file to a socat that relays it to a socat that writes it: two TCP connections.

    The time is from the start of the sender to the end of the last one.
    """
    entry, exit_ = free_ports(2)
    with ExitStack() as stack:
        sink = stack.enter_context(_socat(_listen(exit_), f"CREATE:{path}"))
        _until_listening(sink, exit_)
        relay = stack.enter_context(_socat(_listen(entry), f"TCP:127.0.0.1:{exit_}"))
        _until_listening(relay, entry)
        peak: list[int] = []
        stack.enter_context(watched(relay.pid, peak))
        began = time.perf_counter()
        sender = stack.enter_context(_socat(f"FILE:{source}", f"TCP:127.0.0.1:{entry}"))
        used = {name: _wait(name, popen) for name, popen in (("sender", sender), ("relay", relay))}
        used["sink"] = _wait("sink", sink)
        seconds = time.perf_counter() - began
    extra = synced(path) if sync else 0.0
    return Sample(seconds + extra, None, used, {"relay": max(peak, default=0)})


def _listen(port: int) -> str:
    return f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr"


@contextmanager
def _socat(source: str, target: str) -> "Iterator[subprocess.Popen[bytes]]":
    command = ["socat", "-u", "-b", str(SOCAT_BUFFER_BYTES), "-T", "60", source, target]
    popen = subprocess.Popen(command, env=clean_environ(), stdin=subprocess.DEVNULL)
    try:
        yield popen
    finally:
        end(popen)


def _until_listening(popen: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 10
    while not listens(port):
        if popen.poll() is not None or time.monotonic() > deadline:
            raise BenchFailed(f"socat does not listen on {port}")
        time.sleep(0.001)


def rclone_copyto(source: Path, server: S3Server, key: str) -> Sample:
    """Upload a file; the time holds the start of rclone's process, as a user would see it."""
    extra = {
        "RCLONE_S3_PROVIDER": "Minio" if server.kind == "minio" else "SeaweedFS",
        "RCLONE_S3_ENDPOINT": server.endpoint,
        "RCLONE_S3_ACCESS_KEY_ID": server.access_key,
        "RCLONE_S3_SECRET_ACCESS_KEY": server.secret_key,
        "RCLONE_S3_REGION": "us-east-1",
        "RCLONE_S3_FORCE_PATH_STYLE": "true",
        "RCLONE_S3_NO_CHECK_BUCKET": "true",
        "RCLONE_S3_CHUNK_SIZE": "16M",
        "RCLONE_S3_UPLOAD_CONCURRENCY": "4",
    }
    command = ["rclone", "--config", "", "--retries", "1", "--timeout", f"{PEER_SECONDS}s"]
    cpu: dict[str, float] = {}
    with metered({"store": server.pid}, cpu):
        command += ["copyto", str(source), f":s3:{server.bucket}/{key}"]
        _, used, seconds = _run(command, extra)
    return Sample(seconds, None, {**cpu, "rclone": used})


def _run(
    command: Sequence[str], extra: Mapping[str, str] | None = None
) -> tuple[str, float, float]:
    """Run a program to its end; return its output, its CPU seconds, and the seconds it took."""
    began = time.perf_counter()
    popen = subprocess.Popen(
        command, env=clean_environ(extra), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        assert popen.stdout is not None
        with popen.stdout as pipe:
            text = pipe.read().decode()
        used = _wait(command[0], popen)
    finally:
        end(popen)
    return text, used, time.perf_counter() - began


def _wait(name: str, popen: "subprocess.Popen[bytes]") -> float:
    """Wait for the end of a child and return its CPU seconds; raise `BenchFailed` if it failed."""
    _, status, usage = os.wait4(popen.pid, 0)
    popen.returncode = os.waitstatus_to_exitcode(status)
    if popen.returncode:
        raise BenchFailed(f"{name} ended with {popen.returncode}")
    return usage.ru_utime + usage.ru_stime


def synced(path: Path) -> float:
    """Write a file through to the disk, and return the seconds that took."""
    began = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - began


def versions() -> dict[str, str]:
    """Return what the tools say of themselves; a missing one is left out."""
    asked: dict[str, tuple[Sequence[str], Callable[[str], str]]] = {
        "nginx": (["-v"], lambda text: text.strip().rpartition("/")[2]),
        "curl": (["--version"], lambda text: text.split()[1]),
        "socat": (["-V"], lambda text: text.partition("version ")[2].split()[0]),
        "rclone": (["version"], lambda text: text.split()[1]),
    }
    said = {}
    for name, (args, pick) in asked.items():
        if path := program(name):
            done = subprocess.run(
                [path, *args], capture_output=True, text=True, timeout=30, check=False
            )
            said[name] = pick(done.stdout + done.stderr)
    return said
