"""``tunnelsync stat``: what version a dataset is, without reading it."""

from typing import Any

import click

from tunnelsync.cli import options, output, running
from tunnelsync.cli.ls import when
from tunnelsync.client import TunnelSync
from tunnelsync.identity import mac_address
from tunnelsync.protocol import ListEntry
from tunnelsync.settings import ClientSettings


@click.command()
@click.argument("mac")
@click.argument("dataset")
@options.json_flag
@options.client_flags
def stat(mac: str, dataset: str, as_json: bool, **flags: Any) -> None:
    """Show size, etag and time of change of DATASET at connector MAC."""
    settings = options.with_token(options.load(ClientSettings, flags), flags)

    async def work() -> ListEntry:
        async with TunnelSync(settings=settings) as ts:
            return await ts.stat(mac, dataset)

    found = running.run(work())
    if as_json:
        output.success(mac=mac_address(mac), **output.plain(found))
        return
    output.pairs(
        {
            "name": output.shown_name(found.name),
            "size": found.size,
            "etag": found.etag,
            "modified": when(found.modified_ns),
        }
    )
