"""A minimal flow in processes of its own, each of which may die at any moment: writer, relay, consumer.

The writer commits moves of accounts to a ledger, each with an event; the relay publishes them; the consumer makes an
effect of each, and appends an event of its own, which goes round once more and has a second effect. Nothing in it
knows that it is tested: what happened is read from Postgres and Kafka afterwards.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from replank import inbox, outbox
from replank.testing import eventually
from replank.testing.processes import Process
from replank.testing.servers import create_topic, database, fresh_name
from replank_local import Stack
from replank_local.places import CHECKOUT
from tests.chaos import recoveries
from tests.e2e.records import everything, header, repeated
from tests.e2e.system import fetch

Delivery = Literal["at_least_once", "exactly_once"]

ROUNDS: Final = int(os.environ.get("REPLANK_CHAOS_ROUNDS", "1"))
"""How often each test kills what it kills."""
RATE: Final = os.environ.get("REPLANK_CHAOS_RATE", "40")
"""Transactions a second, of about 1.6 events each; every event has two effects and one follow-up event."""
RECOVERS_WITHIN: Final = 60.0
"""Seconds after which a flow that has not caught up is taken for stuck."""

AT_WORK: Final = {"relay": "outbox shard taken", "consumer": "Setting newly assigned partitions"}
"""What these programs write when they begin to work."""

_TABLES: Final = """
    create table account (key text primary key, sequence bigint not null);
    create table ledger (key text, sequence bigint, primary key (key, sequence));
    create table effect (id bigint generated always as identity, key text, sequence bigint, event_id uuid);
    create table echo (like effect including all);
    create index on effect (key, sequence);
    create index on echo (key, sequence);
"""
_COUNTS: Final = """
    select (select count(*) from ledger) as committed, (select count(*) from effect) as effects,
           (select count(*) from echo) as echoes
"""
_COMMITTED: Final = "select key, max(sequence) as sequence from ledger group by key"
_BEHIND: Final = """
    select key, mark.sequence as wanted, coalesce(done.sequence, 0) as reached
      from unnest($1::text[], $2::bigint[]) as mark (key, sequence)
      left join (select key, max(sequence) as sequence from echo group by key) as done using (key)
     where coalesce(done.sequence, 0) < mark.sequence
"""
_DIFFERENT: Final = """
    (select 'lost' as what, key, sequence from ledger except select 'lost', key, sequence from {effects})
     union all
    (select 'invented', key, sequence from {effects} except select 'invented', key, sequence from ledger)
     union all
    (select 'repeated', key, sequence from {effects} group by key, sequence having count(*) > 1)
"""
# A ledger has no gaps: the effects of a key in the order in which they were made are 1, 2, 3, …
_OUT_OF_ORDER: Final = """
    select key, sequence, place
      from (select key, sequence, row_number() over (partition by key order by id) as place from {effects}) as placed
     where sequence <> place
"""


@dataclass(frozen=True, slots=True)
class Way:
    """How a program gets to its servers: ``host:port`` of what stands between; empty for nothing."""

    postgres: str = ""
    kafka: str = ""

    def dsn(self, direct: str) -> str:
        """The DSN that leads this way."""
        parts = urlsplit(direct)
        credentials = parts.netloc.rpartition("@")[0]
        return direct if not self.postgres else urlunsplit(parts._replace(netloc=f"{credentials}@{self.postgres}"))


Ways: TypeAlias = Mapping[str, Way]


class Victim(Protocol):
    """What can be killed, and started again on what it left."""

    name: str

    async def start(self) -> None:
        """Start it; returns when it is started, which need not mean that it works already."""

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""


class Part:
    """A process of the flow."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self._environment = environment
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """The process as it was last started."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process

    async def start(self) -> None:
        """Start it, for the first time or again."""
        self._process = Process(f"tests.chaos.programs.{self.name}", env=self._environment, cwd=str(CHECKOUT))
        await self._process.__aenter__()

    async def kill(self) -> None:
        """Kill it in the middle of whatever it does. It must be alive: nothing here may end by itself."""
        self.process.kill()
        code = await self.process.exit_code()
        assert code == -signal.SIGKILL, f"the {self.name} had ended by itself with {code}:\n{self.process.output}"

    async def end(self) -> None:
        """Ask it to end, and see it end in order."""
        self.process.terminate()
        code = await self.process.exit_code(within=30)
        assert code == 0, f"the {self.name} ended with {code}:\n{self.process.output}"

    async def clear_away(self) -> None:
        """End it, however it is."""
        if self._process is not None:
            await self._process.__aexit__()


class Server:
    """A server of the stack as a victim."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.name = name
        self._stack = stack

    async def start(self) -> None:
        """Start it on the data that it left."""
        await self._stack.start(self.name)

    async def kill(self) -> None:
        """Kill it and all its children."""
        await self._stack.kill(self.name)


