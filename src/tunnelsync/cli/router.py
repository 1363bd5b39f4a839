"""``tunnelsync router``: run the router until a signal stops it."""

import asyncio
import signal
from typing import Any

import click

from tunnelsync import signals
from tunnelsync.cli import logs, options, output
from tunnelsync.cli.running import INTERRUPTED, serve_many
from tunnelsync.settings import RouterSettings


@click.command()
@options.settings_flags(RouterSettings, "host", "port", "tokens", "tls_cert", "tls_key")
@options.store_flags
@options.config_flag
@options.log_flags
def router(log_level: str, log_format: str, **flags: Any) -> None:
    """Run the router: connectors connect to it, and clients ask it for datasets.

    SIGTERM lets running transfers end, a second signal ends it at once.
    """
    settings, store = options.load(RouterSettings, flags), options.load_store(flags)
    from tunnelsync.router import app

    async def serve() -> bool:
        try:
            return await app.run(settings, store)
        finally:
            # Nothing is left to end sooner, and asyncio stops listening before we have ended.
            signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)

    logs.start(log_level, log_format)
    serve_many()
    if not asyncio.run(serve()):
        raise output.Interrupted(INTERRUPTED)
