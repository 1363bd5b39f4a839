"""The environment's HTTP proxy for a request: HTTPS_PROXY, HTTP_PROXY and NO_PROXY; no I/O.

aiohttp's own ``trust_env`` reads ``~/.netrc`` too: an entry for the host then clashes with our
``Authorization``, or sends a password to a store.
"""

import urllib.request
from typing import Any

from aiohttp import BasicAuth
from yarl import URL

from tunnelsync.address import is_loopback


def proxy_for(url: URL) -> dict[str, Any]:
    """Return the arguments that send a request by the environment's proxy, never for loopback."""
    host = url.host or ""
    if is_loopback(host):
        return {}
    proxy = urllib.request.getproxies().get(url.scheme)
    if not proxy or urllib.request.proxy_bypass(host):
        return {}
    address = URL(proxy if "://" in proxy else f"http://{proxy}")
    if address.user is None:
        return {"proxy": address}
    auth = BasicAuth(address.user, address.password or "")
    return {"proxy": address.with_user(None), "proxy_auth": auth}
