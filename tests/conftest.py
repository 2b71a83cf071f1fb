"""What holds for all tests. The fixtures come from `replank.testing.plugin`, which pytest loads by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from replank.testing import servers
from replank_local import Stack
from tests.e2e.system import stack_folder

pytest_plugins = ["pytester"]

_TESTS: Final = Path(__file__).parent
_LONG: Final = ("chaos", "cli", "storefront")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take longest begin first: no process is left with one of them when the others have ended."""
    items.sort(key=lambda item: not any(_TESTS / folder in item.path.parents for folder in _LONG))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> AsyncIterator[str]:
    """The bootstrap servers of this process's Kafka: services have topics and consumer groups of fixed names."""
    if worker_id in {"master", "gw0"}:
        yield servers.setting("REPLANK_TEST_KAFKA")
        return
    with stack_folder(tmp_path_factory.mktemp("kafka")) as root:
        async with Stack(root, servers=["kafka"]) as stack:
            yield stack.endpoints.kafka
