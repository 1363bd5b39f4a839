"""The command line: one file per command, each imported only when it is the one that runs.

Only these files read arguments and the environment, print, or exit; ``output`` is the one that
prints.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from tunnelsync import __version__
from tunnelsync.meant import meant

COMMANDS: dict[str, tuple[str, str]] = {
    "fetch": ("fetch:fetch", "Bring a dataset into a file, whole and verified."),
    "fetch-folder": ("folder:fetch_folder_", "Bring a folder with all below it."),
    "ls": ("ls:ls", "List a folder of a connector."),
    "stat": ("stat:stat", "Show a dataset's size, etag and time of change."),
    "connectors": ("connectors:connectors", "List the connectors that the router knows."),
    "receipt": ("receipt:receipt", "Show what became of a transfer."),
    "digest": ("digest:digest", "Print the root of a file, to compare with a fetch."),
    "verify": ("verify:verify", "Check a file against the receipt of its fetch."),
    "bench": ("bench:bench", "Measure latency and throughput to a connector."),
    "token": ("token:token", "Make, list and revoke tokens."),
    "store": ("store:store", "Remove from the S3 store what is old."),
    "router": ("router:router", "Run the router."),
    "connector": ("connector:connector", "Run a connector: offer a folder's files as datasets."),
    "demo": ("demo:demo", "Run router, connector and store on this machine, to try it."),
    "request-sync": ("fetch:request_sync", "Same as fetch --mode buffer."),
    "request-stream": ("fetch:request_stream", "Same as fetch --mode stream."),
    "request-offload": ("fetch:request_offload", "Same as fetch --mode offload."),
}
"""Each command: its module and name under ``tunnelsync.cli``, and its line of help."""


class Commands(click.Group):
    """A group whose commands are imported on use, and whose errors become exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(f"tunnelsync.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of one that there is not, the error says which one may be meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            for name in meant(args[0], {name: name for name in COMMANDS}):
                raise click.UsageError(f"{exc.message} Did you mean {name!r}?", ctx) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run a command and exit: 0, 2 for a usage error, else the error's own exit code."""
        from tunnelsync.cli import output

        arguments = list(sys.argv[1:] if args is None else args)
        output.prepare(as_json="--json" in arguments, debug="--debug" in arguments)
        try:
            code = super().main(arguments, prog_name="tunnelsync", standalone_mode=False)
            code = output.flush() or (code if isinstance(code, int) else 0)
        except click.ClickException as exc:
            code = output.usage_error(exc)
        except output.Interrupted as exc:
            # A thread may hang in a write to a reader that does not read: do not wait for it.
            os._exit(output.interrupted(exc.code))
        except (click.Abort, KeyboardInterrupt):
            os._exit(output.interrupted(130))
        except Exception as exc:
            code = output.failure(exc)
        sys.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="tunnelsync %(version)s")
@click.option("--debug", is_flag=True, help="Show a traceback for a defect of TunnelSync.")
def main(debug: bool) -> None:
    """Get datasets off machines that accept no inbound connection.

    Settings: flags over TUNNELSYNC_* over a TOML file (--config or TUNNELSYNC_CONFIG).
    Exit codes: 0 done, 2 usage, 3 not found, 4 refused, 5 unavailable, 6 timed out,
    7 broken off or failed verification, 130 interrupted.
    """
