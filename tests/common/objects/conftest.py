from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from replank.objects import ObjectStore, ObjectStoreSettings
from replank.testing.faults import FaultProxy
from replank.testing.servers import Bucket

SettingsFactory = Callable[..., ObjectStoreSettings]


@pytest.fixture
def settings_for(s3: Bucket) -> SettingsFactory:
    """Settings of the test's own bucket, any of them overridden."""

    def make(**overrides: object) -> ObjectStoreSettings:
        values: dict[str, object] = {
            "url": s3.url,
            "access_key": s3.access_key,
            "secret_key": s3.secret_key,
            "bucket": s3.bucket,
            "part_size": 5 * 1024 * 1024,
            "attempts": 3,
        }
        return ObjectStoreSettings.model_validate(values | overrides)

    return make


@pytest_asyncio.fixture
async def store(settings_for: SettingsFactory) -> AsyncIterator[ObjectStore]:
    async with ObjectStore(settings_for()) as opened:
        yield opened


@pytest_asyncio.fixture
async def proxy(s3: Bucket) -> AsyncIterator[FaultProxy]:
    """A way to the store that can be broken."""
    async with FaultProxy(s3.url.removeprefix("http://")) as opened:
        yield opened


@pytest_asyncio.fixture
async def proxied(proxy: FaultProxy, settings_for: SettingsFactory) -> AsyncIterator[ObjectStore]:
    """The same bucket, through the proxy."""
    async with ObjectStore(settings_for(url=f"http://{proxy.address}", read_timeout=2.0)) as opened:
        yield opened
