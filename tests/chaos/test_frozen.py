"""A process that stands still for longer than it may, while another one takes its place, and then goes on."""

from __future__ import annotations

import time
from typing import get_args

import pytest

from replank.testing import eventually
from replank_local import Stack
from tests.chaos import recoveries
from tests.chaos.flow import ROUNDS, Delivery, Flow, Part, flowing

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def gets_the_shard(flow: Flow, relay: Part) -> None:
    """Wait until this relay holds the lease."""

    async def holds() -> bool:
        rows = await flow.fetch("select owner from replank_outbox.shard where lease_until > clock_timestamp()")
        # host:pid:nonce
        holders = [int(row["owner"].split(":")[-2]) for row in rows]
        assert holders == [relay.process.pid], f"{holders} hold leases, not {relay.process.pid}"
        return True

    await eventually(holds, "the relay has the lease", within=30)


@pytest.mark.parametrize("delivery", get_args(Delivery))
async def test_a_relay_that_stood_still_finds_itself_fenced_off_and_does_no_damage(
    stack: Stack, delivery: Delivery
) -> None:
    async with flowing(stack, delivery=delivery) as flow:
        active, standby = flow.relay, flow.part("relay")
        await flow.in_full_flow()
        await standby.start()
        for _ in range(ROUNDS):
            await flow.in_full_flow()
            await gets_the_shard(flow, active)
            active.process.freeze()
            began = time.monotonic()
            await gets_the_shard(flow, standby)
            taken = time.monotonic()
            await flow.caught_up()
            recoveries.note(f"frozen relay ({delivery})", start=taken - began, caught_up=time.monotonic() - taken)
            await flow.more("echoes", 50)
            active.process.thaw()
            await active.process.line_with("is lost")
            active, standby = standby, active
        # It is not only harmless now, but of use again: the next to take over.
        await active.kill()
        await gets_the_shard(flow, standby)
        await flow.finish()


async def test_a_consumer_that_stood_still_repeats_nothing(stack: Stack) -> None:
    async with flowing(stack) as flow:
        other = flow.part("consumer")
        await other.start()
        await flow.in_full_flow()
        for _ in range(ROUNDS):
            await flow.in_full_flow()
            flow.consumer.process.freeze()
            # Kafka gives its partitions to the other one, which goes on with all keys but those that it was at: their
            # transactions are open.
            began = time.monotonic()
            await flow.more("effects", 60)
            taken = time.monotonic()
            flow.consumer.process.thaw()
            await flow.caught_up()
            recoveries.note("frozen consumer", start=taken - began, caught_up=time.monotonic() - taken)
        await other.end()
        await flow.finish()
