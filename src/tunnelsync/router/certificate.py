"""The certificate that a router shows where it speaks TLS itself."""

import logging
import ssl

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
        """How TLS is spoken, or None."""
        if settings.tls_cert:
            self.context = self._loaded()
        elif settings.tls_key:
            what = "a key for TLS was given without a certificate, so that nothing would be secret"
            raise BadSetting(what, hint="Give --tls-cert, too.")

    async def watch(self, every_seconds: float) -> None:
        """Show one that has changed in new connections, for ever."""

        def take(_: ssl.SSLContext) -> None:
            self._load(self.context)
            log.info("certificate read again: %s", self._paths[0])

        # First read into another context: one that fails would leave ours without a key.
        stays = "the one read before stays in use"
        await self._files.watch(every_seconds, self._loaded, take, else_=stays)

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext | None) -> None:
        assert context is not None
        try:
            context.load_cert_chain(*self._paths)
        except OSError as exc:  # ssl.SSLError is one
            why = "they do not fit" if isinstance(exc, ssl.SSLError) else exc.strerror
            hint = (
                "Give the certificate and its chain with --tls-cert, the key with --tls-key; PEM."
            )
            what = f"cannot use {' and '.join(self._paths)} for TLS: {why}"
            raise BadSetting(what, hint=hint) from None
