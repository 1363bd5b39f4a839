"""The certificate that a router shows where it speaks TLS itself."""

import logging
import ssl
from typing import Any

from tunnelsync.errors import BadSetting
from tunnelsync.router.reread import Files
from tunnelsync.settings import RouterSettings

log = logging.getLogger("tunnelsync.router")


class Certificate:
    """A certificate and its key, read again when they have changed; without one, no TLS.

    Raises `BadSetting` for files that cannot be used.
    """

    def __init__(self, settings: RouterSettings) -> None:
        self._paths = tuple(filter(None, (settings.tls_cert, settings.tls_key)))
        self._files = Files(*self._paths)
        self.context: ssl.SSLContext | None = None
        """How TLS is spoken, or None: each handshake goes on with what was read last."""
        if settings.tls_cert:
            self.context = self._now = self._read()
            self.context.sni_callback = self._show
        elif settings.tls_key:
            what = "a key for TLS was given without a certificate, so that nothing would be secret"
            raise BadSetting(what, hint="Give --tls-cert, too.")

    async def watch(self, every_seconds: float) -> None:
        """Show one that has changed in new connections, for ever."""

        def take(context: ssl.SSLContext) -> None:
            self._now = context
            log.info("certificate read again: %s", self._paths[0])

        stays = "the one read before stays in use"
        await self._files.watch(every_seconds, self._read_alone, take, else_=stays)

    def _show(self, tls: Any, _: str | None, __: ssl.SSLContext) -> None:
        """Called in each handshake, also without a name."""
        tls.context = self._now

    def _read_alone(self) -> ssl.SSLContext:
        """Read them when nobody is there to type a passphrase."""
        return self._read(password="")

    def _read(self, password: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        key = self._paths[1] if len(self._paths) > 1 else None
        try:
            context.load_cert_chain(self._paths[0], key, password)
        except OSError as exc:  # ssl.SSLError is one
            why = "they do not fit" if isinstance(exc, ssl.SSLError) else exc.strerror
            if not key and isinstance(exc, ssl.SSLError):
                why = "it is none, or its key is not in it"
            hint = (
                "Give the certificate and its chain with --tls-cert, the key with --tls-key; PEM."
            )
            what = f"cannot use {' and '.join(self._paths)} for TLS: {why}"
            raise BadSetting(what, hint=hint) from None
        return context
