"""``tunnelsync bench``: measure an installation, from this client to one connector."""

from dataclasses import replace
from typing import Any

import click

from tunnelsync.cli import options, output, running, terminal
from tunnelsync.cli.bench_figures import Figures, members
from tunnelsync.cli.bench_plan import parse_bytes
from tunnelsync.cli.bench_report import lines
from tunnelsync.cli.bench_run import Bench, Limits
from tunnelsync.client import TunnelSync
from tunnelsync.errors import Cancelled, TunnelSyncError
from tunnelsync.identity import mac_address
from tunnelsync.protocol import Mode, check_name
from tunnelsync.settings import MIB, ClientSettings

LEAST_BYTES = MIB


class Bytes(click.ParamType[int]):
    """A number of bytes on the command line."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or fail with what is possible."""
        try:
            number = parse_bytes(str(value))
        except ValueError:
            self.fail(f"{value!r} is no number of bytes, such as 500MB or 2GiB", param, ctx)
        if number < LEAST_BYTES:
            self.fail("less than 1 MiB says nothing", param, ctx)
        return number


@click.command()
@click.argument("mac")
@click.argument("datasets", metavar="[DATASET]...", nargs=-1)
@click.option(
    "--mode",
    "modes",
    type=click.Choice([mode.value for mode in Mode if mode is not Mode.AUTO]),
    multiple=True,
    default=[Mode.STREAM.value],
    show_default=True,
    help="what to measure; may be given several times. Offload leaves what it uploads in the store",
)
@click.option(
    "--time",
    "seconds",
    type=click.FloatRange(1, 86400),
    default=30.0,
    show_default=True,
    metavar="S",
    help="be done after so many seconds",
)
@click.option(
    "--max-bytes",
    type=Bytes(),
    default="4GiB",
    show_default=True,
    metavar="SIZE",
    help="receive no more than about this, such as 500MB",
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    metavar="N",
    help="runs of each size and number of streams, as far as time and bytes allow",
)
@options.json_flag
@options.client_flags
def bench(
    mac: str,
    datasets: tuple[str, ...],
    modes: tuple[str, ...],
    seconds: float,
    max_bytes: int,
    repeats: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Measure latency and throughput from here to connector MAC; keep nothing of what comes.

    Without DATASET it chooses from what the connector lists.
    """
    settings = options.with_token(options.load(ClientSettings, flags), flags)
    # A run that was tried again would be measured with its pause.
    settings = replace(settings, retry_for_seconds=0.0)
    mac, figures = mac_address(mac), Figures()
    names = [check_name(name) for name in datasets]
    wanted = [Mode(mode) for mode in dict.fromkeys(modes)]
    limits = Limits(seconds, max_bytes, repeats)

    async def work() -> None:
        with terminal.spinner(quiet=as_json) as tell:
            async with TunnelSync(settings=settings) as ts:
                await Bench(ts, mac, limits, figures, tell).run(names, wanted)

    try:
        running.run(work())
    except (TunnelSyncError, output.Interrupted) as stopped:
        if as_json:
            _stopped(mac, figures, stopped)
        elif figures.measured().latencies:
            _report(figures)
        raise
    if as_json:
        output.success(mac=mac, **members(figures))
    else:
        _report(figures)


def _report(figures: Figures) -> None:
    width, ascii_only = terminal.width(), not terminal.can_draw()
    for text in lines(figures, width, ascii_only=ascii_only):
        output.line(text)


def _stopped(mac: str, figures: Figures, why: TunnelSyncError | output.Interrupted) -> None:
    """Print the one JSON object of a bench that did not come to its end, and exit."""
    if isinstance(why, output.Interrupted):
        error: TunnelSyncError = Cancelled("interrupted", hint="")
        code = why.code
    else:
        error, code = why, why.exit_code
    output.json({**output.failed(error, exit_code=code), "mac": mac, **members(figures.measured())})
    click.get_current_context().exit(code)
