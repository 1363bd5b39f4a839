"""``tunnelsync connectors``: who is connected to the router, and who should be."""

from typing import Any

import click

from tunnelsync.cli import options, output, running, terminal
from tunnelsync.client import ConnectorEntry, TunnelSync
from tunnelsync.settings import ClientSettings


@click.command()
@options.json_flag
@options.client_flags
def connectors(as_json: bool, **flags: Any) -> None:
    """List the connectors that the router knows, and how many transfers each works on."""
    settings = options.with_token(options.load(ClientSettings, flags), flags)

    async def work() -> tuple[ConnectorEntry, ...]:
        async with TunnelSync(settings=settings) as ts:
            return await ts.connectors()

    found = running.run(work())
    if as_json:
        output.success(connectors=found)
        return
    heads = ("mac", "connected s", "version", "state", "transfers")
    terminal.table(heads, (_cells(entry) for entry in found))


def _cells(entry: ConnectorEntry) -> tuple[str, ...]:
    seconds = entry.connected_seconds
    connected = "-" if seconds is None else f"{seconds:.0f}"
    return entry.mac, connected, entry.version, entry.state, str(entry.transfers)
