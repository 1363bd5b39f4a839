"""The folder and the child processes of ``tunnelsync demo``.

None of them outlives it: children are killed and the folder is removed on every way out, and on
Linux the kernel kills the children even if the demo itself is killed.
"""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tunnelsync.cli import output
from tunnelsync.errors import Unavailable, WriteFailed
from tunnelsync.settings import GIB

ROOM_BYTES = 3 * GIB // 2
"""Both connectors' data 0.5 GiB, their objects in the store as much, one fetched file 0.25."""
START_SECONDS = 30.0
POLL_SECONDS = 0.02
COMPLAINTS = 5
NOT_INHERITED = ("TUNNELSYNC_", "AWS_", "WEED_", "S3_")
TIED_TO_US = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"  # PR_SET_PDEATHSIG: kept by execv
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])"
)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder where there is room, and remove it with all that is in it.

    Honours TMPDIR; without it /var/tmp is the second choice, as /tmp may be small. Raises
    `WriteFailed` where there is no room.
    """
    chosen = tempfile.gettempdir()
    places = [chosen] if os.environ.get("TMPDIR") else [chosen, "/var/tmp"]
    for place in places:
        if os.access(place, os.W_OK) and shutil.disk_usage(place).free >= ROOM_BYTES:
            break
    else:
        free = shutil.disk_usage(chosen).free
        raise WriteFailed(
            f"the demo needs {ROOM_BYTES / GIB:.1f} GiB for its files,"
            f" and {output.shown_name(chosen)} has {free / GIB:.1f} GiB free",
            hint="Set TMPDIR to a folder with more room.",
        )
    if place != chosen:
        output.say(f"there is too little room in {chosen}: working in {place}")
    folder = Path(tempfile.mkdtemp(prefix="tunnelsync-demo-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            output.say(f"could not remove all of {folder}: remove it by hand")


def new_folder(path: Path) -> Path:
    """Make a folder, and return it."""
    path.mkdir()
    return path


@dataclass(frozen=True, slots=True)
class Child:
    """A process that we started, and the file that it logs to."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    command: Sequence[str]
    environ: Mapping[str, str]

    def check(self) -> None:
        """Raise `Unavailable` if it has ended, with its last words."""
        code = self.process.poll()
        if code is not None and code < 0:
            raise Unavailable(f"the {self.name} of the demo was ended by signal {-code}", hint="")
        if code is not None:
            raise Unavailable(self._described(f"ended with exit code {code}"), hint="")

    async def logged(self, pattern: str) -> str:
        """Wait until it has logged what the pattern matches, and return the first group.

        Raises `Unavailable` if it ends before, or takes too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(pattern, self._text())):
            self.check()
            if time.monotonic() > deadline:
                raise Unavailable(self._described("did not start in time"), hint="")
            await asyncio.sleep(POLL_SECONDS)
        return found[1]

    def peak_bytes(self) -> int | None:
        """Return the most memory it has held so far, or None where /proc does not tell."""
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
                return int(found[1]) * 1024
        return None

    def _described(self, what: str) -> str:
        lines = self._text().splitlines() or [""]
        last = next((one for one in lines if one.startswith("error: ")), lines[-1])
        return f"the {self.name} of the demo {what}" + (f": {last}" if last else "")

    def _text(self) -> str:
        return self.log.read_text(errors="backslashreplace")


class Children:
    """The child processes; on the way out all are killed, and waited for.

    Each has a process group of its own, so that Ctrl-C reaches the demo alone. They are killed
    rather than asked: all they could save goes with the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._all:
            child.process.kill()
        for child in self._all:
            child.process.wait()

    def start(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        stdout: int | None = None,
    ) -> Child:
        """Start a process whose files, if it makes any, are in our folder.

        ``stdout`` takes its standard output, which goes into the log otherwise.
        """
        log = self._folder / f"{name}.log"
        tied: tuple[str, ...] = ()
        if sys.platform == "linux":
            tied = (sys.executable, "-I", "-S", "-c", TIED_TO_US, str(os.getpid()))
        with log.open("wb") as file:
            process = subprocess.Popen(
                (*tied, *command),
                env=self._environment() | dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=file if stdout is None else stdout,
                stderr=file,
                process_group=0,
            )
        child = Child(name, process, log, command, environ)
        self._all.append(child)
        return child

    def again(self, child: Child) -> Child:
        """Start what has ended, or is ended by this, once more, with a new log."""
        self.end(child)
        return self.start(child.name, child.command, child.environ)

    def end(self, child: Child) -> None:
        """End one of them."""
        self._all.remove(child)
        child.process.kill()
        child.process.wait()

    def check(self) -> None:
        """Raise `Unavailable` if one of them has ended."""
        for child in self._all:
            child.check()

    def complaints(self) -> Iterator[str]:
        """Yield the last warnings and errors in each child's log, which goes with the folder."""
        for child in self._all:
            lines = child.log.read_text(errors="backslashreplace").splitlines()
            found = [one for one in lines if re.search(" (WARNING|ERROR) ", one)]
            yield from (f"{child.name}: {one}" for one in found[-COMPLAINTS:])

    def _environment(self) -> dict[str, str]:
        """Return our environment without the user's settings, keys and proxies."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(NOT_INHERITED) and not name.lower().endswith("_proxy")
        }
        no_keys = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        return kept | no_keys | {"TMPDIR": str(self._folder), "NO_PROXY": "*"}
