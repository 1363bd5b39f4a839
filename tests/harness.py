"""Real processes for tests: a router, connectors, the command line; each started as a user would.

Nothing here sleeps to be right: it waits for what a process writes, or polls a condition, and
both have a deadline that fails with what was awaited.
"""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import orjson

from tunnelsync import configuration, settings

MAC = "cc-28-aa-00-11-22"
COMMAND = (sys.executable, "-m", "tunnelsync")
START_SECONDS = 20.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.01
LISTENING = re.compile(r"listening on (https?://\S*?:(\d+))")
CONNECTED = re.compile(r"connected to")
SIGNS_OF_A_DEFECT = (
    "Traceback (most recent call last)",
    "was never retrieved",
    "was never awaited",
    "was destroyed but it is pending",
)
LEAKS = ("TUNNELSYNC_", "AWS_", "PYTHONWARNINGS", "SSL_CERT_")

Value = TypeVar("Value")


def clean_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without settings, keys or proxies, and with ``extra``.

    The AWS chain finds nothing on this machine, and does not look for it on the network. A client
    tries nothing again, so that a test sees the first error; one that is about trying says so.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(LEAKS) and not name.lower().endswith("_proxy")
    }
    nothing = {"AWS_EC2_METADATA_DISABLED": "true"}
    nothing |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    nothing["TUNNELSYNC_CLIENT_RETRY_FOR_SECONDS"] = "0"
    return kept | nothing | dict(extra or {})


def environ_of(role: type, values: Mapping[str, object]) -> dict[str, str]:
    """Return environment variables: ``idle_seconds`` is a setting of the role, and what is in
    capitals stands for itself."""
    specs = {spec.name: spec for spec in fields(role)}
    return {
        name if name.isupper() else configuration.env_name(role, specs[name]): (
            value.reveal() if isinstance(value, settings.Secret) else str(value)
        )
        for name, value in values.items()
    }


def wait_until(predicate: Callable[[], Value], seconds: float, what: str) -> Value:
    """Poll until the predicate is true, and return its value; fail with ``what`` after so long."""
    deadline = time.monotonic() + seconds
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(POLL_SECONDS)
    return value


