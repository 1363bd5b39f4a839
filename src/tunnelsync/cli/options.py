"""Flags that commands share, made from the settings; and the settings made from the flags.

Flags win over ``TUNNELSYNC_*``, which win over the TOML file, which wins over the defaults.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import click

from tunnelsync import configuration
from tunnelsync.errors import BadSetting
from tunnelsync.protocol import printable
from tunnelsync.settings import ClientSettings, ConnectorSettings, Secret, StoreSettings

Command = TypeVar("Command", bound=Callable[..., Any])
Bearer = TypeVar("Bearer", ClientSettings, ConnectorSettings)
STORE = (
    "endpoint",
    "public_endpoint",
    "region",
    "bucket",
    "prefix",
    "create_bucket",
    "url_lifetime_seconds",
)
STORE_PREFIX = "store_"
METAVARS = {
    "router": "URL",
    "token_file": "FILE",
    "tokens": "FILE",
    "tls_cert": "FILE",
    "tls_key": "FILE",
    "root": "FOLDER",
    "mac": "MAC",
    "endpoint": "URL",
    "public_endpoint": "URL",
}


def settings_flags(role: type, *names: str, prefix: str = "") -> Callable[[Command], Command]:
    """Add a flag for each named field; its help tells the reason of the field's default."""

    def add(command: Command) -> Command:
        for spec in reversed([one for name in names for one in fields(role) if one.name == name]):
            flag = f"--{prefix}{spec.name}".replace("_", "-")
            variable = configuration.env_name(role, spec)
            why = f"{spec.metadata['why']} [{variable}"
            why += f"; default {spec.default}]" if str(spec.default) else "]"
            if isinstance(spec.default, bool):
                option = click.option(
                    flag, prefix + spec.name, flag_value=True, default=None, help=why
                )
            else:
                metavar = METAVARS.get(spec.name) or (
                    "N" if type(spec.default) is not str else "TEXT"
                )
                option = click.option(flag, prefix + spec.name, metavar=metavar, help=why)
            command = option(command)
        return command

    return add


config_flag = click.option(
    "--config", metavar="FILE", help="a TOML file with settings [TUNNELSYNC_CONFIG]"
)
json_flag = click.option("--json", "as_json", is_flag=True, help="print one JSON object")


retry_flag = click.option(
    "--retry-for",
    "retry_for_seconds",
    type=click.FloatRange(0),
    metavar="S",
    help="wait so long for a line, router or connector that is away "
    "[TUNNELSYNC_CLIENT_RETRY_FOR_SECONDS; "
    f"default {ClientSettings().retry_for_seconds:g}]",
)


def log_flags(command: Command) -> Command:
    """Add the flags of every role that writes a log."""
    level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="what the log on stderr tells",
    )
    form = click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="lines for people, or a JSON object a line",
    )
    return level(form(command))


def client_flags(command: Command) -> Command:
    """Add the flags of every command that speaks to a router."""
    flags = settings_flags(ClientSettings, "router", "token_file", "allow_plaintext")
    return flags(config_flag(command))


def store_flags(command: Command) -> Command:
    """Add the flags of the store; its keys come from the environment alone."""
    return settings_flags(StoreSettings, *STORE, prefix=STORE_PREFIX)(command)


def load(role: type[configuration.Role], flags: Mapping[str, Any]) -> configuration.Role:
    """Build a role's settings from the flags of a command, the environment and the file.

    Raises `BadSetting` for what is unknown or wrong.
    """
    config = flags.get("config") or os.environ.get("TUNNELSYNC_CONFIG")
    return configuration.load(
        role,
        flags={name: value for name, value in flags.items() if name != "config"},
        environ=os.environ,
        toml=_toml(config) if config else None,
    )


def load_store(flags: Mapping[str, Any]) -> StoreSettings:
    """Build the settings of the store from the flags of a role's command."""
    own = {
        name.removeprefix(STORE_PREFIX): value
        for name, value in flags.items()
        if name.startswith(STORE_PREFIX)
    }
    return load(StoreSettings, own | {"config": flags.get("config")})


def with_token(loaded: Bearer, flags: Mapping[str, Any]) -> Bearer:
    """Return the settings with the token in them, read from its file where one is named.

    The nearer one wins: ``--token-file``, ``TUNNELSYNC_TOKEN``, ``TUNNELSYNC_TOKEN_FILE``, then
    the TOML file. Raises `BadSetting` for a file that cannot be read, or is empty.
    """
    named_in_environment = bool(os.environ.get("TUNNELSYNC_TOKEN_FILE"))
    token_in_environment = bool(os.environ.get("TUNNELSYNC_TOKEN"))
    from_file = bool(flags.get("token_file")) or (
        not token_in_environment and (named_in_environment or not loaded.token)
    )
    if not from_file or not loaded.token_file:
        return loaded
    return replace(loaded, token=_read_token(loaded.token_file))


def _read_token(path: str) -> Secret:
    what, hint = f"the token file {printable(path)}", "Give --token-file a file with one token."
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(65536).strip()
    except OSError as exc:
        raise BadSetting(f"cannot read {what}: {exc.strerror}", hint=hint) from None
    except UnicodeDecodeError:
        raise BadSetting(f"{what} is not text", hint=hint) from None
    if not token:
        raise BadSetting(f"{what} is empty", hint=hint)
    return Secret(token)


def _toml(path: str) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        what = f"cannot read the settings {printable(path)}: {exc.strerror}"
        raise BadSetting(what, hint="Give --config the path of a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise BadSetting(f"the settings {printable(path)} are not TOML: {exc}") from None
