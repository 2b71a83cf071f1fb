"""The way between a process and a server breaks, while both of them are well."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import pytest
import pytest_asyncio

from replank.testing.faults import FaultProxy
from replank_local import Stack
from tests.chaos import recoveries
from tests.chaos.flow import Flow, Way, flowing
from tests.chaos.test_frozen import gets_the_shard

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


@pytest.fixture
def kafka_way(kafka_proxy: tuple[Stack, FaultProxy]) -> FaultProxy:
    """What stands between a process and Kafka."""
    return kafka_proxy[1]


@pytest_asyncio.fixture(loop_scope="session")
async def postgres_way(stack: Stack) -> AsyncIterator[FaultProxy]:
    """What stands between a process and Postgres."""
    async with FaultProxy(f"127.0.0.1:{stack.ports['postgres']}") as proxy:
        yield proxy


async def reset(flow: Flow, way: FaultProxy) -> None:
    """Every connection is reset, again and again."""
    for _ in range(3):
        way.cut()
        await flow.more("echoes", 10)


async def refused(flow: Flow, way: FaultProxy) -> None:
    """The server cannot be reached for a while."""
    await way.refuse()
    await flow.more("committed", 100)


async def silent(flow: Flow, way: FaultProxy) -> None:
    """Connections stay, and nothing passes for longer than the relay's lease."""
    way.stall()
    await flow.more("committed", 200)


async def vanished(flow: Flow, way: FaultProxy) -> None:
    """Connections fall silent for good and nobody is told, as when a server fails over; new ones find it well."""
    way.strand()
    await flow.more("committed", 50)


Fault = Callable[[Flow, FaultProxy], Awaitable[None]]
FAULTS: Final = (reset, refused, silent, vanished)


async def survive(flow: Flow, way: FaultProxy, fault: Fault, name: str) -> None:
    """Break the way in full flow, mend it, and see the flow catch up."""
    await flow.in_full_flow()
    await fault(flow, way)
    began = time.monotonic()
    await way.heal()
    await flow.caught_up()
    recoveries.note(f"{name}: {fault.__name__}", start=0.0, caught_up=time.monotonic() - began)


async def test_a_broken_way_of_the_relay_to_kafka_loses_and_repeats_nothing(
    stack: Stack, kafka_way: FaultProxy
) -> None:
    async with flowing(stack, delivery="exactly_once", ways={"relay": Way(kafka=kafka_way.address)}) as flow:
        for fault in FAULTS:
            await survive(flow, kafka_way, fault, "relay to kafka")
        await flow.finish()


async def test_a_broken_way_of_the_relay_to_postgres_loses_nothing(stack: Stack, postgres_way: FaultProxy) -> None:
    async with flowing(stack, ways={"relay": Way(postgres=postgres_way.address)}) as flow:
        for fault in FAULTS:
            await survive(flow, postgres_way, fault, "relay to postgres")
        await flow.finish()


async def test_a_broken_way_of_the_consumer_to_kafka_repeats_nothing(stack: Stack, kafka_way: FaultProxy) -> None:
    async with flowing(stack, ways={"consumer": Way(kafka=kafka_way.address)}) as flow:
        # Not `vanished`: aiokafka waits 40 s for the answer to a fetch.
        for fault in (reset, refused, silent):
            await survive(flow, kafka_way, fault, "consumer to kafka")
        await flow.finish()


async def test_a_broken_way_of_the_consumer_to_postgres_repeats_nothing(stack: Stack, postgres_way: FaultProxy) -> None:
    async with flowing(stack, ways={"consumer": Way(postgres=postgres_way.address)}) as flow:
        for fault in FAULTS:
            await survive(flow, postgres_way, fault, "consumer to postgres")
        await flow.finish()


async def test_a_relay_that_is_cut_off_from_postgres_leaves_the_shard_to_another(
    stack: Stack, postgres_way: FaultProxy
) -> None:
    async with flowing(stack, ways={"relay": Way(postgres=postgres_way.address)}) as flow:
        standby = flow.part("relay", way=Way())
        await flow.in_full_flow()
        await gets_the_shard(flow, flow.relay)
        await standby.start()
        postgres_way.stall()
        await gets_the_shard(flow, standby)
        await flow.caught_up()
        await flow.more("echoes", 50)
        await postgres_way.heal()
        await flow.relay.process.line_with("is lost")
        await standby.end()
        await gets_the_shard(flow, flow.relay)
        await flow.finish()
