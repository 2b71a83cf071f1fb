"""The four real services, killed one after the other while requests come in: every accepted one is carried through."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import uuid4

import httpx
import pytest

from replank.contracts.schema import MigrationReady
from replank.testing import eventually
from replank_local.services import SERVICES
from tests.chaos import recoveries
from tests.chaos.flow import RECOVERS_WITHIN, ROUNDS
from tests.e2e.records import everything, header
from tests.e2e.system import System, running

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

_PAUSE: Final = 1.0
_EFFECTS: Final = {
    "benchmark": "select count(*) as effects, count(distinct migration_id) as migrations from baseline",
    "archiver": "select count(*) as effects, count(distinct migration_id) as migrations from manifest",
    "auth-cache": "select count(*) as effects, count(distinct object) as migrations from relation_tuple "
    "where relation = 'owner' and object like 'migration:%'",
}


class Clients:
    """People who plan migrations, each of whom tries again with the same key until told that it was accepted."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.accepted: dict[str, str] = {}
        self.asked = 0

    async def insist(self) -> None:
        """Plan one migration."""
        self.asked += 1
        key = str(uuid4())

        async def accepted() -> str:
            try:
                answer = await self._system.plan(key=key)
            except httpx.TransportError as error:
                raise AssertionError(f"schema does not answer: {error!r}") from error
            assert answer.status_code == 201, answer.text
            migration_id: str = answer.json()["id"]
            return migration_id

        self.accepted[key] = await eventually(
            accepted, "the request is accepted", within=2 * RECOVERS_WITHIN, interval=0.5
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """A new client every second, whatever became of those before; all are served in the end."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_coming(group, stop))
            try:
                yield
            finally:
                stop.set()

    async def _keep_coming(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        while not stop.is_set():
            group.create_task(self.insist())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE):
                    await stop.wait()

    async def more(self, number: int) -> None:
        """Wait until so many more are accepted."""
        wanted = len(self.accepted) + number
        await eventually(
            lambda: len(self.accepted) >= wanted, f"{number} more are accepted", within=2 * RECOVERS_WITHIN
        )


async def ready(system: System) -> set[str]:
    """The migrations that are ready."""
    return {
        str(row["id"]) for row in await system.fetch("schema", "select id from migration where ready_at is not null")
    }


async def all_ready(system: System, accepted: set[str]) -> None:
    """Wait until all of these are ready."""

    async def none_missing() -> bool:
        missing = accepted - await ready(system)
        assert not missing, f"{len(missing)} are not ready, such as {min(missing)}"
        return True

    await eventually(none_missing, "every accepted migration is ready", within=2 * RECOVERS_WITHIN, interval=0.2)


async def test_whichever_service_or_server_dies_every_accepted_request_is_carried_through_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with running(tmp_path_factory.mktemp("chaos-services")) as system:
        clients = Clients(system)
        async with clients.at_work():
            await clients.more(3)
            for victims in random_rounds():
                await asyncio.gather(*(system.stack.kill(victim) for victim in victims))
                began = time.monotonic()
                await system.stack.start(*victims)
                started = time.monotonic()
                await all_ready(system, set(clients.accepted.values()))
                name = ", ".join(sorted(victims))
                recoveries.note(name, start=started - began, caught_up=time.monotonic() - started)
                await clients.more(2)
        accepted = set(clients.accepted.values())
        assert len(accepted) == clients.asked, "each request is one migration"
        await all_ready(system, accepted)
        await check(system, accepted)


def random_rounds() -> list[tuple[str, ...]]:
    """Each service in one of two pairs, then a server together with some of the services."""
    first, second, third, fourth = random.sample(sorted(SERVICES), k=len(SERVICES))
    rounds: list[tuple[str, ...]] = [(first, second), (third, fourth)]
    for _ in range(ROUNDS):
        server = random.choice(("kafka", "postgres"))
        rounds.append((server, *random.sample(sorted(SERVICES), k=random.randint(1, 3))))
    return rounds


async def check(system: System, accepted: set[str]) -> None:
    """Every effect is there once, in every service, and nobody has to do anything."""
    planned = {str(row["id"]) for row in await system.fetch("schema", "select id from migration")}
    assert planned == accepted, "what was not acknowledged was not planned twice, nor anything else"
    for service, statement in _EFFECTS.items():
        (row,) = await system.fetch(service, statement)
        assert dict(row) == {"effects": len(accepted), "migrations": len(accepted)}, service
    for service in SERVICES:
        (row,) = await system.fetch(
            service,
            "select (select count(*) from replank_inbox.dead_letter) as letters, "
            "(select count(*) from replank_inbox.parked_key) as parked",
        )
        assert dict(row) == {"letters": 0, "parked": 0}, service
    records = await everything(system.stack.endpoints.kafka, MigrationReady.event_topic)
    said = {
        header(record, "ce_id"): str(MigrationReady.from_value(record.value).migration_id)
        for record in records
        if header(record, "ce_type") == MigrationReady.event_type
    }
    assert sorted(said.values()) == sorted(accepted), "each is said to be ready by one event"
