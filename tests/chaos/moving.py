"""The storefront while it moves: its live traffic, what the migration's owner asks, and what dies meanwhile.

Nothing here repairs anything. What is killed is started again, as a supervisor would; everything else has to come back
by itself, and whoever waits says for what.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
import httpx

from replank.errors import ReplankError
from replank.migrate.sql import schema_of
from replank.testing import eventually
from replank_cli.demo.places import Places
from replank_cli.demo.shop import Planted
from replank_cli.demo.traffic import Shift, Traffic, seed
from replank_local import processes
from replank_local.places import CHECKOUT
from replank_local.services import STOREFRONT, dsns
from tests.chaos import recoveries
from tests.chaos.flow import RECOVERS_WITHIN
from tests.e2e.system import OWNER, System, fetch

NAME: Final = "storefront"
RECORDS: Final = 5_000
RATE: Final = 30.0
"""Requests a second of the live traffic."""
PATIENCE: Final = 90.0
"""Seconds after which what is waited for is taken for stuck."""

_ENDPOINTS: Final = (
    "client.report", "event.counts", "order.get", "product.get", "product.list", "product.search", "site.list",
    "site.offer",
)  # fmt: skip
# Of what runs in these, the applier says how far behind it is.
_CARRYING: Final = frozenset({"backfilling", "verifying", "shadow_reads", "new_with_fallback", "new_only"})
_AT_REST: Final = frozenset({"planned", "rolled_back", "completed"})
_GOES_ON: Final = 40
_LEADER: Final = """
    select owner, held_until > clock_timestamp() as held from lease where migration_id = $1::text::uuid
