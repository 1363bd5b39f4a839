"""``tunnelsync connector``: offer a folder's files as datasets until a signal stops it."""

from typing import Any

import click

from tunnelsync.cli import logs, options, running
from tunnelsync.settings import ConnectorSettings

FLAGS = ("router", "mac", "root", "token_file", "allow_plaintext", "places")


@click.command()
@options.settings_flags(ConnectorSettings, *FLAGS)
@options.store_flags
@options.config_flag
@options.log_flags
def connector(log_level: str, log_format: str, **flags: Any) -> None:
    """Run a connector: keep a connection to the router, and send the datasets it asks for.

    Needs no inbound connection. SIGTERM ends it with exit code 0.
    """
    settings = options.with_token(options.load(ConnectorSettings, flags), flags)
    store = options.load_store(flags)
    from tunnelsync.connector import session

    logs.start(log_level, log_format)
    running.run(session.run(settings, store), terminated_code=0)
