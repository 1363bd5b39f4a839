"""``tunnelsync ls``: list one folder of a connector."""

from datetime import UTC, datetime
from typing import Any

import click

from tunnelsync.cli import options, output, running, terminal
from tunnelsync.client import TunnelSync
from tunnelsync.identity import mac_address
from tunnelsync.protocol import ListEntry
from tunnelsync.settings import ClientSettings


@click.command()
@click.argument("mac")
@click.argument("folder", default="")
@options.json_flag
@options.client_flags
def ls(mac: str, folder: str, as_json: bool, **flags: Any) -> None:
    """List FOLDER of connector MAC, or its root: name, size in bytes, time of change."""
    settings = options.with_token(options.load(ClientSettings, flags), flags)

    async def work() -> tuple[list[ListEntry], int]:
        entries: list[ListEntry] = []
        unlisted = 0
        async with TunnelSync(settings=settings) as ts:
            async for page in ts.pages(mac, folder):
                entries += page.entries
                unlisted = max(unlisted, page.unlisted)
        return entries, unlisted

    entries, unlisted = running.run(work())
    if as_json:
        output.success(mac=mac_address(mac), folder=folder, entries=entries, unlisted=unlisted)
        return
    terminal.table(("name", "size", "modified"), (_cells(entry) for entry in entries))
    if unlisted:
        output.say(f"{unlisted} names in it cannot be datasets, and are not listed")


def _cells(entry: ListEntry) -> tuple[str, str, str]:
    mark = "/" if entry.kind == "folder" else ""
    size = "-" if entry.size is None else str(entry.size)
    return output.shown_name(entry.name + mark), size, when(entry.modified_ns)


def when(modified_ns: int | None) -> str:
    """Return a time of change as ISO 8601 in UTC, to the second; ``-`` for none."""
    if modified_ns is None:
        return "-"
    try:
        moment = datetime.fromtimestamp(modified_ns // 10**9, UTC)
    except (OverflowError, ValueError, OSError):
        return "-"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
