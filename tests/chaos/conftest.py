"""Servers that exist to be killed, and what is told of it afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import pytest
import pytest_asyncio

from replank.testing.faults import FaultProxy
from replank_local import Stack
from replank_local.servers.kafka import KAFKA
from replank_local.unit import Command, Place, Unit
from tests.chaos import recoveries
from tests.e2e.system import stack_folder

BROKEN_WAY: Final = "kafka.broken-way"
_SECOND_LISTENER: Final = """\
listeners=PLAINTEXT://{host}:{broker},BROKEN://{host}:{behind},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{broker},BROKEN://{proxy}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,BROKEN:PLAINTEXT
"""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long recoveries took."""
    lines = list(recoveries.report())
    if lines:
        terminalreporter.section("recovery after a kill")
        for line in lines:
            terminalreporter.write_line(line)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kafka_proxy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Stack, FaultProxy]]:
    """Postgres, Kafka, and a second way to Kafka that can be broken."""
    with stack_folder(tmp_path_factory.mktemp("chaos")) as root:
        way: list[FaultProxy] = []
        unit = _with_second_way(way)
        stack = Stack(root, servers=["postgres"], units=[unit])
        stack.claim_ports("kafka")
        async with FaultProxy(f"127.0.0.1:{stack.ports[BROKEN_WAY]}") as proxy:
            way.append(proxy)
            async with stack:
                await stack.start("kafka")
                yield stack, proxy


def _with_second_way(way: list[FaultProxy]) -> Unit:
    """Kafka with a second listener, which it advertises at the address of a proxy: clients come back through it."""

    async def prepare(place: Place) -> Command:
        command = await KAFKA.prepare(place)
        with open(command.argv[-1], "a") as settings:  # noqa: ASYNC230, PTH123 - a few bytes
            settings.write(
                # Of a key that is there twice, the last holds.
                _SECOND_LISTENER.format(
                    host="127.0.0.1",
                    broker=place.ports["kafka"],
                    controller=place.ports["kafka.controller"],
                    behind=place.ports[BROKEN_WAY],
                    proxy=way[0].address,
                )
            )
        return command

    return replace(KAFKA, ports={**KAFKA.ports, BROKEN_WAY: 0}, prepare=prepare)


@pytest_asyncio.fixture(loop_scope="session")
async def stack(kafka_proxy: tuple[Stack, FaultProxy]) -> Stack:
    """The servers, all of them running."""
    stack, _ = kafka_proxy
    await stack.start("postgres", "kafka")
    return stack