"""
_WRITES: Final = f"select writes, changed_at from {schema_of(NAME)}.authority where side = $1"
_BLOCK: Final = f"{_WRITES} for update"
_SIDES: Final[Mapping[str, str]] = {"source": "DSN", "target": "TABLES_DSN"}


class Moving:
    """One migration of the running storefront."""

    def __init__(self, system: System, traffic: Traffic, places: Places, planted: Planted, migration_id: str) -> None:
        self.system = system
        self.traffic = traffic
        self.places = places
        self.planted = planted
        self.id = migration_id
        self.struck: set[tuple[str, str]] = set()
        """Which victim has died in which phase, so far."""

    # --- what its owner does ---

    async def view(self) -> dict[str, Any]:
        """How the migration stands; `AssertionError` while nobody says."""
        return await self._asked("GET", "")

    async def ask(self, what: str, *, method: str = "POST", **body: Any) -> dict[str, Any]:
        """Ask for something until it is answered: again with the same key, as long as nobody says what became of it."""
        key = str(uuid4())

        async def answered() -> dict[str, Any]:
            nonlocal key
            try:
                return await self._asked(method, f"/{what}", {"reason": "chaos", **body}, key)
            except _Refused:
                key = str(uuid4())
                raise

        return await eventually(answered, f"{what} is done", within=PATIENCE, interval=0.2)

    async def when(
        self, satisfied: Callable[[dict[str, Any]], object], what: str, *, within: float = PATIENCE
    ) -> dict[str, Any]:
        """How it stands once that satisfies."""

        async def look() -> dict[str, Any]:
            seen = await self.view()
            assert satisfied(seen), _gist(seen)
            return seen

        return await eventually(look, what, within=within, interval=0.1)

    async def may_go_on(self, to: str) -> dict[str, Any]:
        """Wait until it may enter its next phase."""
        return await self.when(
            lambda seen: seen["next"] and seen["next"]["to"] == to and seen["next"]["allowed"], f"it may go on to {to}"
        )

    async def advance(self, to: str, *, asking: str = "advance") -> None:
        """Let it enter its next phase as soon as it may."""
        seen = await self.may_go_on(to)
        await self.ask(asking, expected=seen["phase"])
        await self.arrives(to)

    async def arrives(self, phase: str) -> dict[str, Any]:
        """Wait until it is there."""
        return await self.when(lambda seen: (seen["phase"], seen["moving_to"]) == (phase, None), f"it is {phase}")

    async def settings(self, **settings: Any) -> None:
        """Turn live knobs."""
        await self.ask("settings", method="PUT", settings=settings)

    async def listed(self, what: str) -> list[dict[str, Any]]:
        """The first 200 of a listing."""
        found = await eventually(
            lambda: self._asked("GET", f"/{what}?limit=200"), f"{what} are listed", within=PATIENCE, interval=0.2
        )
        items: list[dict[str, Any]] = found["items"]
        return items

    async def rejects_are(self, keys: set[str]) -> None:
        """Wait until these records are the rejected ones, and no others."""

        async def same() -> bool:
            found = {item["key"] for item in await self.listed("rejects")}
            assert found == keys, f"too many {sorted(found - keys)[:5]}, too few {sorted(keys - found)[:5]}"
            return True

        await eventually(same, "the rejects are those that were planted", within=PATIENCE, interval=0.2)

    async def compared(self) -> dict[str, Any]:
        """The newest comparison of everything, once it is done."""

        async def done() -> dict[str, Any]:
            newest = (await self.listed("comparisons"))[0]
            assert newest["state"] == "done", newest
            return newest

        return await eventually(done, "everything is compared", within=PATIENCE, interval=0.2)

    # --- its databases ---

    def dsn(self, side: str) -> str:
        """The database of a side."""
        return dsns(STOREFRONT, self.system.stack.endpoints)[_SIDES[side]]

    async def takes(self, side: str, writes: str, *, again: datetime | None = None) -> datetime:
        """Wait until a side says this of its writes, and return since when; ``again``: since later than that."""

        async def says() -> datetime:
            rows = await fetch(self.dsn(side), _WRITES, side)
            assert [row["writes"] for row in rows] == [writes], rows
            since: datetime = rows[0]["changed_at"]
            assert again is None or since > again, f"since {since}"
            return since

        return await eventually(says, f"the {side} is {writes}", within=PATIENCE, interval=0.02)

    @asynccontextmanager
    async def blocked(self, side: str) -> AsyncIterator[None]:
        """Let no side say anything else of its writes: a flip stands still before the step in which it would."""
        async with self.locking(side, _BLOCK, side):
            yield

    @asynccontextmanager
    async def locking(self, side: str, statement: str, *arguments: Any) -> AsyncIterator[None]:
        """Hold the locks that a statement takes, until the block ends or the server dies."""
        conn = await asyncpg.connect(self.dsn(side), timeout=10)
        try:
            await conn.transaction().start()
            await conn.execute(statement, *arguments)
            yield
        finally:
            conn.terminate()

    # --- what dies ---

    async def strike(self, *victims: str) -> None:
        """Kill these in one moment; start them again, and see everything go on by itself."""
        await self.kill(*victims)
        await self.recover(*victims)

    async def kill(self, *victims: str) -> None:
        """``kill -9``, in one moment."""
        phase = (await self._last_known())["phase"]
        self.struck |= {(phase, victim) for victim in victims}
        await asyncio.gather(*(self.system.stack.kill(victim) for victim in victims))

    async def recover(self, *victims: str) -> None:
        """Start what was killed, wait until all is well, and take the time."""
        began = time.monotonic()
        await self.system.stack.start(*victims)
        started = time.monotonic()
        await self.all_is_well()
        recoveries.note(
            f"moving: {', '.join(sorted(victims))}", start=started - began, caught_up=time.monotonic() - started
        )

    async def all_is_well(self) -> None:
        """Wait until the living process leads the migration, nothing waits or fails, and the shop sells."""

        async def well() -> bool:
            for unit in self.system.stack.state.processes:
                assert self.system.stack.running(unit), f"{unit} has died by itself"
            seen = await self.view()
            assert not seen["problem"], _gist(seen)
            if seen["phase"] not in _AT_REST:
                await self._is_led()
            if seen["phase"] in _CARRYING:
                assert seen["lag"] is not None, _gist(seen)
                assert seen["lag"]["seconds"] < 1.0, _gist(seen)
            return True

        await eventually(well, "all is well again", within=RECOVERS_WITHIN, interval=0.1)
        await self.sells()

    async def sells(self, requests: int = _GOES_ON) -> None:
        """Wait until the shop has answered some more."""
        shift = self.shift
        await self.traffic.reaches(shift, shift.requests + requests, within=PATIENCE)

    @property
    def shift(self) -> Shift:
        """The traffic that is at work now."""
        return self.traffic.shifts[-1]

    async def _is_led(self) -> None:
        leader = self.system.stack.identity("schema")
        rows = await self.system.fetch("schema", _LEADER, self.id)
        # host:pid:nonce
        owners = [int(row["owner"].split(":")[-2]) for row in rows if row["held"]]
        assert leader is not None
        assert owners == [leader.pid], f"{owners} lead, not {leader.pid}"

    async def _last_known(self) -> dict[str, Any]:
        return await eventually(self.view, "the migration can be looked at", within=PATIENCE, interval=0.1)

    async def _asked(self, method: str, path: str, body: Any = None, key: str = "") -> dict[str, Any]:
        headers = {"idempotency-key": key} if key else {}
        async with self.system.client("schema") as client:
            try:
                answer = await client.request(method, f"/v1/migrations/{self.id}{path}", json=body, headers=headers)
            except httpx.TransportError as error:
                raise AssertionError(f"schema does not answer: {error!r}") from error
        said = f"{method} {path}: {answer.status_code} {answer.text}"
        if answer.status_code == 409:
            raise _Refused(said)
        assert answer.is_success or answer.status_code == 503, said
        if answer.status_code == 503:
            raise AssertionError(said)
        found: dict[str, Any] = answer.json()
        return found

    # --- what is told of a failure ---

    async def last_words(self) -> str:
        """How the migration stands, what was done to it, what the traffic saw, and the ends of the logs."""
        if self.traffic.shifts and self.shift.process.returncode is None:
            with suppress(ReplankError):
                await self.traffic.end(self.shift)
        try:
            told = [json.dumps({**await self.view(), "mapping": "…"})]
            told += [json.dumps(line) for line in (await self._asked("GET", "/audit?limit=30"))["items"]]
        except AssertionError as error:
            told = [f"the migration cannot be looked at: {error}"]
        told += [self.traffic.pulse(), *self.traffic.first_faults()]
        for unit in ("schema", NAME, "kafka", "postgres"):
            lines = processes.tail(self.system.stack.log(unit), 400)
            told += [f"--- {unit}:", *[line[:1000] for line in lines if '"level":"info"' not in line][-15:]]
        return "\n".join(told)


class _Refused(AssertionError):
    """It cannot be done now; the same request would be answered the same."""


@asynccontextmanager
async def moving(system: System, folder: Path) -> AsyncIterator[Moving]:
    """A shop with dirt among its records, under traffic, whose migration is planned and ready."""
    databases = dsns(STOREFRONT, system.stack.endpoints)
    places = Places(
        urls={},
        shop=system.url(NAME),
        kv_dsn=databases["DSN"],
        tables_dsn=databases["TABLES_DSN"],
        token=system.token(),
        jaeger=None,
        mapping=CHECKOUT / "examples/storefront/mapping.yaml",
    )
    await seed(places, RECORDS, folder / "planted.json")
    answer = await system.plan(
        {
            "owner": OWNER,
            "source": "storefront-kv",
            "target": "storefront",
            "mapping": places.mapping.read_text(),
            "options": {"endpoints": _ENDPOINTS},
            # A comparison of a read that an outage cuts off is an error: at most so many as are under way at a time in
            # the shop (`ReadSettings.comparisons`), for each of the few outages while it compares. What differs because
            # the tables are behind is none.
            "settings": {"min_compared_reads": 50, "max_read_mismatches": 3 * 16, "max_apply_lag": 5.0},
        }
    )
    assert answer.status_code == 201, answer.text
    migration_id = answer.json()["id"]
    async with Traffic(places, folder, rate=RATE) as traffic:
        life = Moving(system, traffic, places, Planted.read(folder / "planted.json"), migration_id)
        try:
            await system.ready(migration_id)
            await traffic.begin("first")
            yield life
        except BaseException as error:
            error.add_note(await life.last_words())
            raise


def _gist(seen: Mapping[str, Any]) -> dict[str, Any]:
    names = ("phase", "moving_to", "problem", "work", "lag", "progress", "authority", "next", "rejects")
    return {name: seen[name] for name in names}
