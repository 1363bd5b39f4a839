"""The settings of a role out of flags, environment and a TOML file.

`load` folds flags over ``TUNNELSYNC_*`` over a TOML file over the defaults, and refuses what it
does not know. It reads no file and no environment itself: the command line does.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

from tunnelsync.errors import BadSetting
from tunnelsync.meant import meant
from tunnelsync.settings import (
    ROLES,
    ClientSettings,
    ConnectorSettings,
    RouterSettings,
    Secret,
    StoreSettings,
    check,
)

Role = TypeVar("Role", StoreSettings, RouterSettings, ConnectorSettings, ClientSettings)
PREFIX = "TUNNELSYNC_"
BOOLEANS = dict.fromkeys(("1", "true", "yes"), True) | dict.fromkeys(
    ("0", "false", "no", ""), False
)
NOT_SETTINGS = frozenset({"CONFIG", "STORE_TESTS"})
"""Environment names that are read elsewhere: the path of the TOML file, and one of the tests."""


def env_name(role: type, spec: Field[Any]) -> str:
    """Return the environment variable of a field: ``TUNNELSYNC_STORE_BUCKET``."""
    special = spec.metadata.get("env")
    return PREFIX + (special or f"{role.table}_{spec.name}".upper())  # type: ignore[attr-defined]


def load(
    role: type[Role],
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    toml: Mapping[str, Any] | None = None,
) -> Role:
    """Build the settings of one role.

    ``flags`` maps field names to values, None meaning not given; ``environ`` is the whole
    environment; ``toml`` is the whole parsed file, with a table for each role. Raises
    `BadSetting` for an unknown key, anywhere in them, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    _check_toml(toml or {})
    _check_environ(environ or {})
    table = (toml or {}).get(role.table, {})
    for spec in fields(role):
        name = env_name(role, spec)
        if spec.name in table:
            where = f"[{role.table}] {spec.name}"
            values[spec.name] = _convert(spec, table[spec.name], where)
        if environ and name in environ:
            values[spec.name] = _convert(spec, environ[name], name)
        if flags and flags.get(spec.name) is not None:
            where = "--" + spec.name.replace("_", "-")
            values[spec.name] = _convert(spec, flags[spec.name], where)
    return role(**values)


def _check_toml(toml: Mapping[str, Any]) -> None:
    known = {role.table: {spec.name for spec in fields(role)} for role in ROLES}
    for table, keys in toml.items():
        if table not in known:
            raise BadSetting(f"unknown table or key [{table}] in the settings file")
        if not isinstance(keys, Mapping):
            what = f"{table!r} in the settings file is no table: settings stand under [client], ..."
            raise BadSetting(what)
        for key in keys:
            if key not in known[table]:
                what = f"unknown setting {key!r} in [{table}] of the settings file"
                raise BadSetting(what, hint=_hint(key, {one: one for one in known[table]}))


def _check_environ(environ: Mapping[str, str]) -> None:
    known = {env_name(role, spec): spec.name.upper() for role in ROLES for spec in fields(role)}
    for name in environ:
        bare = name.removeprefix(PREFIX)
        if bare == name or name in known or bare in NOT_SETTINGS:
            continue
        role, _, rest = bare.partition("_")
        own = {one: word for one, word in known.items() if one.startswith(f"{PREFIX}{role}_")}
        hint = _hint(rest, own) or _hint(rest if own else bare, known)
        raise BadSetting(f"unknown setting {name} in the environment", hint=hint)


def _hint(bare: str, known: Mapping[str, str]) -> str | None:
    found = " or ".join(sorted(meant(bare, known)))
    return f"Did you mean {found}? {BadSetting.next_step}" if found else None


def _convert(spec: Field[Any], value: Any, where: str) -> Any:
    """Turn a text or TOML value into the type of the field's default, or raise `BadSetting`."""
    default = spec.default
    assert default is not MISSING
    kind = type(default)
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in BOOLEANS:
            return BOOLEANS[value.lower()]
        raise BadSetting(f"{where} must be true or false")
    if isinstance(default, str):
        if not isinstance(value, str):
            raise BadSetting(f"{where} must be a text")
        return kind(value.reveal() if isinstance(value, Secret) else value)
    if isinstance(value, bool):
        raise BadSetting(f"{where} must be a number")
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise BadSetting(f"{where} must be a number, not {value!r}") from None
    check(spec, value if isinstance(value, float) else number, where)
    return number
