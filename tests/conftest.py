"""Fixtures for every test."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from harness import System

if TYPE_CHECKING:
    from s3 import S3Server

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # Under `nohup` the processes of the tests would ignore it, too; so they do not, nor do we end.
    signal.signal(signal.SIGHUP, lambda *_: None)

# A busy machine is no reason to fail; CI tries the same examples each time.
hypothesis.settings.register_profile(
    "tunnelsync",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tunnelsync")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the store, and those that use one, for `make test-minio`."""
    for item in items:
        needs_store = "store_server" in getattr(item, "fixturenames", ())
        if needs_store or item.path.name == "test_store.py":
            item.add_marker(pytest.mark.store)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A router and connectors to be started by the test; ended, and their logs judged, after."""
    started = System(tmp_path)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def store_server() -> "Iterator[S3Server]":
    """A real S3 server: SeaweedFS, or MinIO with ``TUNNELSYNC_STORE_TESTS=minio``."""
    from s3 import s3_server

    with s3_server() as server:
        yield server