class Together:
    """Several victims that die in the same moment and come back in any order."""

    def __init__(self, *victims: Victim) -> None:
        self.name = ", ".join(sorted(victim.name for victim in victims))
        self._victims = victims

    async def start(self) -> None:
        """Start all of them."""
        await asyncio.gather(*(victim.start() for victim in self._victims))

    async def kill(self) -> None:
        """Kill all of them."""
        await asyncio.gather(*(victim.kill() for victim in self._victims))


class Flow:
    """The running flow, and the questions that its tests ask."""

    def __init__(self, stack: Stack, dsn: str, topic: str, delivery: Delivery, ways: Ways) -> None:
        self.stack = stack
        self.topic = topic
        self._dsn = dsn
        self._delivery = delivery
        self._ways = ways
        self._random = random.Random()
        self._parts: list[Part] = []
        self.writer, self.relay, self.consumer = (self.part(name) for name in ("writer", "relay", "consumer"))
        self.kafka, self.postgres = Server(stack, "kafka"), Server(stack, "postgres")

    def part(self, program: str, *, way: Way | None = None) -> Part:
        """Another process of this program, not started. ``way`` is how it gets to its servers, if not directly."""
        way = way or self._ways.get(program) or Way()
        environment = {
            "CHAOS_TOPIC": self.topic,
            "CHAOS_DELIVERY": self._delivery,
            "CHAOS_RATE": RATE,
            "CHAOS_DSN": way.dsn(self._dsn),
            "CHAOS_KAFKA": way.kafka or self.stack.endpoints.kafka,
        }
        part = Part(program, environment)
        self._parts.append(part)
        return part

    async def clear_away(self) -> None:
        """End all processes."""
        for part in self._parts:
            await part.clear_away()

    # What happened so far

    async def fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Rows of the flow's database; `AssertionError` while Postgres is away."""
        return await fetch(self._dsn, statement, *arguments)

    async def counts(self) -> dict[str, int]:
        """How many moves are committed, how many effects and how many echoes there are."""
        (row,) = await eventually(lambda: self.fetch(_COUNTS), "Postgres answers", within=RECOVERS_WITHIN)
        return dict(row)

    async def more(self, what: Literal["committed", "effects", "echoes"], number: int) -> None:
        """Wait until there are so many more than now."""
        wanted = (await self.counts())[what] + number

        async def enough() -> bool:
            found = await self.counts()
            assert found[what] >= wanted, f"{found}, {what} should be {wanted}; {self._last_words()}"
            return True

        await eventually(enough, f"{number} more {what}", within=RECOVERS_WITHIN, interval=0.05)

    async def in_full_flow(self) -> None:
        """Wait for a moment that nobody can foresee, in which everything is at work."""
        await self.more("echoes", self._random.randint(20, 120))

    async def caught_up(self) -> None:
        """Wait until everything that is committed now has taken both effects, and nothing before it is missing."""
        mark = await eventually(lambda: self.fetch(_COMMITTED), "Postgres answers", within=RECOVERS_WITHIN)

        async def behind() -> bool:
            rows = await self.fetch(_BEHIND, [row["key"] for row in mark], [row["sequence"] for row in mark])
            assert not rows, f"{len(rows)} accounts lag behind, such as {dict(rows[0])}; {self._last_words()}"
            return True

        await eventually(behind, "the flow catches up", within=RECOVERS_WITHIN, interval=0.1)

    # What the tests do

    async def survive(self, victim: Victim, *, meanwhile: int = 0, rounds: int = ROUNDS) -> None:
        """Kill it in full flow, start it again, and see everything catch up by itself; several times.

        ``meanwhile`` moves are committed while it is dead.
        """
        for _ in range(rounds):
            await self.in_full_flow()
            await victim.kill()
            if meanwhile:
                await self.more("committed", meanwhile)
            await self.recover(victim)

    async def kill_while_it_catches_up(self, part: Part, *, times: int) -> None:
        """Kill a part that is dead and has much to catch up with, again and again, soon after it has begun."""
        for _ in range(times):
            await part.start()
            await part.process.line_with(AT_WORK[part.name], within=RECOVERS_WITHIN)
            # Not to wait for something: to die at another point of the work each time.
            await asyncio.sleep(self._random.uniform(0.0, 0.5))
            await part.kill()

    async def recover(self, victim: Victim) -> None:
        """Start what was killed, wait until the flow has caught up, and take the time."""
        began = time.monotonic()
        await victim.start()
        started = time.monotonic()
        await self.caught_up()
        recoveries.note(victim.name, start=started - began, caught_up=time.monotonic() - started)

    async def finish(self) -> None:
        """See it go on, write no more, let everything arrive, and compare what took effect with what was committed."""
        await self.more("echoes", 20)
        await self.writer.end()

        async def all_there() -> bool:
            found = await self.counts()
            assert found["effects"] >= found["committed"], f"{found}; {self._last_words()}"
            assert found["echoes"] >= found["committed"], f"{found}; {self._last_words()}"
            return True

        await eventually(all_there, "everything takes effect", within=RECOVERS_WITHIN, interval=0.1)
        await self.caught_up()
        # Ended in order, so that nothing comes after the verdict.
        await self.consumer.end()
        await self._check_effects()
        await self._check_nobody_is_needed()
        await self._check_topics()

    async def _check_effects(self) -> None:
        for effects in ("effect", "echo"):
            different = await self.fetch(_DIFFERENT.format(effects=effects))
            assert not different, f"{effects}: {len(different)} differ from the ledger: {[*map(tuple, different[:10])]}"
            disordered = await self.fetch(_OUT_OF_ORDER.format(effects=effects))
            assert not disordered, f"{effects}: {len(disordered)} out of order: {[*map(tuple, disordered[:10])]}"

    async def _check_nobody_is_needed(self) -> None:
        (row,) = await self.fetch(
            "select (select count(*) from replank_inbox.dead_letter) as letters, "
            "(select count(*) from replank_inbox.parked_key) as parked, "
            "(select count(*) from replank_outbox.quarantine) as quarantined, "
            "(select count(*) from replank_outbox.shard where stuck_event_id is not null) as stuck"
        )
        assert dict(row) == {"letters": 0, "parked": 0, "quarantined": 0, "stuck": 0}
        appended = await self.fetch("select topic, count(*) as events from replank_outbox.event group by topic")
        committed = (await self.counts())["committed"]
        assert {row["topic"]: row["events"] for row in appended} == dict.fromkeys(self.topics, committed)

    async def _check_topics(self) -> None:
        """Kafka has every event, in the order of its key; and none of them twice, where that is promised."""
        for topic in self.topics:
            rows = await self.fetch(
                "select event_id::text as id, key from replank_outbox.event where topic = $1 order by id", topic
            )
            appended: dict[str, list[str]] = {}
            for row in rows:
                appended.setdefault(row["key"], []).append(row["id"])
            records = await everything(self.stack.endpoints.kafka, topic)
            published: dict[str, dict[str, None]] = {}
            for record in records:  # a dict keeps the order in which each was there first
                published.setdefault(record.key.decode(), {})[header(record, "ce_id")] = None
            assert {key: list(ids) for key, ids in published.items()} == appended
            twice = repeated(records)
            recoveries.published(self._delivery, events=len(rows), again=len(twice))
            if self._delivery == "exactly_once":
                assert not twice, f"{len(twice)} events are on {topic} more than once"

    @property
    def topics(self) -> tuple[str, str]:
        """The topic of the moves and that of the echoes."""
        return self.topic, f"{self.topic}.echoes"

    def _last_words(self) -> str:
        """The end of what each process wrote."""
        parts = [part for part in self._parts if part._process is not None]
        return "".join(f"\n--- {part.name}:\n{part.process.output[-2000:]}" for part in parts)


@asynccontextmanager
async def flowing(
    stack: Stack, *, delivery: Delivery = "at_least_once", ways: Ways = MappingProxyType({})
) -> AsyncIterator[Flow]:
    """A flow with a database and topics of its own, in motion. ``ways`` tell of programs how they get to servers."""
    topic = fresh_name()
    async with database(stack.endpoints.postgres()) as dsn:
        await _install(dsn)
        flow = Flow(stack, dsn, topic, delivery, ways)
        for name in flow.topics:
            await create_topic(stack.endpoints.kafka, name)
        try:
            for part in (flow.relay, flow.consumer, flow.writer):
                await part.start()
            yield flow
        finally:
            await flow.clear_away()
            await stack.start("postgres", "kafka")


async def _install(dsn: str) -> None:
    conn = await asyncpg.connect(dsn)
    try:
        await outbox.install(conn)
        await inbox.install(conn)
        await conn.execute(_TABLES)
    finally:
        await conn.close()
