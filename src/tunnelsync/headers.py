"""Header values made of what others named; no I/O.

A dataset's name may hold any character of Unicode but NUL. What comes out of here is printable
ASCII, for a CR, LF, NUL or ESC in a header breaks the answer, and a quote would end the value.
"""

from urllib.parse import quote

ATTR_CHARS = "!#$&+-.^_`|~"
"""What RFC 8187 leaves as it is in an extended value, besides letters and digits."""

UNQUOTABLE = frozenset('"\\%/')
"""Printable, and still misread inside the quotes of ``filename`` by one reader or another."""


def content_disposition(name: str) -> str:
    """Return the ``Content-Disposition`` that saves a dataset under its base name.

    Both forms of RFC 6266: ``filename*`` carries the name as it is (RFC 8187), ``filename`` an
    ASCII likeness, ``_`` for each character it cannot hold, for those who read no other.
    """
    base = name.rsplit("/", 1)[-1]
    plain = "".join(c if " " <= c <= "~" and c not in UNQUOTABLE else "_" for c in base)
    exact = quote(base, safe=ATTR_CHARS, errors="replace")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"
