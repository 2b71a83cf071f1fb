"""``kill -9`` in mid-flow, again and again: nobody intervenes, and every committed event takes effect exactly once."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from replank_local import Stack
from tests.chaos.flow import ROUNDS, Delivery, Together, Victim, flowing

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

each_delivery = pytest.mark.parametrize("delivery", get_args(Delivery))


@each_delivery
async def test_a_killed_relay_loses_nothing_and_needs_nobody(stack: Stack, delivery: Delivery) -> None:
    async with flowing(stack, delivery=delivery) as flow:
        await flow.survive(flow.relay, meanwhile=50)
        await flow.relay.kill()
        await flow.more("committed", 400)
        await flow.kill_while_it_catches_up(flow.relay, times=2 * ROUNDS)
        await flow.recover(flow.relay)
        await flow.finish()


async def test_a_killed_consumer_applies_every_event_once(stack: Stack) -> None:
    async with flowing(stack) as flow:
        await flow.survive(flow.consumer, meanwhile=50)
        await flow.consumer.kill()
        await flow.more("committed", 100)
        await flow.kill_while_it_catches_up(flow.consumer, times=ROUNDS)
        await flow.recover(flow.consumer)
        await flow.finish()


async def test_of_a_killed_writer_there_is_what_it_committed_and_nothing_else(stack: Stack) -> None:
    async with flowing(stack) as flow:
        await flow.survive(flow.writer)
        await flow.finish()


@each_delivery
async def test_a_killed_kafka_loses_and_repeats_nothing(stack: Stack, delivery: Delivery) -> None:
    async with flowing(stack, delivery=delivery) as flow:
        await flow.survive(flow.kafka, meanwhile=30)
        await flow.finish()


@each_delivery
async def test_a_killed_postgres_keeps_what_it_committed_and_all_of_it_takes_effect(
    stack: Stack, delivery: Delivery
) -> None:
    async with flowing(stack, delivery=delivery) as flow:
        await flow.survive(flow.postgres)
        await flow.finish()


@each_delivery
async def test_whatever_dies_together_with_whatever_else_the_flow_mends_itself(
    stack: Stack, delivery: Delivery
) -> None:
    async with flowing(stack, delivery=delivery) as flow:
        victims: list[Victim] = [flow.writer, flow.relay, flow.consumer, flow.kafka, flow.postgres]
        for _ in range(2 * ROUNDS):
            together = random.sample(victims, k=random.randint(2, len(victims)))
            await flow.survive(Together(*together), rounds=1)
        await flow.finish()
