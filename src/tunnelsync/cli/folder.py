"""``tunnelsync fetch-folder``: bring a folder with all below it."""

from pathlib import Path
from typing import Any

import click

from tunnelsync.cli import options, output, running, terminal
from tunnelsync.client import Fetched, FolderFetched, TunnelSync, fetch_folder
from tunnelsync.errors import TunnelSyncError
from tunnelsync.protocol import Mode, printable
from tunnelsync.settings import ClientSettings


@click.command("fetch-folder")
@click.argument("mac")
@click.argument("folder", default="")
@click.option(
    "-o",
    "--output",
    "path",
    metavar="DIR",
    help="where to; made if its parent is there; default: the folder's base name, here",
)
@click.option("--force", is_flag=True, help="replace files that are there and are not the same")
@click.option(
    "--at-once",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="so many datasets at once",
)
@click.option(
    "--no-sync",
    is_flag=True,
    help="do not wait for the disk after each: faster, but a power cut can cost files",
)
@options.retry_flag
@options.json_flag
@click.option("-q", "--quiet", is_flag=True, help="say nothing unless it fails")
@options.client_flags
def fetch_folder_(
    mac: str,
    folder: str,
    path: str | None,
    force: bool,
    at_once: int,
    no_sync: bool,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Bring FOLDER of connector MAC, or its root, with all below it.

    What is there already with the same size and time stays as it is, so the same command goes on
    where it was cut off, and brings later what is new.
    """
    settings = options.with_token(options.load(ClientSettings, flags), flags)
    name = folder.strip("/").rpartition("/")[2]
    if path is None and not name:
        raise click.UsageError("the root of a connector has no name: give -o DIR")
    into = Path(path if path is not None else name)

    async def work() -> FolderFetched:
        with terminal.spinner(quiet=quiet or as_json) as show:
            count = 0

            def told(name: str, what: Fetched | TunnelSyncError | None) -> None:
                nonlocal count
                count += 1
                if isinstance(what, TunnelSyncError) and not as_json:
                    output.say(f"{output.shown_name(name)}: {what.message}")
                show(f"{count:,} so far, the last {output.shown_name(name)}")

            async with TunnelSync(settings=settings) as ts:
                return await fetch_folder(
                    ts,
                    mac,
                    folder,
                    into,
                    at_once=at_once,
                    mode=Mode.AUTO,
                    force=force,
                    sync=not no_sync,
                    told=told,
                )

    done = running.run(work())
    members = _members(done)
    if not done.failures:
        if as_json:
            output.success(mac=mac, folder=folder, **members)
        elif not quiet:
            output.say(_summary(folder, done))
        return
    first, why = done.failures[0]
    error = type(why)(f"{_summary(folder, done)}; first {printable(first)}: {why.message}")
    if not as_json:
        raise error
    output.json(output.failed(error) | {"mac": mac, "folder": folder, **members})
    click.get_current_context().exit(error.exit_code)


def _summary(folder: str, done: FolderFetched) -> str:
    rate = done.bytes / done.seconds if done.seconds else 0.0
    return ", ".join(
        [
            f"{output.shown_name(folder.strip('/') or '/')}: {done.fetched:,} fetched",
            f"{done.bytes:,} bytes in {done.seconds:.2f} s",
            *([f"{output.rate(rate)} MB/s"] if rate >= output.LEAST_RATE else []),
            *([f"{done.there:,} there already"] if done.there else []),
            *([f"{done.unlisted:,} names cannot be datasets"] if done.unlisted else []),
            *([f"{done.failed:,} failed"] if done.failed else []),
        ]
    )


def _members(done: FolderFetched) -> dict[str, Any]:
    return {
        "fetched": done.fetched,
        "bytes": done.bytes,
        "there": done.there,
        "unlisted": done.unlisted,
        "failed": done.failed,
        "failures": [{"dataset": name, **error.to_wire()} for name, error in done.failures],
        "seconds": round(done.seconds, 3),
    }
