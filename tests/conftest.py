"""What holds for all tests. The fixtures come from `replank.testing.plugin`, which pytest loads by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

pytest_plugins = ["pytester"]

_TESTS: Final = Path(__file__).parent
# They run whole services, whose topics and consumer groups have fixed names, on one Kafka.
_ONE_AT_A_TIME: Final = frozenset(
    {"archiver", "auth_cache", "benchmark", "cli", "common/flags", "schema", "storefront"}
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay together when several processes share the work: those of a file, and those that would meet."""
    for item in items:
        folder = item.path.parent.relative_to(_TESTS).as_posix()
        group = "services" if folder in _ONE_AT_A_TIME else "e2e" if folder == "e2e" else item.path.as_posix()
        item.add_marker(pytest.mark.xdist_group(group))
