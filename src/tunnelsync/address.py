"""The address of a router: what counts as one, and when plain http is refused; no I/O.

Over http the token and the data can be read and changed on the way, so another host than this
one is spoken to by https only, unless the user says otherwise.
"""

import ipaddress

from yarl import URL

from tunnelsync.errors import BadSetting, PlaintextRefused

HINT = "Write it as https://HOST[:PORT], for example https://router.example.org."


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine: localhost, 127.0.0.0/8 or ::1, taken literally."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def router_url(text: str, *, allow_plaintext: bool) -> URL:
    """Return the router's address, with the path ``/``.

    Raises `BadSetting` for anything but http or https with a host and perhaps a port, and
    `PlaintextRefused` for http to another host than this one without ``allow_plaintext``.
    """
    url = _parsed(text)
    if url.scheme == "http" and not allow_plaintext and not is_loopback(url.host or ""):
        raise PlaintextRefused(f"the router {url.origin()} is on another host, and not https")
    return url.origin().with_path("/")


def _parsed(text: str) -> URL:
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise _bad(text, "holds characters that an address cannot have")
    try:
        url = URL(text)
        port = url.port
    except ValueError:
        raise _bad(text, "is not an address") from None
    if url.scheme not in ("http", "https"):
        raise _bad(text, "does not begin with http:// or https://")
    if not url.host or not port:
        raise _bad(text, "names no host, or no port that there is")
    if "@" in url.raw_authority:
        raise BadSetting(
            "the router's address holds a user name or a password",
            hint="Give a token in TUNNELSYNC_TOKEN or with --token-file instead.",
        )
    if url.raw_path not in ("", "/") or "?" in text or "#" in text:
        raise _bad(text, "goes on after the host and the port")
    return url


def _bad(text: str, what: str) -> BadSetting:
    shown = ascii(text.split("?")[0].rsplit("@", 1)[-1][:200])
    return BadSetting(f"the router's address {shown} {what}", hint=HINT)
