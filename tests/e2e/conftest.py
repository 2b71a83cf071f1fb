"""The running system, once for all tests of a file: what idles takes from those that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.system import System, running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """The four services, on servers of their own."""
    async with running(tmp_path_factory.mktemp("e2e")) as started:
        yield started
