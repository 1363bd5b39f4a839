"""Gets the peers of ``make bench-peers`` into a cache folder outside the tree, and nowhere else.

Each comes from the registry of its own language, in a fixed version; what Debian packages hold is
unpacked, not installed, so that no service starts. One after the other, at the lowest priority.
What cannot be had is told with a reason, and is no error: the bench then leaves that peer out.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchlib.processes import STOP_SECONDS

BUILD_SECONDS = 1800
"""For one step; a Rust program with all its crates takes minutes on two cores."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunnelsync/peers"
BIN = CACHE / "bin"


class NotInstalled(Exception):
    """A peer cannot be had here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """The programs of one peer, and how they come into the cache, given an empty folder."""

    programs: tuple[str, ...]
    version: str
    fetch: Callable[["Peer", Path], None]
    source: str
    args: tuple[str, ...] = ()


def _debian(peer: Peer, folder: Path) -> None:
    """Unpack a package; its libraries are those of the machine, and a missing one shows at once."""
    _run(["apt-get", "download", peer.source], folder)
    unpacked = CACHE / "debian" / peer.source
    unpacked.mkdir(parents=True, exist_ok=True)
    for package in folder.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(unpacked)], folder)
    for name in peer.programs:
        found = next((path for path in unpacked.rglob(f"*bin/{name}")), None)
        if found is None:
            raise NotInstalled(f"the package {peer.source} holds no {name}")
        if missing := [line for line in _run(["ldd", str(found)], folder) if "not found" in line]:
            raise NotInstalled(f"{name} lacks {', '.join(one.split()[0] for one in missing)}")
        _link(found)


def _npm(peer: Peer, folder: Path) -> None:
    home = CACHE / "npm" / peer.source
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    package = f"{peer.source}@{peer.version}"
    _run(["npm", "install", *quiet, "--prefix", str(home), package], folder)
    for name in peer.programs:
        _link(home / "node_modules/.bin" / name)


def _go(peer: Peer, folder: Path) -> None:
    """Build a module as the main one: ``go install`` takes none that replaces what it needs."""
    told = _run(["go", "mod", "download", "-json", f"{peer.source}@v{peer.version}"], folder)
    source, built = folder / "source", folder / "bin"
    shutil.copytree(json.loads("\n".join(told))["Dir"], source, copy_function=shutil.copyfile)
    for path in (source, *source.rglob("*/")):
        path.chmod(0o755)
    built.mkdir()
    _run(["go", "build", "-o", f"{built}/", *peer.args], source)
    for name in peer.programs:
        (built / name).replace(BIN / name)


def _cargo(peer: Peer, folder: Path) -> None:
    exact = ["--version", peer.version, *peer.args, peer.source]
    environ = {"CARGO_TARGET_DIR": str(folder / "target")}
    _run(["cargo", "install", "--root", str(folder / "root"), *exact], folder, environ)
    for name in peer.programs:
        (folder / "root/bin" / name).replace(BIN / name)


CHISEL_ARGS = ("-ldflags", "-X github.com/jpillora/chisel/share.BuildVersion=1.11.3", ".")
PEERS = (
    *(
        Peer((name,), "", _debian, package)
        for name, package in (
            ("nginx", "nginx"),
            ("socat", "socat"),
            ("curl", "curl"),
            ("ssh", "openssh-client"),
            ("ssh-keygen", "openssh-client"),
            ("sshd", "openssh-server"),
        )
    ),
    Peer(("piping-server",), "1.12.9", _npm, "piping-server"),
    Peer(("croc",), "10.7.0", _go, "github.com/schollz/croc/v10", (".",)),
    Peer(("chisel",), "1.11.3", _go, "github.com/jpillora/chisel", CHISEL_ARGS),
    Peer(("bore",), "0.6.0", _cargo, "bore-cli", ("--locked",)),
    Peer(
        ("frps", "frpc"),
        "0.65.0",
        _go,
        "github.com/fatedier/frp",
        ("-tags", "noweb", "./cmd/frps", "./cmd/frpc"),
    ),
    # Without TLS, which is not used here and would need OpenSSL's headers. Not with the locked
    # versions of what it needs: a newer Rust refuses one of them.
    Peer(
        ("rathole",),
        "0.5.0",
        _cargo,
        "rathole",
        ("--no-default-features", "--features", "server,client"),
    ),
)
"""What is quick to have comes first."""


def use_cache() -> None:
    """Let programs in the cache be found, after those of the machine."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:{BIN}"


def install(needed: set[str], say: Callable[[str], None]) -> dict[str, str]:
    """Get what is missing, and return the reason for each program that cannot be had."""
    BIN.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str] = {}
    for peer in PEERS:
        if not needed & set(peer.programs) or all(map(shutil.which, peer.programs)):
            continue
        what = f"{peer.source} {peer.version}".strip()
        say(f"getting {' and '.join(peer.programs)} ({what}) into {CACHE}")
        # Built aside and moved, so that a build cut off leaves nothing that looks whole.
        with tempfile.TemporaryDirectory(prefix="building-", dir=CACHE) as folder:
            try:
                peer.fetch(peer, Path(folder))
            except NotInstalled as error:
                say(f"  not to be had: {error}")
                reasons |= dict.fromkeys(peer.programs, str(error))
    return reasons


def _link(program: Path) -> None:
    link = BIN / program.name
    link.unlink(missing_ok=True)
    link.symlink_to(program)


def _run(
    command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None
) -> list[str]:
    """Run a step in a folder, and return the lines it writes; raise `NotInstalled` if it fails."""
    if shutil.which(command[0]) is None:
        raise NotInstalled(f"there is no {command[0]} on PATH")
    log = folder / "step.log"
    with log.open("wb") as errors, _started(command, folder, environ or {}, errors) as popen:
        try:
            out, _ = popen.communicate(timeout=BUILD_SECONDS)
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"{command[0]} took more than {BUILD_SECONDS} s") from None
    if popen.returncode:
        raise NotInstalled(
            f"`{' '.join(command[:2])}` failed: {_why(log.read_text(errors='replace'))}"
        )
    return out.decode(errors="replace").splitlines()


def _why(log: str) -> str:
    """Return the first line that speaks of an error, else the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["it says nothing"]
    return next((line for line in lines if "error" in line.lower()), lines[-1])[:200]


@contextmanager
def _started(
    command: Sequence[str], folder: Path, environ: Mapping[str, str], errors: object
) -> "Iterator[subprocess.Popen[bytes]]":
    """A step and all that it starts, which end with it: compilers have children of their own."""
    popen = subprocess.Popen(
        ["nice", "-n", "19", *command],
        cwd=folder,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,  # type: ignore[call-overload]
        start_new_session=True,
    )
    try:
        yield popen
    finally:
        if popen.poll() is None:
            os.killpg(popen.pid, signal.SIGTERM)
            try:
                popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(popen.pid, signal.SIGKILL)
                popen.wait()
