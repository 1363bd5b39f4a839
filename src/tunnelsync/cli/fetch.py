"""``tunnelsync fetch``: bring a dataset into a file or to stdout; and its older names."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from tunnelsync.cli import options, output, running, terminal
from tunnelsync.client import Fetched, Record, Resume, TunnelSync
from tunnelsync.client.holdings import Progress
from tunnelsync.client.part import JOURNAL_SUFFIX, SUFFIX
from tunnelsync.client.target import beside, is_special, resolve
from tunnelsync.errors import TargetExists, TunnelSyncError, Usage, WriteFailed
from tunnelsync.protocol import Mode, Receipt, printable
from tunnelsync.settings import ClientSettings

DEFAULTS = ClientSettings()
STDOUT = 1
RECEIPT_BEGINS = b'{"format":'


def _flags(command: Callable[..., None]) -> Callable[..., None]:
    for flag in (
        click.argument("dataset"),
        click.argument("mac"),
        options.client_flags,
        click.option("-q", "--quiet", is_flag=True, help="say nothing unless it fails"),
        options.json_flag,
        click.option(
            "--receipt",
            "receipt_path",
            metavar="FILE",
            help="write what happened to FILE as JSON, also when it fails",
        ),
        click.option(
            "--no-sync",
            is_flag=True,
            help="do not wait for the disk at the end: faster, but a power cut can cost the file",
        ),
        click.option("--restart", is_flag=True, help="drop what an earlier run left, begin anew"),
        click.option(
            "--no-resume", is_flag=True, help="neither go on from an earlier run nor leave anything"
        ),
        options.retry_flag,
        click.option(
            "--parallel",
            type=click.IntRange(0, DEFAULTS.parallel_most),
            metavar="N",
            help=f"streams at once, at most {DEFAULTS.parallel_most}; 0 chooses by size and line "
            "[TUNNELSYNC_CLIENT_PARALLEL; default 0]",
        ),
        click.option("--force", is_flag=True, help="replace a file that is there"),
        click.option(
            "-o",
            "--output",
            "path",
            metavar="PATH",
            help="where to write, - for stdout; default: the dataset's base name, here",
        ),
    ):
        command = flag(command)
    return command


@click.command()
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.AUTO.value,
    show_default=True,
    help="the way of the bytes",
)
@_flags
def fetch(mode: str, **rest: Any) -> None:
    """Bring DATASET from connector MAC into a file, whole and verified or not at all."""
    _run(Mode(mode), **rest)


@click.command("request-sync")
@_flags
def request_sync(**rest: Any) -> None:
    """Same as fetch --mode buffer."""
    _run(Mode.BUFFER, **rest)


@click.command("request-stream")
@_flags
def request_stream(**rest: Any) -> None:
    """Same as fetch --mode stream."""
    _run(Mode.STREAM, **rest)


@click.command("request-offload")
@_flags
def request_offload(**rest: Any) -> None:
    """Same as fetch --mode offload."""
    _run(Mode.OFFLOAD, **rest)


def _run(
    mode: Mode,
    *,
    mac: str,
    dataset: str,
    path: str | None,
    force: bool,
    no_resume: bool,
    restart: bool,
    no_sync: bool,
    receipt_path: str | None,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    if path == "-" and as_json:
        raise click.UsageError("--json and -o - both want standard output")
    if no_resume and restart:
        raise click.UsageError("--no-resume and --restart exclude each other")
    resume = Resume.NO if no_resume else Resume.RESTART if restart else Resume.YES
    settings = options.with_token(options.load(ClientSettings, flags), flags)
    # A bar would wipe out lines of data that a terminal shows.
    mixed = path == "-" and sys.stdout is not None and sys.stdout.isatty()
    show = not quiet and not as_json and not mixed and terminal.watched()
    record = Record(None if quiet or as_json else output.say)

    async def work() -> Fetched:
        with _progress(dataset) if show else _silence() as (progress, waiting):
            async with TunnelSync(settings=settings, waiting=waiting) as ts:
                if path == "-":
                    return await ts.write_to(
                        mac, dataset, STDOUT, mode=mode, progress=progress, record=record
                    )
                return await ts.fetch(
                    mac,
                    dataset,
                    path,
                    mode=mode,
                    force=force,
                    resume=resume,
                    sync=not no_sync,
                    progress=progress,
                    record=record,
                )

    if receipt_path is not None:
        _check_receipt(receipt_path, path, dataset, force=force)
    with _receipt(receipt_path, record):
        fetched = running.run(work())
        if not as_json and not quiet:
            output.say(_summary(fetched))
    if as_json:
        output.success(**_members(fetched))


@contextmanager
def _receipt(path: str | None, record: Record) -> Iterator[None]:
    """Write the receipt of a fetch, however it ends; but not of one that was never asked for.

    An error of the fetch is told even where its receipt cannot be written.
    """
    try:
        yield
    except BaseException as error:
        if path is not None and record.asked is not None:
            with suppress(WriteFailed):
                output.save(path, record.receipt(error))
        raise
    if path is not None:
        try:
            output.save(path, record.receipt())
        except WriteFailed as error:
            what = f"the dataset is here, whole and verified; {error.message}"
            raise WriteFailed(what, hint="Check free space where --receipt points.") from None


def _check_receipt(receipt: str, path: str | None, dataset: str, *, force: bool) -> None:
    """Raise `Usage` for a receipt that has no place, or would take that of the dataset, and
    `TargetExists` for one that would take that of anything but a receipt."""
    folder, name = os.path.split(os.path.join(os.curdir, receipt))
    if name in ("", "-") or not os.path.isdir(folder) or os.path.isdir(receipt):
        what = f"the receipt cannot be written as {printable(receipt)}"
        raise Usage(what, hint="Give the name of a file, in a folder that is there.")
    target = None
    with suppress(TunnelSyncError):  # which the fetch itself tells
        target = None if path == "-" else resolve(path, dataset, force=True)
    taken = [target, beside(target, SUFFIX), beside(target, JOURNAL_SUFFIX)] if target else []
    if (os.path.realpath(folder), name) in [(os.path.realpath(t.parent), t.name) for t in taken]:
        what = f"{printable(receipt)} cannot be both the dataset and its receipt"
        raise Usage(what, hint="Give --receipt another name.")
    if not (force or is_special(receipt) or _is_receipt(receipt)):
        what = f"{printable(receipt)} is there already, and is no receipt"
        raise TargetExists(what, hint="Give --receipt another name, or --force to replace it.")


def _is_receipt(path: str) -> bool:
    """Tell whether a receipt, or nothing, is there."""
    try:
        with open(path, "rb") as file:
            return file.read(len(RECEIPT_BEGINS)) in (b"", RECEIPT_BEGINS)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _summary(fetched: Fetched) -> str:
    name = fetched.path.name if fetched.path else fetched.dataset
    first, rate = fetched.first_byte_seconds, fetched.megabytes_per_second * 1e6
    size = f"{fetched.bytes:,} byte{'s' * (fetched.bytes != 1)}"
    return ", ".join(
        [
            f"{output.shown_name(name)}: {size} in {fetched.seconds:.2f} s",
            *([f"{output.rate(rate)} MB/s"] if rate >= output.LEAST_RATE else []),
            *([f"{fetched.resumed_bytes:,} from before"] if fetched.resumed_bytes else []),
            *([f"{fetched.repaired_blocks} repaired"] if fetched.repaired_blocks else []),
            *([f"retried {fetched.retries} times"] if fetched.retries else []),
            *([f"first byte {first * 1000:.0f} ms"] if first is not None else []),
            fetched.mode_used,
            f"verified {fetched.root}",
        ]
    )


def _members(fetched: Fetched) -> dict[str, Any]:
    members = {name: getattr(fetched, name) for name in Fetched.__dataclass_fields__}
    if fetched.path is not None:
        members["path"] = os.fsencode(fetched.path).decode("utf-8", "backslashreplace")
    return members | {"megabytes_per_second": round(fetched.megabytes_per_second, 3)}


Shown = tuple[Progress | None, Callable[[Receipt], None] | None]


@contextmanager
def _silence() -> Iterator[Shown]:
    yield None, None


@contextmanager
def _progress(dataset: str) -> Iterator[Shown]:
    """Draw a bar on stderr, with rate and time left."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=terminal.console(), transient=True) as bar:
        name = output.shown_name(dataset.rpartition("/")[2])
        task = bar.add_task(name, total=None)

        def update(done: int, size: int | None) -> None:
            bar.update(task, completed=done, total=size, description=name)

        def waiting(receipt: Receipt) -> None:
            bar.update(task, description=f"{name}: {_standing(receipt)}")

        yield update, waiting


def _standing(receipt: Receipt) -> str:
    """Return how a transfer stands that has no answer yet, in words."""
    if receipt.progress == "queued":
        return f"in line, place {receipt.progress_done}"
    if receipt.progress is not None and receipt.progress_done:
        return f"{receipt.progress}, {receipt.progress_done / 1e6:,.0f} MB"
    return receipt.progress or receipt.state
