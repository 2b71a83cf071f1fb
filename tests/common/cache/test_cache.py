"""A cache answers in time, or says in time that it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from prometheus_client import REGISTRY

from replank.cache import Cache
from replank.errors import DependencyUnavailable
from replank.testing.faults import unused_address
from replank.testing.plugin import FaultProxies
from replank.testing.servers import fresh_name
from replank.testing.wait import eventually


@pytest.fixture
async def cache(valkey_url: str) -> AsyncIterator[Cache]:
    async with Cache(valkey_url, name="planks", within=2.0) as opened:
        yield opened


@pytest.fixture
def key() -> str:
    return fresh_name()


async def test_gives_back_the_bytes_it_was_given(cache: Cache, key: str) -> None:
    value = bytes(range(256))
    assert await cache.get(key) is None
    await cache.set(key, value, lifetime=10)
    assert await cache.get(key) == value
    assert await cache.get_many([key, key + "x"]) == [value, None]
    assert await cache.delete(key, key + "x") == 1
    assert await cache.get(key) is None


async def test_nothing_asked_is_nothing_sent() -> None:
    async with unused_address() as address, Cache(f"redis://{address}", name="planks") as cache:
        assert await cache.get_many([]) == []
        assert await cache.delete() == 0


async def test_entries_end_with_their_lifetime(cache: Cache, key: str) -> None:
    await cache.set(key, b"x", lifetime=0.05)

    async def gone() -> bool:
        return await cache.get(key) is None

    await eventually(gone, "the entry is gone")


async def test_hits_and_misses_are_counted(cache: Cache, key: str) -> None:
    def count(outcome: str) -> float:
        labels = {"cache": "planks", "operation": "get", "outcome": outcome}
        return REGISTRY.get_sample_value("replank_cache_operation_seconds_count", labels) or 0

    hits, misses = count("hit"), count("miss")
    await cache.get(key)
    await cache.set(key, b"x", lifetime=10)
    await cache.get(key)
    assert (count("hit") - hits, count("miss") - misses) == (1, 1)


async def test_a_server_that_is_down_is_named_without_its_password() -> None:
    async with unused_address() as address, Cache(f"redis://:hunter2@{address}/0", name="planks") as cache:
        with pytest.raises(DependencyUnavailable, match=f"the cache planks at {address} does not answer") as caught:
            await cache.ping()
    assert caught.value.dependency == "cache planks"
    assert "hunter2" not in str(caught.value)


async def test_a_server_that_does_not_answer_costs_no_more_than_the_deadline(
    valkey_url: str, fault_proxy: FaultProxies, key: str
) -> None:
    proxy = await fault_proxy(urlsplit(valkey_url).netloc)
    async with Cache(proxy.in_front_of(valkey_url), name="planks", within=0.2, connections=2) as cache:
        await cache.ping()
        proxy.stall()
        started = time.monotonic()
        answers = await asyncio.gather(*(cache.get(key) for _ in range(10)), return_exceptions=True)
        assert time.monotonic() - started < 1.5
        assert all(isinstance(answer, DependencyUnavailable) for answer in answers)
        await proxy.heal()
        await cache.set(key, b"x", lifetime=10)
        assert await cache.get(key) == b"x", "no late answer of an abandoned call is taken for this one"


async def test_broken_connections_are_replaced_without_an_error(
    valkey_url: str, fault_proxy: FaultProxies, key: str
) -> None:
    proxy = await fault_proxy(urlsplit(valkey_url).netloc)
    async with Cache(proxy.in_front_of(valkey_url), name="planks", within=2.0) as cache:
        await cache.set(key, b"x", lifetime=10)
        proxy.cut()
        assert await cache.get(key) == b"x"
