"""Who somebody is: MAC addresses, tokens, and what each token may do; no I/O.

A token is 256 random bits, so the tokens file holds a plain SHA-256 of each: it cannot be
guessed back, and nobody who reads the file can use it.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import NewType

from tunnelsync import wire
from tunnelsync.errors import BadMac, BadRequest, BadSetting, Forbidden

Mac = NewType("Mac", str)
"""Twelve hex digits, lower case, in pairs joined by dashes."""

MAC_PATTERN = r"[0-9A-Fa-f]{2}(?:[:-]?[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2}"
"""The notations that are accepted: pairs with ``:``, ``-`` or nothing, and groups of four."""

_MAC = re.compile(MAC_PATTERN)
NOTE_CHARACTERS = 200


@lru_cache(1024)
def mac_address(text: str) -> Mac:
    """Return the one form of a MAC in any notation; raise `BadMac` for anything else."""
    if not _MAC.fullmatch(text):
        raise BadMac(f"{text[:64]!r} is not a MAC address")
    digits = re.sub(r"[:.-]", "", text).lower()
    return Mac("-".join(digits[i : i + 2] for i in range(0, 12, 2)))


def is_stable(mac: Mac) -> bool:
    """Tell whether a MAC was given by a maker: not zero, not multicast, not made up locally."""
    first = int(mac[:2], 16)
    return mac != "00-00-00-00-00-00" and not first & 0b11


class Role(Enum):
    """What a token is for."""

    CLIENT = "client"
    CONNECTOR = "connector"
    MONITOR = "monitor"
    """May see metrics and connectors, and no dataset."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One entry of the tokens file: whose hash may do what. A connector's has a MAC.

    ``note`` and ``created`` (UTC, ISO 8601) are for people.
    """

    id: str
    role: str
    sha256: str
    mac: str | None = None
    note: str | None = None
    created: str | None = None

    def require(self, role: Role, mac: Mac | None = None) -> None:
        """Raise `Forbidden` unless this token is of the role and, if given, bound to the MAC."""
        if self.role != role.value:
            raise Forbidden(f"a {self.role} token cannot do what a {role.value} does")
        if mac is not None and self.mac is not None and self.mac != mac:
            raise Forbidden(f"this token is not bound to {mac}")


@dataclass(frozen=True, slots=True)
class _TokensFile:
    tokens: tuple[Grant, ...]


def token_hash(token: str) -> str:
    """Return what the tokens file holds of a token; any text will do, ASCII or not."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def new_token(role: Role, mac: Mac | None = None, *, note: str = "") -> tuple[str, Grant]:
    """Make a token and its grant. A connector's needs a MAC, others take none."""
    if role is Role.CONNECTOR and mac is None:
        raise BadSetting("a connector's token is for one MAC", hint="Give it with --mac.")
    if role is not Role.CONNECTOR and mac is not None:
        raise BadSetting(f"a {role.value}'s token is for all connectors", hint="Leave --mac out.")
    if not note.isprintable():
        raise BadSetting("a note is printable text in UTF-8", hint="Change --note.")
    if len(note) > NOTE_CHARACTERS:
        raise BadSetting(f"a note has at most {NOTE_CHARACTERS} characters", hint="Shorten --note.")
    token = f"ts-{role.value}-{secrets.token_urlsafe(32)}"
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return token, Grant(
        secrets.token_hex(4), role.value, token_hash(token), mac, note or None, created
    )


def parse_tokens(data: bytes, name: str = "tokens file") -> Mapping[str, Grant]:
    """Read a tokens file: hash to grant. Raises `BadSetting` that says what is wrong with which."""
    try:
        grants = wire.decode(_TokensFile, wire.loads(data)).tokens
        for grant in grants:
            role = Role(grant.role)
            if (role is Role.CONNECTOR) != (grant.mac is not None):
                raise BadSetting(f"{name}: token {grant.id} needs a MAC for its role, or none")
            if grant.mac is not None and mac_address(grant.mac) != grant.mac:
                raise BadSetting(f"{name}: the MAC of {grant.id} is not in its usual form")
    except (BadRequest, BadMac, ValueError) as exc:
        hint = "Restore it, or make another one with `tunnelsync token create`."
        raise BadSetting(f"{name}: {exc}", hint=hint) from None
    return {grant.sha256: grant for grant in grants}


def dump_tokens(grants: Iterable[Grant]) -> bytes:
    """Return the tokens file that holds these grants."""
    return wire.dumps(_TokensFile(tuple(grants))) + b"\n"