class Process:
    """One process of a test, whose log is read as it is written."""

    def __init__(
        self, name: str, command: tuple[str, ...], environ: dict[str, str], out: int | None = None
    ) -> None:
        self.name = name
        self.ended_on_purpose = False
        """Whether its end needs no explanation: it was ended, or is a command that ends."""
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._closed = False
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if out is None else out,
            stderr=subprocess.STDOUT if out is None else subprocess.PIPE,
            env=environ,
            text=True,
            errors="backslashreplace",
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self.popen.pid

    @property
    def log(self) -> str:
        """All that the process has written so far."""
        with self._changed:
            return "\n".join(self._lines)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.popen.poll() is None

    def wait_for_line(
        self, pattern: str | re.Pattern[str], seconds: float = START_SECONDS, *, after: int = 0
    ) -> re.Match[str]:
        """Wait for a line in which the pattern is found, from line ``after`` on."""
        wanted = re.compile(pattern)
        deadline = time.monotonic() + seconds
        seen = after
        with self._changed:
            while True:
                for line in self._lines[seen:]:
                    if found := wanted.search(line):
                        return found
                seen = max(after, len(self._lines))
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    why = "ended" if self._closed else f"did not within {seconds} s"
                    log = "\n".join(self._lines)
                    raise AssertionError(f"{self.name} {why}: write {wanted.pattern!r}\n{log}")
                self._changed.wait(left)

    def line_count(self) -> int:
        """Return how many lines there are: the ``after`` of what comes next."""
        with self._changed:
            return len(self._lines)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it has not ended."""
        self.ended_on_purpose |= number in (
            *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL),
        )
        if self.running:
            self.popen.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for the end, and return the exit code (negative: a signal)."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end in {seconds} s\n{self.log}") from None
        self._reader.join(seconds)
        return code

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self.send(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """End it as an administrator would (SIGTERM), and return the exit code."""
        self.send(signal.SIGTERM)
        return self.wait()

    def _read(self) -> None:
        log = self.popen.stderr or self.popen.stdout
        assert log is not None
        with log as lines:
            for line in lines:
                self._add(line.rstrip("\n"))
        self._add(None)

    def _add(self, line: str | None) -> None:
        with self._changed:
            if line is None:
                self._closed = True
            else:
                self._lines.append(line)
            self._changed.notify_all()


class Router(Process):
    """A router that listens."""

    url = ""
    port = 0


class Connector(Process):
    """A connector that is connected."""

    mac = ""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command line that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """Return the one JSON object on stdout."""
        value = orjson.loads(self.out)
        assert isinstance(value, dict)
        return value


def cli(
    *args: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    input: bytes | str | None = None,  # noqa: A002
    cwd: Path | None = None,
    seconds: float = 60.0,
) -> Completed:
    """Run ``tunnelsync`` with these arguments to its end, in an environment of its own."""
    done = subprocess.run(
        (*COMMAND, *(os.fspath(arg) for arg in args)),
        env=clean_environ(env),
        input=input.encode() if isinstance(input, str) else input or b"",
        capture_output=True,
        cwd=cwd,
        timeout=seconds,
        check=False,
    )
    out, err = (text.decode("utf-8", "backslashreplace") for text in (done.stdout, done.stderr))
    return Completed(done.returncode, out, err)


class System:
    """A router and connectors of one test, and how to end them.

    ``environ`` goes to each process, also to the command lines that `cli` runs: the settings of
    a store, for instance.
    """

    def __init__(self, tmp_path: Path, environ: Mapping[str, str] | None = None) -> None:
        self.tmp_path = tmp_path
        self.environ = dict(environ or {})
        self.processes: list[Process] = []
        self.url = ""

    def router(self, *args: str, port: int = 0, **env: object) -> Router:
        """Start a router on loopback (port 0: a free one), and wait until it listens."""
        values = {"drain_seconds": 3, **env}
        environ = self._environ(environ_of(settings.RouterSettings, values))
        command = (*COMMAND, "router", "--host", "127.0.0.1", "--port", str(port), *args)
        router = Router(f"router {len(self.processes)}", command, environ)
        self.processes.append(router)
        found = router.wait_for_line(LISTENING)
        self.url = router.url = found[1]
        router.port = int(found[2])
        return router

    def connector(
        self,
        *args: str,
        mac: str = MAC,
        root: Path | None = None,
        connected: bool = True,
        **env: object,
    ) -> Connector:
        """Start a connector of the last router, and wait until it is connected (unless told)."""
        environ = self._environ(environ_of(settings.ConnectorSettings, env))
        folder = self.tmp_path / "datasets" if root is None else root
        folder.mkdir(parents=True, exist_ok=True)
        command = (*COMMAND, "connector", "--mac", mac, "--root", str(folder), *args)
        connector = Connector(f"connector {mac} {len(self.processes)}", command, environ)
        connector.mac = mac
        connector.ended_on_purpose = not connected
        self.processes.append(connector)
        if connected:
            connector.wait_for_line(CONNECTED)
        return connector

    def start(self, *args: str, out: int | None = None, **env: Any) -> Process:
        """Start any command of the CLI in the background; ``out`` takes its standard output."""
        environ = self._environ(environ_of(settings.ClientSettings, env))
        process = Process(f"{args[0]} {len(self.processes)}", (*COMMAND, *args), environ, out)
        process.ended_on_purpose = True
        self.processes.append(process)
        return process

    def cli(
        self,
        *args: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        input: bytes | str | None = None,  # noqa: A002
        cwd: Path | None = None,
        seconds: float = 60.0,
    ) -> Completed:
        """Run a command of the CLI against the last router, to its end."""
        extra = {**self.environ, "TUNNELSYNC_ROUTER": self.url, **(env or {})}
        return cli(*args, env=extra, input=input, cwd=cwd or self.tmp_path, seconds=seconds)

    def stop(self) -> None:
        """End what was started here, the last one first, and fail if a log shows a defect."""
        problems: list[str] = []
        for process in reversed(self.processes):
            if not process.ended_on_purpose and not process.running:
                problems.append(f"{process.name} had ended by itself: {process.popen.returncode}")
            process.send(signal.SIGTERM)
            try:
                process.wait()
            except AssertionError as exc:
                problems.append(str(exc))
                process.kill()
        for process in self.processes:
            log = process.log
            problems += [
                f"{process.name} logged {sign!r}\n{log}"
                for sign in SIGNS_OF_A_DEFECT
                if sign in log
            ]
        assert not problems, "\n".join(problems)

    def _environ(self, extra: Mapping[str, str]) -> dict[str, str]:
        here = {"TUNNELSYNC_ROUTER": self.url} if self.url else {}
        return clean_environ({**self.environ, **here, **extra})


def peak_rss_bytes(pid: int) -> int:
    """Return the most memory that a process has held so far (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} tells no VmHWM")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, that a process has used so far."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def make_file(path: Path, size: int, seed: int = 0) -> Path:
    """Write a file of pseudo-random bytes, the same for each size and seed, as fast as the disk.

    Each 4 MiB are a window at random into 8 MiB of random bytes, after their own number: no two
    are equal, and none can be taken for another.
    """
    step = 4 * settings.MIB
    chance = random.Random(seed)
    pool = memoryview(chance.randbytes(min(2 * step, size)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, step):
            length = min(step, size - start)
            window = chance.randrange(len(pool) - length + 1)
            number = start.to_bytes(8, "big")[-length:]
            file.write(number)
            file.write(pool[window + len(number) : window + length])
    return path


def sparse_file(path: Path, size: int, pieces: Mapping[int, bytes] | None = None) -> Path:
    """Make a file that is a hole, but for pieces of bytes at their offsets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in (pieces or {}).items():
            assert offset + len(data) <= size
            file.seek(offset)
            file.write(data)
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex: a check that shares no code with what is tested."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
