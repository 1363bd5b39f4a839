#!/usr/bin/env python3
"""Show what costs how much: the CPU of each role, by step, for a large stream and for small ones.

``perf`` tells what the kernel and libraries take, and ``py-spy``, where it is on PATH, for whom
Python works. Each role is profiled in runs of its own; the cost is that of a run without.
"""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click
from benchlib import system
from benchlib.dataset import dataset
from benchlib.processes import Process

LARGE, SMALL = (2**30, 3, 1), (1000, 3000, 64)
"""Bytes of the dataset, how many fetches, and how many of them at once."""
ROWS = 12
STEPS = (
    (r"splice", "splice, in the kernel"),
    (r"send\w*|writev", "send"),
    (r"recv\w*", "receive"),
    (r"p?read\w*", "read the dataset"),
    (r"p?write\w*", "write the file"),
    (r"f?datasync|fsync", "sync the journal"),
    (r"open\w*|rename\w*|unlink\w*|close|\w*stat\w*|flock", "open, rename, remove"),
    (r"epoll\w*", "wait for sockets"),
    (r"futex|clone\w*|munmap|mprotect", "hand over between threads"),
)
"""System calls, and the steps that they are part of."""


def step_of(stack: list[tuple[str, str]]) -> str:
    """Return the step that a sample belongs to: symbols and libraries, the innermost first."""
    symbol, library = stack[0]
    if "kernel" in library:
        calls = [name[10:] for name, _ in stack if name.startswith("__x64_sys_")]
        found = (step for call in calls for rule, step in STEPS if re.fullmatch(rule, call))
        return next(found, "kernel, the rest")
    if "blake3" in library:
        return "BLAKE3"
    if "libpython" in library or Path(library).name.startswith("python"):
        collecting = re.match(r"gc_|visit_|subtract_|update_refs|\w*_traverse|\w*VisitInst", symbol)
        return "Python, collecting garbage" if collecting else "Python"
    if "libc" in library:
        if "futex" in symbol or "cond" in symbol or "sem_" in symbol:
            return "hand over between threads"
        return "copy in memory" if "mem" in symbol else "libc, the rest"
    return "HTTP in C" if re.search("http_|multidict|quoting", library) else "other libraries"


def by_perf(data: Path) -> Counter[str]:
    """Return how many samples of a recording belong to each step."""
    command = ("perf", "script", "-i", data, "-F", "ip,sym,dso")
    text = subprocess.check_output(command, text=True, errors="replace", stderr=subprocess.DEVNULL)
    steps: Counter[str] = Counter()
    for sample in text.split("\n\n"):
        found = re.findall(r"^\s*[0-9a-f]+ (.*?)(?:\+0x\w+)? \((.*)\)$", sample, re.MULTILINE)
        if found:
            steps[step_of(found)] += 1
    return steps


def by_spy(data: Path) -> Counter[str]:
    """Return how many samples are of each function of ours, with what it calls of others."""
    functions: Counter[str] = Counter()
    for line in data.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        ours = re.findall(r"([^ ;]+) \([^;]*?tunnelsync/((?!cli/|__)[a-z_/]+\.py)", stack)
        name = "{1} {0}".format(*ours[-1]) if ours else "asyncio and aiohttp by themselves"
        functions[name] += int(count)
    return functions


def show(title: str, shares: Counter[str], whole: float, unit: str) -> None:
    """Print the costliest of some shares of a cost."""
    print(f"\n{title}: {whole:.3g} {unit}")
    for name, count in shares.most_common(ROWS):
        print(f"  {whole * count / shares.total():9.3g}  {name}")


def profile(running: system.System, name: str, plan: tuple[int, int, int], folder: Path) -> None:
    """Profile each role while datasets of one size are fetched."""
    size, times, together = plan
    scale, unit = (1.0, "CPU s/GiB") if size == 2**30 else (1e6, "CPU us for each request")

    def run() -> dict[str, float]:
        sample = running.fetch_together(name, folder / "out", times, together)
        for path in folder.glob("out.*"):
            path.unlink()
        return {role: scale * cost / times for role, cost in sample.cpu_seconds.items()}

    def recorded(tool: str, *options: str) -> Path:
        data = folder / f"{tool}.data"
        data.unlink(missing_ok=True)
        command = (tool, "record", "-p", str(running.pids[role]), "-o", str(data), *options)
        with Process(tool, command, folder) as recorder:
            recorder.wait_until(lambda: data.exists() or "Sampling" in recorder.log(), "begin")
            run()
            recorder.popen.send_signal(signal.SIGINT)
            recorder.popen.wait()
        return data

    run()
    costs = run()
    for role in system.ROLES:
        steps = by_perf(recorded("perf", "-g", "-e", "cpu-clock", "-F", "1999"))
        show(f"{role}, {size:,} bytes", steps, costs[role], unit)
        if shutil.which("py-spy"):
            functions = by_spy(recorded("py-spy", "--gil", "-r", "199", "-f", "raw"))
            show("  its Python, for", functions, 100, "%")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="for all files")
def main(folder: Path | None) -> None:
    """Profile router, connector and client: 1 GiB in stream, and 1 KB with 64 in flight."""
    if not shutil.which("perf"):
        sys.exit("perf is not on PATH (on Debian: apt install linux-perf)")
    if not shutil.which("py-spy"):
        print("py-spy is not on PATH: Python is not taken apart", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="tunnelsync-profile-", dir=folder) as name:
        root, logs = Path(name, "datasets"), Path(name, "logs")
        root.mkdir()
        logs.mkdir()
        for plan in (LARGE, SMALL):
            path = dataset(root, plan[0], print)
            with system.running("stream", root, logs, sync=False, store={}) as running:
                profile(running, path.name, plan, Path(name))


if __name__ == "__main__":
    main()
