"""Runs the command line as its users do: a process, with nothing of ours in its environment."""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tunnelsync

CANARY = "ts-client-canary-7f3a"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a process left: its exit code, and what it printed."""

    code: int
    out: bytes
    err: str


def environment(**more: str) -> dict[str, str]:
    """Return an environment without our settings or a proxy, with a token to look out for."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TUNNELSYNC_") and not name.lower().endswith("_proxy")
    }
    source = str(Path(tunnelsync.__file__).parents[1])
    once = {"TUNNELSYNC_CLIENT_RETRY_FOR_SECONDS": "0"}
    return kept | once | {"TUNNELSYNC_TOKEN": CANARY, "PYTHONPATH": source} | more


async def started(
    *arguments: str,
    cwd: Path,
    stdout: int = asyncio.subprocess.PIPE,
    env: Mapping[str, str] | None = None,
) -> asyncio.subprocess.Process:
    """Start ``python -m tunnelsync`` with these arguments."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tunnelsync", *arguments),
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> Ran:
    """Wait for the end; no user error prints a traceback, and nothing prints the token."""
    out, err = await process.communicate()
    assert process.returncode is not None
    assert CANARY.encode() not in (out or b"") + err
    assert b"Traceback" not in err
    return Ran(process.returncode, out or b"", err.decode())


async def ran(*arguments: str, cwd: Path, **env: str) -> Ran:
    """Run a command to its end."""
    return await ended(await started(*arguments, cwd=cwd, env=env))
