"""Where the figures come from: the machine, its system, and the versions of all that ran."""

import datetime as dt
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import tunnelsync
from benchlib import peers

CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
LIBRARIES = ("aiohttp", "aioboto3", "aiobotocore", "botocore", "blake3", "orjson", "yarl")


def facts(folder: Path, store: tuple[str, str] | None) -> dict[str, Any]:
    """Return the facts that somebody needs who compares two results."""
    return {
        "date": now(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "cpu": _matched(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$"),
        "memory_bytes": int(_matched(Path("/proc/meminfo"), r"^MemTotal:\s+(\d+)") or 0) * 1024,
        "kernel": platform.release(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {"tunnelsync": tunnelsync.__version__, **_libraries()},
        "tools": peers.versions() | _store_version(store),
        "file_system": file_system(folder),
        "congestion_control": CONTROL.read_text().strip(),
        "load_average_at_start": os.getloadavg(),
    }


def now() -> str:
    """Return the time, in UTC and ISO 8601."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def file_system(folder: Path) -> str:
    """Return type and device of the file system that holds a folder: ``ext4 on /dev/sda1``."""
    best, name = -1, "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, where, kind = line.split()[:3]
        mount = Path(where.encode().decode("unicode_escape"))
        if folder.resolve().is_relative_to(mount) and len(mount.parts) >= best:
            best, name = len(mount.parts), f"{kind} on {device}"
    return name


def _matched(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    return found[1].strip() if found else None


def _libraries() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _store_version(store: tuple[str, str] | None) -> dict[str, str]:
    if store is None:
        return {}
    kind, program = store
    args = ["--version"] if kind == "minio" else ["version"]
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=30, check=False)
    return {kind: (done.stdout + done.stderr).strip().splitlines()[0]}
