"""``ssh -R`` through an sshd of our own: a port of loopback, keys and settings of one run.

An sshd that is root wants an account and a folder which only an installed one has. So it runs as
``daemon`` then, in a folder of its own, and anybody else's runs as that user.
"""

import getpass
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchlib.peers import program
from benchlib.processes import STOP_SECONDS, Process, free_ports, listens
from benchlib.ways import LOCAL, Run, Setting, command, through

UNPRIVILEGED = "daemon"
"""Not ``nobody``, whose account counts as locked where systemd answers for it."""
CONFIG = """\
Port {control}
ListenAddress 127.0.0.1
HostKey {home}/host_key
AuthorizedKeysFile {home}/client_key.pub
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowTcpForwarding remote
AllowAgentForwarding no
X11Forwarding no
PermitTTY no
Compression no
"""
CLIENT = (
    *("-F", "none", "-N", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
    *("-o", "IdentityAgent=none", "-o", "ExitOnForwardFailure=yes", "-o", "Compression=no"),
    *("-o", "GlobalKnownHostsFile=none", "-o", "ConnectTimeout=10", "-c", "aes128-gcm@openssh.com"),
)


@contextmanager
def remote(setting: Setting) -> Iterator[Run]:
    """Forward a port of the relay to the nginx."""
    control, public = free_ports(2)
    user = UNPRIVILEGED if os.geteuid() == 0 else getpass.getuser()
    # Not below the folder of the bench, which another user may not enter.
    with tempfile.TemporaryDirectory(prefix="tunnelsync-bench-sshd-") as folder:
        home = Path(folder)
        server = _prepared(home, user, control)
        logs = setting.home("ssh")
        with Process("sshd", server, logs, user=user) as relay:
            relay.wait_until(lambda: listens(control), f"listen on {control}")
            forward = f"{LOCAL}:{public}:{LOCAL}:{setting.origin_port}"
            known = f"UserKnownHostsFile={home / 'known_hosts'}"
            words = ("ssh", *CLIENT, "-o", known, "-i", home / "client_key", "-p", str(control))
            with Process("ssh", (*words, "-R", forward, f"{user}@{LOCAL}"), logs) as inside:
                inside.wait_until(lambda: listens(public), f"get a listener on {public}")
                pids = [relay.pid, *_below(relay.pid)]
                yield through(f"http://{LOCAL}:{public}", setting.source, pids)
            _gone(pids[1:])


def _prepared(home: Path, user: str, port: int) -> list[str]:
    """Make keys and settings, and return the command of the server."""
    for name in ("host_key", "client_key"):
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", home / name)
    host_key = (home / "host_key.pub").read_text()
    (home / "known_hosts").write_text(f"[{LOCAL}]:{port} {host_key}")
    (home / "config").write_text(CONFIG.format(control=port, home=home))
    # It starts itself again by its path, which another user may not reach where it is.
    server = shutil.copy(program("sshd") or "sshd", home / "sshd")
    if os.geteuid() == 0:
        for path in (home, home / "host_key", home / "client_key.pub", home / "config"):
            shutil.chown(path, user)
    return [str(server), "-D", "-e", "-f", str(home / "config")]


def _below(pid: int) -> list[int]:
    """Return the processes that this one has started, and theirs."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in map(int, children) for one in (child, *_below(child))]


def _gone(pids: list[int]) -> None:
    """Wait for the end of the sessions, whose ssh has ended."""
    deadline = time.monotonic() + STOP_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
