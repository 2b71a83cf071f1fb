"""A migration led by the command alone, against the service as a process on real servers."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from replank.testing import eventually, servers
from replank.testing.processes import Process
from replank.testing.services import Issuer, basics, migrate_completely, playing_rights
from replank_schema.migration import service as use_cases
from replank_schema.migration.model import Item, State
from tests.cli.command import Answer, replank, running
from tests.schema.life import Shop, a_shop

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADA = ("user:ada", "plan", "system:replank")
PATIENCE = 60.0


@dataclass
class Place:
    """A shop whose records are to move, the service that moves them, and the environment that leads to it."""

    environment: dict[str, str]
    database: asyncpg.Pool
    shop: Shop
    folder: Path

    async def migrate(self, *arguments: str) -> Answer:
        return await replank("migrate", *arguments, **self.environment)

    async def done(self, *arguments: str) -> Answer:
        answer = await self.migrate(*arguments)
        assert answer.code == 0, answer
        return answer

    async def plan(self, name: str, *options: str) -> str:
        """Plan a migration of this name, whose checklist is open; returns its id."""
        mapping = self.folder / f"{name}.yaml"
        mapping.write_text(self.shop.mapping.replace(self.shop.name, name))
        between = ("--source", "source", "--target", "target", "--owner", "user:ben")
        answer = await self.done("plan", str(mapping), *between, "--endpoint", "orders.list", "--json", *options)
        planned: str = json.loads(answer.out)["id"]
        return planned

    async def vouch(self, migration_id: str) -> None:
        """All that the checklist asks of other services, settled as their events would."""
        async with self.database.acquire() as conn, conn.transaction():
            for item in Item:
                await use_cases.settle(conn, UUID(migration_id), item, State.MET, detail="seen", event_id=uuid4())

    async def view(self, named: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await self.done("status", named, "--json")).out)
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(postgres_server: str, kafka: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("migrate")
    issuer = Issuer(folder)
    async with (
        servers.database(postgres_server) as dsn,
        a_shop(postgres_server) as shop,
        playing_rights(ADA) as rights,
    ):
        await migrate_completely(dsn, "replank_schema")
        given = basics(issuer, dsn=dsn, kafka=kafka, name="schema", authz_url=rights.url)
        given["databases"] = json.dumps({"source": shop.source_dsn, "target": shop.target_dsn})
        environment = {f"REPLANK_SCHEMA_{name.upper()}": str(value) for name, value in given.items()}
        async with (
            asyncpg.create_pool(dsn, min_size=1, max_size=2) as database,
            Process("replank_schema", env=environment) as serving,
        ):
            line = json.loads(await serving.line_with("listening on", within=PATIENCE))
            reached = {
                "REPLANK_SCHEMA_URL": "http://" + line["message"].removeprefix("listening on "),
                "REPLANK_TOKEN": issuer.token(exp=int(time.time()) + 3600),
            }
            yield Place(reached, database, shop, folder)


def fresh() -> str:
    return f"shop_{uuid4().hex[:12]}"


WHY = ("--reason", "a test of the command")
WAIT = ("--wait", "--timeout", "50")


@pytest.mark.timeout(400)
async def test_a_migration_goes_its_whole_way_and_back_by_the_command_alone(place: Place) -> None:
    shop, name = place.shop, place.shop.name
    await shop.seed(300)
    await shop.source.execute("insert into kv_store values ('order:bad', '{\"clientId\": 7}'), ('order:old', '[]')")
    await place.vouch(await place.plan(name, "--set", "min_compared_reads=0"))

    await place.done("start", name, *WAIT, *WHY)
    assert (await place.view(name))["phase"] == "capturing"
    for phase in ("backfilling", "verifying"):
        advanced = await place.done("advance", name, *WAIT, *WHY)
        assert f"[{phase}]" in advanced.out

    listed = await place.done("rejects", "list", name)
    assert "order:bad" in listed.out
    assert "expected object, found array" in listed.out
    retried = await place.done("rejects", "retry", name, "order:bad", *WHY)
    assert retried.out.startswith("1 sent again")
    # What is mended where it is written needs nothing else.
    await shop.source.execute("delete from kv_store where key = 'order:bad'")

    async def one_is_left() -> list[str]:
        left = [reject["key"] for reject in json.loads((await place.done("rejects", "list", name, "--json")).out)]
        assert left == ["order:old"]
        return left

    await eventually(one_is_left, "what was mended is no reject any more", within=PATIENCE)
    assert (await place.migrate("rejects", "accept", name, "--all", *WHY)).code == 1, "nobody said yes"
    assert (await place.done("rejects", "accept", name, "order:old", "--yes", *WHY)).out == "1 accepted\n"

    await place.done("advance", name, *WAIT, *WHY)
    async with shop.target.acquire() as conn, conn.transaction():
        await conn.execute("select set_config('replank_migrate.applier', $1, true)", name)
        await conn.execute("update orders set total = total + 1 where id = '7'")
    differing = await place.migrate("compare", name, *WAIT)
    assert differing.code == 1, "exit status 1 says that not all agree"
    assert "1 different" in differing.out
    assert "orders.total" in (await place.done("mismatches", name)).out
    would = await place.done("repair", name, "--dry-run")
    assert "would be" in would.out
    assert "order:7" in (await place.done("mismatches", name)).out, "a dry run changes nothing"
    await place.done("repair", name, "--yes")
    assert (await place.done("compare", name, *WAIT)).out.count("100 % agree") == 1
    assert "order:7" not in (await place.done("mismatches", name)).out

    await place.done("advance", name, "--rollout", "25", *WAIT, *WHY)
    held = await place.migrate("advance", name, *WHY)
    assert held.code == 1
    assert "reads_moved: not yet wholly on the tables: orders.list" in held.error
    await place.done("reads", name, "orders.list", "new_with_fallback", *WHY)
    cut_over = await place.done("advance", name, *WAIT, *WHY)
    assert "[new_only]" in cut_over.out
    assert "to the tables" in (await place.done("status", name)).out
    await shop.put(7)

    back = await place.done("rollback", name, *WAIT, *WHY)
    assert "[rolled_back]" in back.out
    assert "the table orders holds rows already" in back.out, "it was not asked to drop them"
    await shop.source.execute("delete from kv_store where key = 'order:old'")
    assert await shop.key_value() == shop.truth, "what was written to the tables came back"
    done = json.loads((await place.done("audit", name, "--json")).out)
    assert {line["reason"] for line in done if line["who"] == "user:ada" and line["action"] != "plan"} == {WHY[1]}
    assert [line["action"] for line in done][-2:] == ["start", "plan"]
    whole = (await place.done("audit", name, "--evidence")).out
    assert "rollback" in whole

    assert (await place.migrate("retire", name, "--drop-tables", *WHY)).code == 1, "nobody typed its name"
    assert (await place.migrate("retire", name, "--drop-tables", "--open", "--yes", *WHY)).code == 1
    assert (await place.view(name))["phase"] == "rolled_back"
    retired = await place.done("retire", name, "--drop-tables", "--yes", *WAIT, *WHY)
    assert "[retired]" in retired.out
    assert "its name is free" in retired.out
    assert await shop.target.fetchval("select to_regclass('orders') is null")
    again = await place.plan(name)
    assert (await place.view(name))["id"] == again, "what was retired is meant by nobody"


async def test_a_refusal_names_each_unmet_condition_and_what_to_do(place: Place) -> None:
    name = fresh()
    await place.plan(name)
    refused = await place.migrate("start", name, *WHY)
    assert refused.code == 1
    assert refused.error.splitlines()[:3] == [
        "error: start is refused in the phase planned",
        "  access: pending",
        "    what to do: grant the owner the relation owner on the migration, in auth-cache",
    ]
    assert "  baseline: pending" in refused.error
    early = await place.migrate("advance", name, "--wait", *WHY)
    assert early.code == 1, "what no waiting makes possible is refused at once"
    assert "start" in early.error
    unknown = await place.migrate("reads", name, "nothing", "kv", *WHY)
    assert unknown.code == 1
    assert "names no endpoint nothing" in unknown.error
    far = await place.migrate("reads", name, "orders.list", "new", *WHY)
    assert "new is more than kv" in far.error


async def test_waiting_is_left_by_ctrl_c_without_harm_and_says_so(place: Place) -> None:
    name = fresh()
    migration_id = await place.plan(name)
    async with running("migrate", "start", name, "--wait", *WHY, **place.environment) as waiting:
        assert waiting.stderr is not None
        line = await asyncio.wait_for(waiting.stderr.readline(), PATIENCE)
        assert b"capturing needs access, baseline, archive" in line
        waiting.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(waiting.communicate(), PATIENCE)
    assert waiting.returncode == 1, "what was to be waited for did not come"
    # How things stand may have been told of once more before.
    assert said.decode().splitlines()[-1] == (
        "left to itself: nothing was asked of it yet, and what it does in planned goes on"
    )
    assert (await place.view(migration_id))["phase"] == "planned"


async def test_waiting_ends_in_time_and_says_that_nothing_was_asked(place: Place) -> None:
    name = fresh()
    await place.plan(name)
    late = await place.migrate("start", name, "--wait", "--timeout", "2", *WHY)
    assert late.code == 1
    assert "it took longer than 2 s: nothing was asked of it yet" in late.error


async def test_a_name_means_the_one_that_is_under_way_and_two_of_a_name_are_told_apart_by_id(place: Place) -> None:
    name = fresh()
    first = await place.plan(name)
    await place.done("cancel", first, *WHY)
    assert (await place.view(name))["id"] == first, "there is no other one"
    second = await place.plan(name)
    assert (await place.view(name))["id"] == second, "what was cancelled is meant by nobody"
    third = await place.plan(name)
    both = await place.migrate("cancel", name, *WHY)
    assert both.code == 1
    assert f"2 migrations are named {name}" in both.error
    assert second in both.error
    assert third in both.error
    await place.done("cancel", third, *WHY)
    assert (await place.view(name))["id"] == second
    assert [one["id"] for one in json.loads((await place.done("list", "--name", name, "--json")).out)] == [
        third,
        second,
        first,
    ]
    missing = await place.migrate("status", fresh())
    assert missing.code == 1
    assert "replank migrate list" in missing.error


async def test_knobs_are_turned_and_wrong_ones_are_named(place: Place) -> None:
    name = fresh()
    await place.plan(name, "--capture", "writer")
    assert (await place.view(name))["options"]["capture"] == "writer"
    turned = await place.done(
        "set", name, "rows_per_second=2000", "throttle_query=select true", "auto_until=verifying", *WHY
    )
    assert turned.out.splitlines() == [
        "rows_per_second: none -> 2000",
        "throttle_query: none -> select true",
        "auto_until: none -> verifying",
    ]
    assert (await place.done("set", name, "rows_per_second=none", *WHY)).out == "rows_per_second: 2000 -> none\n"
    wrong = await place.migrate("set", name, "speed=1", *WHY)
    assert "there is no setting speed" in wrong.error
    assert "rows_per_second" in wrong.error
    refused = await place.migrate("set", name, "chunk_rows=many", *WHY)
    assert refused.code == 1
    assert "body.settings.chunk_rows" in refused.error


async def test_an_invalid_mapping_is_refused_with_its_lines(place: Place, tmp_path: Path) -> None:
    mapping = tmp_path / "wrong.yaml"
    mapping.write_text(place.shop.mapping.replace('"numeric(12,2)"', "money").replace("type: integer", "type: int"))
    there = ("--source", "source", "--target", "target", "--owner", "user:ben")
    for refused in (await place.migrate("plan", str(mapping), *there), await place.migrate("sql", str(mapping))):
        assert refused.code == 1
        lines = [line for line in refused.error.splitlines() if line.startswith("  line ")]
        assert [line.split(": ")[0] for line in lines] == [
            "  line 22, entities.order.columns.total.type",
            "  line 31, entities.order.children.items.columns.quantity.type",
        ]


async def test_on_a_terminal_the_reason_is_asked_for_and_the_view_is_live(place: Place) -> None:
    name = fresh()
    migration_id = await place.plan(name)
    screen = await on_a_terminal(
        ("migrate", "start", name, "--wait"), place.environment, ("why (kept", "by hand\r"), ("Ctrl-C", "\x03")
    )
    assert "[planned]" in screen
    assert "what to do: grant the owner the relation owner" in screen
    assert "left to itself" in screen
    await place.vouch(migration_id)
    await on_a_terminal(("migrate", "cancel", name), place.environment, ("why (kept", "by hand\r"))
    (last, *_) = json.loads((await place.done("audit", name, "--json")).out)
    assert (last["action"], last["reason"]) == ("cancel", "by hand")
    asked = f"type {name} to retire it"
    assert "Aborted" in await on_a_terminal(("migrate", "retire", name, *WHY), place.environment, (asked, "shop\r"))
    screen = await on_a_terminal(("migrate", "retire", name, *WHY), place.environment, (asked, f"{name}\r"))
    assert "it was never started, so nothing of it is left" in screen


async def on_a_terminal(arguments: tuple[str, ...], environment: dict[str, str], *typed: tuple[str, str]) -> str:
    """All that the command shows on a terminal; of each ``(seen, keys)`` the keys are typed as soon as it is seen."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLANK_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "replank_cli", *arguments),
        env={**kept, "TERM": "xterm", "COLUMNS": "200", "LINES": "60", **environment},
        # Its own session's terminal, or else Ctrl-C would be a character like any other.
        preexec_fn=lambda: os.login_tty(theirs),
    )
    os.close(theirs)
    shown, waiting = "", list(typed)
    try:
        async with asyncio.timeout(PATIENCE):
            while read := await asyncio.to_thread(_read, ours):
                shown += read
                if waiting and waiting[0][0] in shown:
                    os.write(ours, waiting.pop(0)[1].encode())
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
    assert not waiting, shown
    return shown


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:
        return ""  # nobody has its other end any more
