"""A certificate made for a test."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


class Certificate:
    """A self-signed certificate: its PEM file, which clients trust as well, and its key."""

    def __init__(self, folder: Path, *names: str) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("openssl is not installed here, so there is no certificate")
        folder.mkdir(parents=True, exist_ok=True)
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        subprocess.run(
            (
                *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
                *("-nodes", "-days", "2", "-subj", "/CN=test", "-addext"),
                "subjectAltName=" + ",".join(names),
                *("-keyout", str(self.key), "-out", str(self.cert)),
            ),
            check=True,
            capture_output=True,
        )

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of a router that shows it."""
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key)

    @property
    def trust(self) -> dict[str, str]:
        """The environment of who trusts it."""
        return {"SSL_CERT_FILE": str(self.cert)}

    @property
    def context(self) -> ssl.SSLContext:
        """How a server speaks TLS with it."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert, self.key)
        return context
