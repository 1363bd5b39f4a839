"""JSON to frozen dataclasses and back, strictly typed; no I/O.

Unknown members are ignored, so that a later version may add some; a missing or wrongly typed
one is a `BadRequest`. Numbers are what orjson takes (no NaN), and whole ones stay below 2**63.
"""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import orjson

from tunnelsync.errors import BadRequest

Message = TypeVar("Message")
Cast = Callable[[Any, str], Any]
PLAIN, SCALARS, LISTS = (str, bool, float), (str, int, float), (tuple, list)
"""Made once: ``str | int`` is a new object each time."""


def loads(data: bytes | bytearray | memoryview | str) -> dict[str, Any]:
    """Parse one JSON object; raise `BadRequest` for anything else."""
    try:
        value = orjson.loads(data)
    except (orjson.JSONDecodeError, RecursionError) as exc:
        raise BadRequest(f"not valid JSON: {exc}") from None
    if not isinstance(value, dict):
        raise BadRequest("a JSON object was expected")
    return value


def dumps(message: object) -> bytes:
    """Return the JSON of a message, without the members that are None."""
    return orjson.dumps(_plain(message))


def decode(kind: type[Message], value: Mapping[str, Any]) -> Message:
    """Build a dataclass from a parsed JSON object, or raise `BadRequest`."""
    arguments: dict[str, Any] = {}
    for name, plain, cast, required in _members(kind):  # type: ignore[arg-type]
        if (given := value.get(name)) is not None:
            arguments[name] = given if type(given) is plain else cast(given, name)
        elif required:
            raise BadRequest(f"{kind.__name__}: {name!r} is missing")
    return kind(**arguments)


@cache
def _members(kind: type) -> tuple[tuple[str, Any, Cast, bool], ...]:
    """Return of each member its name, the type that needs no check (most do not), what checks
    the others, and whether it must be there."""
    hints = {name: _bare(hint) for name, hint in typing.get_type_hints(kind).items()}
    return tuple(
        (
            f.name,
            hints[f.name] if hints[f.name] in PLAIN else None,
            _cast_to(hints[f.name]),
            f.default is MISSING and f.default_factory is MISSING,
        )
        for f in fields(kind)
    )


def _bare(hint: Any) -> Any:
    """Return a hint without None and without the name that a `NewType` gives it."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(h for h in typing.get_args(hint) if h is not types.NoneType)
    return getattr(hint, "__supertype__", hint)


def _cast_to(hint: Any) -> Cast:
    """Return what takes a value and its name, and returns it as the hint has it."""
    kind = _bare(hint)

    def scalar(value: Any, name: str) -> Any:
        if type(value) is not kind or (kind is int and not -(2**63) <= value < 2**63):
            raise BadRequest(f"{name!r} must be of type {kind.__name__}")
        return value

    def number(value: Any, name: str) -> Any:
        return scalar(float(value) if type(value) is int else value, name)

    def items(value: Any, name: str) -> Any:
        if type(value) is not list:
            raise BadRequest(f"{name!r} must be a list")
        return tuple([cast(one, name) for one in value])

    def object_(value: Any, name: str) -> Any:
        if type(value) is not dict:
            raise BadRequest(f"{name!r} must be an object")
        return decode(kind, value)

    if typing.get_origin(kind) is tuple:
        cast = _cast_to(typing.get_args(kind)[0])
        return items
    if is_dataclass(kind):
        return object_
    return number if kind is float else scalar


@cache
def _names(kind: type) -> tuple[str, ...] | None:
    """Return the members of a dataclass, or None for any other type."""
    return tuple(f.name for f in fields(kind)) if is_dataclass(kind) else None


def _plain(value: object) -> object:
    if isinstance(value, SCALARS):
        return value
    if (names := _names(type(value))) is not None:  # type: ignore[arg-type]
        pairs = ((name, getattr(value, name)) for name in names)
        return {name: _plain(one) for name, one in pairs if one is not None}
    if isinstance(value, LISTS):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
