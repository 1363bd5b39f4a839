"""``tunnelsync connectors``: who is connected to the router."""

from typing import Any

import click

from tunnelsync.cli import options, output, running
from tunnelsync.client import ConnectorEntry, TunnelSync
from tunnelsync.settings import ClientSettings


@click.command()
@options.json_flag
@options.client_flags
def connectors(as_json: bool, **flags: Any) -> None:
    """List the connectors that the router knows: MAC, seconds connected, version, state."""
    settings = options.with_token(options.load(ClientSettings, flags), flags)

    async def work() -> tuple[ConnectorEntry, ...]:
        async with TunnelSync(settings=settings) as ts:
            return await ts.connectors()

    found = running.run(work())
    if as_json:
        output.success(connectors=found)
        return
    output.table(("mac", "connected s", "version", "state"), (_cells(entry) for entry in found))


def _cells(entry: ConnectorEntry) -> tuple[str, str, str, str]:
    seconds = entry.connected_seconds
    return entry.mac, "-" if seconds is None else f"{seconds:.0f}", entry.version, entry.state
