"""``tunnelsync token``: make, list and revoke the tokens of a router's tokens file.

The file holds hashes alone. It is replaced in one step, under a lock, so a router that reads it
meanwhile sees the old one or the new one.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import click

from tunnelsync.cli import options, output, terminal
from tunnelsync.errors import BadSetting, NotFound, WriteFailed
from tunnelsync.identity import Grant, Role, dump_tokens, mac_address, new_token, parse_tokens
from tunnelsync.protocol import printable
from tunnelsync.settings import RouterSettings

DEFAULT = "tokens.json"


@click.group()
def token() -> None:
    """Make, list and revoke tokens. A running router notices within a second or so."""


def _file_flags(command: Callable[..., None]) -> Callable[..., None]:
    return options.settings_flags(RouterSettings, "tokens")(options.config_flag(command))


@token.command()
@click.option("--role", required=True, type=click.Choice([role.value for role in Role]))
@click.option("--mac", help="the connector's MAC; for a connector's token only")
@click.option("--note", default="", help="whose it is, or what for; `token list` shows it")
@_file_flags
def create(role: str, mac: str | None, note: str, **flags: Any) -> None:
    """Make a token: print it once on stdout, and keep its hash in the tokens file."""
    path = _path(flags)
    made, grant = new_token(Role(role), None if mac is None else mac_address(mac), note=note)
    with _changing(path) as grants:
        grants[grant.sha256] = grant
    try:
        output.at_once(made)
    except WriteFailed as error:
        with _changing(path) as grants:  # for nobody has it
            grants.pop(grant.sha256, None)
        raise WriteFailed(f"{error.message}; no token was made", hint="") from None
    output.say(
        f"Token {grant.id} is in {output.shown_name(str(path))}; this is the only time it is "
        f"shown. Give it to the {role} in TUNNELSYNC_TOKEN or a file for --token-file, and run "
        f"the router with --tokens {output.shown_name(str(path))}."
    )


@token.command("list")
@options.json_flag
@_file_flags
def list_(as_json: bool, **flags: Any) -> None:
    """List the tokens: id, role, MAC, when made, note. The tokens themselves are nowhere."""
    grants = list(_read(_path(flags), missing_is_empty=False).values())
    heads = ("id", "role", "mac", "created", "note")
    if as_json:
        output.success(tokens=[{head: getattr(one, head) for head in heads} for one in grants])
        return
    terminal.table(heads, ([getattr(one, head) or "-" for head in heads] for one in grants))


@token.command()
@click.argument("token_id", metavar="ID")
@_file_flags
def revoke(token_id: str, **flags: Any) -> None:
    """Take the token ID (from `token list`) out of the tokens file."""
    path = _path(flags)
    with _changing(path, missing_is_empty=False) as grants:
        found = [key for key, grant in grants.items() if grant.id == token_id]
        if not found:
            raise NotFound(
                f"there is no token {printable(token_id)} in {printable(str(path))}",
                hint="`tunnelsync token list` shows the ids.",
            )
        for key in found:
            del grants[key]
    output.say(f"token {token_id} is revoked")


def _path(flags: Mapping[str, Any]) -> Path:
    return Path(options.load(RouterSettings, flags).tokens or DEFAULT)


def _read(path: Path, *, missing_is_empty: bool) -> dict[str, Grant]:
    try:
        return dict(parse_tokens(path.read_bytes(), f"tokens file {printable(str(path))}"))
    except FileNotFoundError:
        if missing_is_empty:
            return {}
        raise BadSetting(
            f"there is no tokens file {printable(str(path))}",
            hint="`tunnelsync token create` makes it, and --tokens names another one.",
        ) from None
    except OSError as exc:
        raise BadSetting(f"cannot read {printable(str(path))}: {exc.strerror}") from None


@contextmanager
def _changing(path: Path, *, missing_is_empty: bool = True) -> Iterator[dict[str, Grant]]:
    """Yield the grants, and write them back if nothing was raised; one process at a time."""
    path = Path(os.path.realpath(path))  # a link stays one, and is no way past the lock
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise BadSetting(f"no folder {printable(str(path.parent))}: {exc.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # the file itself is replaced: its lock would be too
        grants = _read(path, missing_is_empty=missing_is_empty)
        yield grants
        _replace(path, dump_tokens(grants.values()), folder)
    finally:
        os.close(folder)


def _replace(path: Path, data: bytes, folder: int) -> None:
    old = path.stat() if path.exists() else None
    mode = old.st_mode & 0o777 if old else 0o600
    # Whose router reads it: root makes one for whoever the folder belongs to.
    owner = old or (os.fstat(folder) if os.geteuid() == 0 else None)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                new = os.fstat(descriptor)
                if owner and (owner.st_uid, owner.st_gid) != (new.st_uid, new.st_gid):
                    with nullcontext() if old else suppress(PermissionError):
                        os.fchown(descriptor, owner.st_uid, owner.st_gid)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            os.replace(name, path)
            os.fsync(folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except OSError as exc:
        whose = "Run this as the user whose file it is, or as root"
        free = "See that there is room in its folder"
        raise WriteFailed(
            f"cannot write {printable(str(path))}: {exc.strerror}",
            hint=f"{whose if isinstance(exc, PermissionError) else free}; it is as it was.",
        ) from None
