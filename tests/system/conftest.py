"""Fixtures for tests that play a connector to a real router."""

from collections.abc import AsyncIterator, Iterator

import pytest

from harness import Router
from played_connector import PlayedConnector, another_mac, played, router_alone


@pytest.fixture(scope="module", params=[True, False], ids=["zero copy", "copies"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Router]:
    """One router for all tests of a file that leave it as it is: each brings a connector."""
    with router_alone(tmp_path_factory.mktemp("shared"), zero_copy=request.param) as router:
        yield router


@pytest.fixture
async def connector(shared: Router) -> AsyncIterator[PlayedConnector]:
    """A connector of this test's own, which is connected."""
    async with played(shared.url, another_mac()) as one:
        yield one
