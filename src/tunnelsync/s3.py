"""The S3 library: its clients, and its errors as ours.

This is the only file that imports aioboto3 and botocore, and only on use: they take half a second.
"""

import asyncio
import re
import ssl
from functools import cache
from typing import Any

from aiohttp import ClientError as HttpError

from tunnelsync import objects
from tunnelsync.errors import StoreUnavailable, TunnelSyncError
from tunnelsync.settings import StoreSettings


def make_clients(settings: StoreSettings) -> list[Any]:
    """Return the client that uploads and, last, the one that signs for the public endpoint.

    They are made on a loop of this thread's, and bound to none before their first request.
    """
    import aioboto3
    from botocore.config import Config
    from botocore.session import Session

    # Of its own the library knows AWS_CA_BUNDLE alone, and for the rest what it brings along.
    bundle = Session().get_config_variable("ca_bundle")
    authorities = None if bundle else ssl.get_default_verify_paths().cafile

    config = Config(
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=settings.connect_seconds,
        read_timeout=None,  # aiohttp's starts at "100 Continue", ours in store.py
        retries={"total_max_attempts": max(1, settings.attempts), "mode": "standard"},
        max_pool_connections=max(1, settings.connections),
        s3={"addressing_style": "path", "payload_signing_enabled": False},
    )

    async def make(endpoint: str) -> Any:
        context = aioboto3.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.region,
            aws_access_key_id=settings.access_key.reveal() or None,
            aws_secret_access_key=settings.secret_key.reveal() or None,
            config=config,
            verify=authorities,
        )
        return await context.__aenter__()

    endpoints = dict.fromkeys((settings.endpoint, settings.public))
    return [asyncio.run(make(one)) for one in endpoints]


@cache
def errors() -> tuple[type[Exception], ...]:
    """What boto and the network raise; a time-out is an `OSError`."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return BotoCoreError, ClientError, ResponseParserError, HttpError, OSError


def status_of(exc: Exception) -> int:
    """Return the HTTP status that the store answered with, or 0 where there was no answer."""
    from botocore.exceptions import ClientError

    return objects.answered(exc.response)[0] if isinstance(exc, ClientError) else 0


def is_silence(exc: Exception) -> bool:
    """Tell whether it took all the time there is to find that there is no answer."""
    from botocore.exceptions import ConnectTimeoutError

    return isinstance(exc, TimeoutError | ConnectTimeoutError)


def error_of(exc: Exception, where: str, settings: StoreSettings) -> TunnelSyncError:
    """Return our error for one of boto's or the network's, without what they quote."""
    from botocore import exceptions as boto

    if isinstance(exc, boto.ClientError):
        return objects.refusal(where, *objects.answered(exc.response))
    if isinstance(exc, TimeoutError):
        seconds = settings.read_seconds
        return StoreUnavailable(f"{where} was silent for {seconds:g} s")
    if isinstance(exc, boto.ConnectTimeoutError):
        seconds = settings.connect_seconds
        return StoreUnavailable(f"{where} took no connection in {seconds:g} s")
    if isinstance(exc, boto.SSLError):
        found = re.search(r"certificate verify failed: ([\w ,'.-]+)", str(exc))
        why = found[1].strip() if found else "it speaks no TLS, or another version"
        return StoreUnavailable(
            f"{where} and the connector's machine do not agree on TLS: {why}",
            hint="An authority of your own is trusted by SSL_CERT_FILE, there, or AWS_CA_BUNDLE.",
        )
    if isinstance(exc, boto.NoCredentialsError | boto.PartialCredentialsError):
        return objects.no_keys(where, "needs keys, and there are none")
    network = boto.ConnectionError, boto.HTTPClientError
    if isinstance(exc, boto.BotoCoreError) and not isinstance(exc, network):
        return objects.no_keys(where, f"cannot be used ({type(exc).__name__})")
    return StoreUnavailable(f"{where} cannot be reached, or is no S3 store")
