"""The proxy runs on the test's own event loop: a call that blocked the loop would never get an answer here."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import pytest

from replank.errors import DependencyUnavailable
from replank.objects import ObjectChanged, ObjectStore
from replank.testing.faults import FaultProxy, unused_address
from replank.testing.wait import eventually
from tests.common.objects.conftest import SettingsFactory
from tests.common.objects.test_store import MIB, keys, uploads_in_progress


async def test_a_store_that_is_not_there_is_named_with_what_to_do(settings_for: SettingsFactory) -> None:
    async with unused_address() as address, ObjectStore(settings_for(url=f"http://{address}", attempts=2)) as store:
        with pytest.raises(DependencyUnavailable, match=address) as caught:
            await store.put("a", b"x")
    assert caught.value.dependency == "object store"
    assert caught.value.fix
    assert store.settings.secret_key.get_secret_value() not in str(caught.value)


async def test_a_put_survives_connections_that_break(proxied: ObjectStore, proxy: FaultProxy) -> None:
    content = os.urandom(24 * MIB)

    async def source() -> AsyncIterator[bytes]:
        for start in range(0, len(content), MIB):
            if start in {11 * MIB, 17 * MIB}:
                proxy.cut()
            yield content[start : start + MIB]

    info = await proxied.put("a", source())
    assert info.sha256 == hashlib.sha256(content).hexdigest()
    async with proxied.get("a", sha256=info.sha256) as body:
        assert sum([len(chunk) async for chunk in body]) == len(content)
    assert await uploads_in_progress(proxied) == 0


async def test_a_put_that_cannot_get_through_stores_nothing(
    proxied: ObjectStore, proxy: FaultProxy, store: ObjectStore
) -> None:
    async def source() -> AsyncIterator[bytes]:
        for number in range(24):
            if number == 12:
                # No part of 5 MiB fits through any connection, while the abort does.
                proxy.cut_after(MIB)
            yield bytes(MIB)

    with pytest.raises(DependencyUnavailable):
        await proxied.put("a", source())
    assert await keys(store) == []
    assert await uploads_in_progress(store) == 0


async def test_a_get_goes_on_where_its_connection_broke(
    store: ObjectStore, proxied: ObjectStore, proxy: FaultProxy
) -> None:
    content = os.urandom(12 * MIB)
    info = await store.put("a", content)
    proxy.cut_after(5 * MIB, "to_client")
    async with proxied.get("a", sha256=info.sha256) as body:
        got = b"".join([chunk async for chunk in body])
    assert got == content
    assert proxy.accepted >= 3


async def test_a_get_whose_connections_keep_breaking_ends_with_an_error(
    store: ObjectStore, proxied: ObjectStore, proxy: FaultProxy
) -> None:
    await store.put("a", bytes(12 * MIB))
    received = 0

    async def read() -> None:
        nonlocal received
        async with proxied.get("a") as body:
            async for chunk in body:
                received += len(chunk)
                await proxy.refuse()

    with pytest.raises(DependencyUnavailable, match=proxy.address):
        await read()
    assert 0 < received < 12 * MIB


async def test_a_get_of_an_object_that_was_replaced_meanwhile_says_so(
    store: ObjectStore, proxied: ObjectStore, proxy: FaultProxy
) -> None:
    await store.put("a", os.urandom(12 * MIB))

    async def read() -> None:
        async with proxied.get("a") as body:
            async for _ in body:
                await store.put("a", os.urandom(12 * MIB))
                proxy.cut()

    with pytest.raises(ObjectChanged):
        await read()


async def test_a_store_that_falls_silent_is_given_up_after_the_timeout(
    store: ObjectStore, settings_for: SettingsFactory, proxy: FaultProxy
) -> None:
    await store.put("a", b"x")
    settings = settings_for(url=f"http://{proxy.address}", read_timeout=0.3, attempts=2)
    async with ObjectStore(settings) as silent:
        assert await silent.read("a") == b"x"
        proxy.stall()
        with pytest.raises(DependencyUnavailable):
            await silent.stat("a")
        await proxy.heal()
        assert await silent.read("a") == b"x"


async def test_a_cancelled_read_ends_at_once_and_closes_its_connection(
    store: ObjectStore, settings_for: SettingsFactory, proxy: FaultProxy
) -> None:
    await store.put("a", bytes(12 * MIB))
    async with ObjectStore(settings_for(url=f"http://{proxy.address}", read_timeout=60)) as slow:

        async def read() -> None:
            async with slow.get("a") as body:
                async for _ in body:
                    proxy.stall()

        reading = asyncio.create_task(read())
        await eventually(lambda: not proxy._flowing.is_set(), "the first chunk arrived")
        async with asyncio.timeout(5):
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        await proxy.heal()
        assert await slow.exists("a")
