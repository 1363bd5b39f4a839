"""Who may call: bearer tokens from a file that holds hashes, or this machine alone.

Without a tokens file only loopback is served. A browser on this machine can be made to call
loopback by any web page, so then a request from a page, or under a foreign host name, is refused.
"""

import logging
import secrets
from collections.abc import Callable, Mapping, Set
from functools import lru_cache
from pathlib import Path

from aiohttp import web
from blake3 import blake3
from multidict import istr
from yarl import URL

from tunnelsync import protocol
from tunnelsync.address import is_loopback
from tunnelsync.errors import BadRequest, BadSetting, Forbidden, Unauthorized
from tunnelsync.identity import Grant, Mac, Role, mac_address, parse_tokens, token_hash
from tunnelsync.protocol import printable
from tunnelsync.router.reread import Files
from tunnelsync.settings import RouterSettings

log = logging.getLogger("tunnelsync.router")

CACHED = 1024  # clients that are known again without work
LABEL_BYTES = 8  # so that among thousands of clients no two have the same

FOREIGN = tuple(
    map(istr, ("Origin", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via"))
)
"""Headers of a request that a web page made, or that a proxy passed on for somebody else."""


class Access:
    """The tokens that are valid now, or None where the router serves loopback alone.

    Raises `BadSetting` for another host without tokens, and for a tokens file that is wrong.
    """

    def __init__(self, settings: RouterSettings) -> None:
        self._path = Path(settings.tokens) if settings.tokens else None
        self._file = Files(*filter(None, (settings.tokens,)))
        self._grants: Mapping[str, Grant] | None = None
        self._macs: Set[Mac] = frozenset()
        self._key = secrets.token_bytes(blake3.key_size)
        if self._path is not None:
            self._take(self._read())
        elif not is_loopback(settings.host):
            raise BadSetting(
                f"without a tokens file the router serves this machine alone, not {settings.host}",
                hint="Make tokens with `tunnelsync token create --role client` and `--role "
                "connector --mac MAC`, then start the router with --tokens tokens.json.",
            )

    @property
    def open(self) -> bool:
        """Tell whether no token is asked for."""
        return self._grants is None

    def grant(self, request: web.Request) -> Grant | None:
        """Return what a request's token grants; None where none is asked for.

        Raises `Unauthorized`, or `Forbidden` for what a foreign web page can send.
        """
        if self._grants is None:
            headers = request.headers
            page = any(name in headers for name in FOREIGN)
            # A proxy is asked for a whole address (RFC 9112, 3.2.2), which counts then.
            whole = not request.raw_path.startswith("/")
            here = is_loopback(request.url.host or "") if whole else _is_here(request.host)
            if page or not here:
                called = request.url.host or ""
                whom = "web pages or proxies" if page else f"calls of it as {called[:256]!r}"
                raise Forbidden(
                    f"without a tokens file the router answers this machine alone, and no {whom}",
                    hint="Start the router with --tokens to serve other names and web pages.",
                )
            return None
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("a token is needed, and none was sent")
        grant = self._grants.get(token_hash(token.strip()))
        if grant is None:
            raise Unauthorized("the token is not known to this router")
        return grant

    def label(self, request: web.Request) -> str:
        """Return who a client is, as connectors may know it: the same for each of its requests.

        It is made of the token, or without tokens of the address, with a key of this process's:
        nobody can go back from it, nor compare it with that of another router.
        """
        grant = request[GRANT]
        return _label(grant.sha256 if grant else request.remote or "", self._key)

    def whom(self, request: web.Request) -> str:
        """Return who a client is, for whoever runs the router: its address and its token's id."""
        grant, address = request[GRANT], address_of(request)
        return f"{address} (token {grant.id})" if grant else address

    def expected(self) -> Set[Mac]:
        """Return the connectors that have a token, also those that have not come yet."""
        return self._macs

    async def watch(
        self, every_seconds: float, on_change: Callable[[Mapping[str, Grant]], None]
    ) -> None:
        """Look at the tokens file for ever; a file that is wrong leaves what was valid."""

        def take(grants: Mapping[str, Grant]) -> None:
            self._take(grants)
            log.info("tokens file read: %d tokens", len(grants))
            on_change(grants)

        stays = "the tokens read before stay valid"
        await self._file.watch(every_seconds, self._read, take, else_=stays)

    def _take(self, grants: Mapping[str, Grant]) -> None:
        self._grants = grants
        self._macs = frozenset(Mac(grant.mac) for grant in grants.values() if grant.mac)

    def _read(self) -> Mapping[str, Grant]:
        assert self._path is not None
        path = printable(str(self._path))
        try:
            return parse_tokens(self._path.read_bytes(), f"tokens file {path}")
        except OSError as exc:
            what = f"cannot read the tokens file {path}: {exc.strerror}"
            hint = "`tunnelsync token create` makes one, and --tokens names it."
            if isinstance(exc, PermissionError):
                hint = "It must belong to the user that the router runs as."
            raise BadSetting(what, hint=hint) from None


ACCESS: web.AppKey[Access] = web.AppKey("access", Access)
GRANT = "tunnelsync-grant"
"""Where a client's request keeps what it was granted."""


@lru_cache(CACHED)
def _is_here(host: str) -> bool:
    """Tell whether a ``Host`` header names this machine."""
    try:
        return is_loopback(URL(f"http://{host}").host or "")
    except ValueError:
        return False


def address_of(request: web.Request) -> str:
    """Return where a request comes from: with a proxy, where that is."""
    return request.remote or "nowhere"


@lru_cache(CACHED)
def _label(who: str, key: bytes) -> str:
    return blake3(who.encode(), key=key).hexdigest(LABEL_BYTES)


def require_client(request: web.Request, *, monitors: bool = False) -> None:
    """Raise unless the request may do what a client does, or where so said what a monitor does."""
    grant = request[GRANT] = request.app[ACCESS].grant(request)
    if grant is not None and not (monitors and grant.role == Role.MONITOR.value):
        grant.require(Role.CLIENT)


def connector_of(request: web.Request) -> tuple[Grant | None, Mac | None]:
    """Return what a connector's request was granted, and which connector it is.

    A token is bound to its MAC. Without tokens the connector's header says who it is.
    """
    grant = request.app[ACCESS].grant(request)
    named = request.headers.get(protocol.H_CONNECTOR)
    mac = None if named is None else mac_address(named)
    if grant is None:
        return None, mac
    grant.require(Role.CONNECTOR, mac)
    if grant.mac is None:
        raise BadRequest("a connector's token without a MAC")
    return grant, Mac(grant.mac)
