"""``tunnelsync receipt``: what a transfer says about itself."""

from typing import Any

import click

from tunnelsync.cli import options, output, running
from tunnelsync.client import TunnelSync
from tunnelsync.protocol import Receipt
from tunnelsync.settings import ClientSettings


@click.command()
@click.argument("request_id")
@click.option(
    "--wait", "wait_seconds", type=float, default=0.0, metavar="S", help="wait for its end so long"
)
@options.json_flag
@options.client_flags
def receipt(request_id: str, wait_seconds: float, as_json: bool, **flags: Any) -> None:
    """Show the receipt of the transfer REQUEST_ID."""
    settings = options.with_token(options.load(ClientSettings, flags), flags)

    async def work() -> Receipt:
        async with TunnelSync(settings=settings) as ts:
            return await ts.receipt(request_id, wait_seconds=wait_seconds)

    found = running.run(work())
    members = output.plain(found)
    if as_json:
        output.success(receipt=members)
        return
    members["dataset"] = output.shown_name(found.dataset)
    if found.error:
        members["error"] = f"{found.error.code}: {found.error.message}"
    output.pairs(members)
