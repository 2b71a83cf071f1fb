"""From the pattern where a row has everything to contents in the object store, and back, while it is written."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
import zstandard

from replank.contracts.archiver import SchemasArchived
from replank.contracts.schema import SchemaArchiveOldRequested
from replank.flags import Flag
from replank.flags.store import keep_copy
from replank.testing import eventually
from replank.testing.plugin import FaultProxies
from replank.testing.services import Issuer, appended, emit, http_alone, living
from replank_schema.application import compose
from replank_schema.vault import archiving, moving, reads
from replank_schema.vault.jobs import Jobs
from replank_schema.vault.model import blob_key
from replank_schema.vault.pattern import Phase, Switch
from replank_schema.vault.vault import Vault, open_vault
from tests.schema.vault.conftest import Configure
from tests.schema.vault.served import ADA, CUSTOMER, problem, publish, sha256_of, text_of, upload

P = "/schemavault"
JSON = {"content-type": "application/json"}

# What both patterns have to say alike, as one text each.
OLD = """
    select id, name, status, revision, version, kind, field_count, size, sha256, owner, description, tags,
           metadata::text, created_at, created_by, updated_at, updated_by, deleted_at, deleted_by
      from vault_standard.inline_schema where is_current order by id
"""
NEW = OLD.replace("inline_schema where is_current", "schema")
OLD_VERSIONS = """
    select id, version, sha256, note, backward, forward, published_at, published_by
      from vault_standard.inline_schema order by id, version
"""
NEW_VERSIONS = """
    select schema_id as id, version, sha256, note, backward, forward, created_at as published_at,
           created_by as published_by
      from vault_standard.version order by 1, 2
"""


@dataclass
class Stage:
    """A mode in its old pattern, whose jobs are worked on by another process than the one that answers."""

    client: httpx.AsyncClient
    vault: Vault
    database: asyncpg.Pool
    jobs: Jobs

    async def pattern(self) -> dict[str, Any]:
        shown: dict[str, Any] = (await self.client.get(f"{P}/pattern")).json()
        return shown

    async def phase(self) -> str:
        return str((await self.pattern())["phase"])

    async def do(self, action: str, state: str = "done") -> dict[str, Any]:
        """Ask for a job, and wait for its end."""
        answer = await self.client.post(f"{P}/pattern/{action}")
        assert answer.status_code == 202, answer.text
        self.jobs.wake()

        async def ended() -> dict[str, Any]:
            job: dict[str, Any] = (await self.client.get(answer.headers["location"])).json()
            assert job["state"] == state, job
            return job

        return await eventually(ended, f"{action} is {state}", within=30)

    async def advance(self, **query: Any) -> httpx.Response:
        return await self.client.post(f"{P}/pattern/advance", params=query)

    async def complete(self) -> None:
        """All the way to where old rows may be archived."""
        await self.do("migrate")
        for phase in (Phase.NEW_ONLY, Phase.COMPLETED):
            assert (await self.advance()).json()["phase"] == phase

    async def alike(self) -> None:
        """Both patterns say the same of everything."""
        assert await self.database.fetch(OLD) == await self.database.fetch(NEW)
        assert await self.database.fetch(OLD_VERSIONS) == await self.database.fetch(NEW_VERSIONS)


@asynccontextmanager
async def stage_of(
    configure: Configure, issuer: Issuer, database: asyncpg.Pool, *, optimized: bool = True, **limits: Any
) -> AsyncIterator[Stage]:
    """``optimized`` is the flag after the mode has begun with the old pattern."""
    settings = configure(job_lease=1.0, moves_per_second=None, **limits)
    await database.execute("insert into vault_standard.pattern (phase, changed_by) values ('planned', 'system:test')")
    settings = settings.model_copy(update={"use_optimized_schemas": optimized})
    assert settings.s3_url is not None
    vault = open_vault("standard", settings.vault["standard"], s3_url=settings.s3_url, limits=settings.vault_limits)
    async with http_alone(compose(settings), issuer.token(ADA)) as client, working(vault) as jobs:
        yield Stage(client, vault, database, jobs)
    await vault.close()


@asynccontextmanager
async def working(vault: Vault) -> AsyncIterator[Jobs]:
    stop = asyncio.Event()
    jobs = Jobs(vault, [{moving.KIND: moving.handle, archiving.KIND: archiving.handler(P)}])
    task = asyncio.create_task(jobs.run(stop))
    try:
        yield jobs
    finally:
        stop.set()
        await task


# --- the old pattern ---


async def test_with_the_flag_off_the_same_routes_work_on_rows_that_have_everything(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    settings = configure().model_copy(update={"use_optimized_schemas": False})
    async with http_alone(compose(settings), issuer_of_tokens.token(ADA)) as client:
        first = await upload(client, "shop/customer", tag=["crm"], metadata='{"team": "sales"}', note="first")
        assert first.status_code == 201, first.text
        shown = first.json()
        assert (await upload(client, "shop/customer")).status_code == 200
        problem(await upload(client, "shop/customer", {"type": "string"}), 409, "name-taken")
        second = await publish(client, shown, {**CUSTOMER, "required": []})
        assert (second.status_code, second.json()["version"]) == (201, 2)
        assert (await client.get(f"{P}/{shown['id']}")).json() == second.json()
        assert (await client.get(f"{P}/by-name/shop/customer")).json() == second.json()
        versions = (await client.get(f"{P}/{shown['id']}/versions")).json()["items"]
        assert [(one["version"], one["note"], one["backward"]) for one in versions] == [
            (2, "", True),
            (1, "first", None),
        ]
        old = await client.get(f"{P}/{shown['id']}/versions/1/content")
        assert (old.content, old.headers["etag"]) == (text_of(CUSTOMER), f'"{shown["sha256"]}"')
        part = await client.get(f"{P}/{shown['id']}/versions/1/content", headers={"range": "bytes=2-9"})
        assert (part.status_code, part.content) == (206, text_of(CUSTOMER)[2:10])
        listed = (await client.get(P, params={"tag": "crm", "metadata": '{"team": "sales"}'})).json()["items"]
        assert listed == [second.json()]
        deleted = await client.delete(f"{P}/{shown['id']}")
        assert deleted.json()["status"] == "deleted"
        assert (await client.get(P)).json()["items"] == []
        assert (await client.post(f"{P}/{shown['id']}/restore")).json()["status"] == "active"
        tagged = await client.patch(f"{P}/{shown['id']}", json={"tags": ["b"]}, headers={"if-match": '"4"'})
        assert (tagged.json()["tags"], tagged.json()["revision"]) == (["b"], 5)
        assert (await client.get(f"{P}/pattern")).json()["phase"] == "planned"
    assert await database.fetchval("select count(*) from vault_standard.blob") == 0
    assert await database.fetchval("select count(*) from vault_standard.inline_schema") == 2
    assert await database.fetchval("select count(*) from replank_outbox.event") == 4


async def test_what_the_old_pattern_never_had_says_what_it_needs(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database, inline_bytes=4096) as stage:
        client = stage.client
        shown = (await upload(client, "a", {"a": 1})).json()
        large = json.dumps(["x" * 200 + str(number) for number in range(5000)]).encode()
        refused = [
            await upload(client, "large", large),
            await client.get(P, params={"q": "word"}),
            await client.get(f"{P}/{shown['id']}/diff", params={"from": 1, "to": 1}),
            await client.post(f"{P}/{shown['id']}/versions/1/validate"),
            await client.put(f"{P}/blobs/{sha256_of(b'{}')}", content=b"{}", headers=JSON),
        ]
        for answer in refused:
            problem(answer, 409, "needs-optimized-schemas")
        assert [info.key async for info in stage.vault.objects.list()] == []
        # A content that some row has need not be sent again.
        missing = await client.post(f"{P}/blobs/missing", json={"sha256": [shown["sha256"], "0" * 64]})
        assert missing.json() == {"missing": ["0" * 64]}
        assert (await client.post(P, json={"name": "b", "sha256": shown["sha256"]})).status_code == 201


@pytest.mark.parametrize("phase", ["planned", "new_with_fallback"])
async def test_of_many_who_publish_at_once_one_does_and_the_others_see_that_it_changed(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool, phase: str
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        schema = (await upload(stage.client, "a", {"a": 0})).json()
        if phase == "new_with_fallback":
            await stage.do("migrate")
        for turn in range(1, 6):
            answers = await asyncio.gather(*(publish(stage.client, schema, {"a": turn, "by": who}) for who in range(5)))
            assert sorted(answer.status_code for answer in answers) == [201, 412, 412, 412, 412]
            schema = next(answer.json() for answer in answers if answer.status_code == 201)
        assert schema["version"] == 6


async def test_a_mode_begins_with_what_the_flag_says_at_its_first_write_and_stays(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    for optimized, phase in ((True, "new"), (False, "new")):
        settings = configure().model_copy(update={"use_optimized_schemas": optimized})
        async with http_alone(compose(settings), issuer_of_tokens.token(ADA)) as client:
            assert (await upload(client, f"a{optimized}", {"a": 1})).status_code == 201
            assert (await client.get(f"{P}/pattern")).json()["phase"] == phase
            assert {one["name"] for one in (await client.get(P)).json()["items"]} >= {f"a{optimized}", "aTrue"}
            problem(await client.post(f"{P}/pattern/migrate"), 409, "phase-refuses")
            problem(await client.post(f"{P}/pattern/rollback"), 409, "phase-refuses")
    assert await database.fetchval("select count(*) from vault_standard.inline_schema") == 0


# --- the whole life ---


class Writers:
    """Several who write all the time, and remember what they were told."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.told: dict[str, dict[str, Any]] = {}
        self.texts: dict[tuple[str, int], bytes] = {}
        self.writes = 0

    async def write(self, name: str, stop: asyncio.Event) -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            schema = self.told.get(name)
            content = {"type": "object", "properties": {f"{name}{turn}": {"type": "string"}}}
            if schema is None:
                answer = await upload(self.client, name, content)
            elif schema["status"] == "deleted":
                answer = await self.client.post(f"{P}/{schema['id']}/restore")
            else:
                match turn % 4:
                    case 0 | 1:
                        answer = await publish(self.client, schema, content, note=f"turn {turn}")
                    case 2:
                        headers = {"if-match": f'"{schema["revision"]}"'}
                        answer = await self.client.patch(
                            f"{P}/{schema['id']}", json={"tags": [f"t{turn}"], "description": name}, headers=headers
                        )
                    case _:
                        answer = await self.client.delete(f"{P}/{schema['id']}")
            assert answer.status_code in {200, 201}, answer.text
            said = answer.json()
            if schema is None or said["version"] != schema["version"]:
                self.texts[said["id"], said["version"]] = text_of(content)
            self.told[name] = said
            self.writes += 1

    async def check(self) -> None:
        """Everything that anybody was told is there, as it was told."""
        for said in self.told.values():
            assert (await self.client.get(f"{P}/{said['id']}")).json() == said
        for (schema_id, number), text in self.texts.items():
            assert (await self.client.get(f"{P}/{schema_id}/versions/{number}/content")).content == text


@asynccontextmanager
async def writing(client: httpx.AsyncClient, names: int = 4) -> AsyncIterator[Writers]:
    writers, stop = Writers(client), asyncio.Event()
    tasks = [asyncio.create_task(writers.write(f"live{number}", stop)) for number in range(names)]
    try:
        yield writers
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def test_a_whole_life_under_writers_loses_nothing_and_both_say_the_same_in_every_phase(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        before = [(await upload(stage.client, f"old{n}", {"n": n, "same": True})).json() for n in range(20)]
        await publish(stage.client, before[0], {"n": "second"})
        async with writing(stage.client) as writers:

            async def more() -> None:
                enough = writers.writes + 8
                await eventually(lambda: writers.writes >= enough, "there are more writes", within=20)

            await more()
            await stage.complete()
            await more()
            # All the way back in the middle of it, and once more.
            assert (await stage.client.post(f"{P}/pattern/rollback")).json()["phase"] == "rolled_back"
            await more()
            await writers.client.get(P)
            await stage.do("migrate")
            await more()
            assert (await stage.advance()).json()["phase"] == "new_only"
            await more()
        await writers.check()
        await stage.alike()
        shown = await stage.pattern()
        assert (shown["run"], shown["rejected"], shown["mismatches"]) == (2, 0, 0)
        assert shown["rows_verified"] >= 21
        await stage.client.post(f"{P}/pattern/rollback")
        await writers.check()
        events = await database.fetchval("select count(*) from replank_outbox.event")
        assert events >= 21 + len(writers.texts)


async def test_after_a_rollback_the_next_read_and_write_are_the_old_patterns(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        shown = (await upload(stage.client, "a", {"a": 1})).json()
        await stage.complete()
        newer = (await publish(stage.client, shown, {"a": 2})).json()
        await stage.client.post(f"{P}/pattern/rollback")
        # Whatever the new pattern says now is of no account.
        await database.execute("update vault_standard.schema set description = 'not this'")
        assert (await stage.client.get(f"{P}/{shown['id']}")).json() == newer
        third = (await publish(stage.client, newer, {"a": 3})).json()
        assert third["version"] == 3
        assert await database.fetchval("select max(version) from vault_standard.version") == 2
        await stage.do("migrate")
        assert (await stage.client.get(f"{P}/{shown['id']}")).json() == third
        await stage.alike()


async def test_a_backfill_whose_process_was_killed_goes_on_in_another(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        for number in range(12):
            await upload(stage.client, f"s{number:02}", {"n": number})
        moved = "select count(*) from vault_standard.schema"
        limits = stage.vault.limits.model_copy(update={"moves_per_second": 10.0})
        slow = Vault(
            mode="standard",
            role=stage.vault.role,
            pool=stage.vault.pool,
            objects=stage.vault.objects,
            limits=limits,
            switch=Switch("standard"),
        )
        job = await moving.start(slow, by=ADA)
        # Not woken: `stage.jobs` looks once a second. The slow one takes it, and dies on its way.
        async with working(slow):

            async def some() -> bool:
                return 0 < int(await database.fetchval(moved)) < 12

            await eventually(some, "some are moved", within=20)
        assert await database.fetchval(moved) < 12

        async def ended() -> bool:
            return bool(await database.fetchval("select state = 'done' from vault_standard.job where id = $1", job.id))

        await eventually(ended, "another process has done it", within=30)
        assert await stage.phase() == "new_with_fallback"
        assert await database.fetchval("select attempts from vault_standard.job where id = $1", job.id) >= 2
        await stage.alike()


async def test_rows_that_are_no_json_stay_are_named_and_are_in_the_way_until_they_are_mended(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        good, bad, other = [(await upload(stage.client, name, {"n": name})).json() for name in ("good", "bad", "other")]
        spoil = "update vault_standard.inline_schema set content = $2, sha256 = $3 where id = $1"
        await database.execute(spoil, UUID(bad["id"]), "{not json", sha256_of(b"{not json"))
        await database.execute(spoil, UUID(other["id"]), '{"n": "changed"}', other["sha256"])
        job = await stage.do("migrate")
        assert job["result"] == {"rows_verified": 1, "rejected": 2}
        shown = await stage.pattern()
        assert {(one["name"], one["step"]) for one in shown["rejects"]} == {("bad", "backfill"), ("other", "backfill")}
        assert "SHA-256" in next(one["reason"] for one in shown["rejects"] if one["name"] == "other")
        # They are read from where they are, and written there.
        assert (await stage.client.get(f"{P}/{bad['id']}/content")).content == b"{not json"
        problem(await stage.advance(), 409, "phase-refuses")
        mended = await publish(stage.client, (await stage.client.get(f"{P}/{bad['id']}")).json(), {"n": "mended"})
        assert mended.status_code == 201, mended.text
        await database.execute(
            "update vault_standard.inline_schema set content = $2, sha256 = $3 where id = $1 and version = 1",
            UUID(bad["id"]),
            "{}",
            sha256_of(b"{}"),
        )
        await database.execute(spoil, UUID(other["id"]), '{"n": 1}', sha256_of(b'{"n": 1}'))
        await stage.do("migrate")
        assert (await stage.pattern())["rejected"] == 0
        assert (await stage.advance()).json()["phase"] == "new_only"
        assert (await stage.client.get(f"{P}/{good['id']}")).json() == good
        await stage.alike()


async def test_verifying_reads_every_content_back(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        lost, damaged, fine = [(await upload(stage.client, name, {"n": name})).json() for name in ("l", "d", "f")]
        await stage.do("migrate")
        await stage.vault.objects.delete(blob_key(lost["sha256"]))
        await stage.vault.objects.put(blob_key(damaged["sha256"]), zstandard.compress(b'{"n": "x"}'))
        job = await stage.do("migrate", "failed")
        assert "2 of 3 rows" in job["problem"]
        shown = await stage.pattern()
        assert shown["phase"] == "verifying"
        assert {(one["name"], one["step"]) for one in shown["rejects"]} == {("l", "verify"), ("d", "verify")}
        # Until it is mended the old pattern answers.
        assert (await stage.client.get(f"{P}/{lost['id']}/content")).json() == {"n": "l"}
        assert (await stage.client.get(f"{P}/{fine['id']}/content")).json() == {"n": "f"}


# --- reads ---


async def flag(database: asyncpg.Pool, name: str, value: bool | str) -> None:
    """What a process knows of a flag when it starts."""
    told = Flag(name, value, True, 100.0, 1, False, ADA, "", datetime.now(UTC))
    await keep_copy(database, [told])


async def test_a_planted_difference_is_found_by_comparing_and_keeps_it_from_going_on(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await flag(database, "migrate.vault-standard.reads.get", "compare")
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        shown = (await upload(stage.client, "a", {"a": 1})).json()
        await stage.do("migrate")
        router = reads.read_router(stage.vault)
        answering = reads.Reads(stage.vault, router)
        assert await stage.phase() == "new_with_fallback"  # and the flags are loaded
        await answering.schema(UUID(shown["id"]))
        await database.execute("update vault_standard.schema set description = 'planted'")
        answer = await answering.schema(UUID(shown["id"]))
        assert answer is not None
        assert answer.description == ""
        await router.close(within=10)
        pattern = await stage.pattern()
        assert pattern["reads"] == {"get": {"match": 1, "mismatch": 1}}
        assert pattern["mismatches"] == 1
        problem(await stage.advance(), 409, "phase-refuses")


async def test_while_the_object_store_is_down_the_old_pattern_answers(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool, fault_proxy: FaultProxies, s3_server: Any
) -> None:
    proxy = await fault_proxy(urlsplit(s3_server[0]).netloc)
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        shown = (await upload(stage.client, "a", {"a": 1})).json()
        await stage.do("migrate")
        settings = configure().model_copy(update={"s3_url": f"http://{proxy.address}"})
        await proxy.refuse()
        async with http_alone(compose(settings), issuer_of_tokens.token(ADA)) as client:
            assert (await client.get(f"{P}/{shown['id']}/content")).json() == {"a": 1}
            # A write needs both, and neither is written without the other.
            assert (await upload(client, "b", {"b": 1})).status_code == 503
        assert await database.fetchval("select count(*) from vault_standard.inline_schema") == 1
        await stage.alike()


async def test_the_flag_has_reads_go_back_while_both_are_written(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        shown = (await upload(stage.client, "a", {"a": 1})).json()
        await stage.complete()
        await database.execute("update vault_standard.schema set description = 'new'")
        assert (await stage.client.get(f"{P}/{shown['id']}")).json()["description"] == "new"
        await flag(database, "USE_OPTIMIZED_SCHEMAS", False)
        await flag(database, "migrate.vault-standard.reads.get", "new")
        settings = configure()
        async with http_alone(compose(settings), issuer_of_tokens.token(ADA)) as client:
            assert (await client.get(f"{P}/{shown['id']}")).json()["description"] == ""
            assert (await publish(client, shown, {"a": 2})).status_code == 201
            problem(await client.post(f"{P}/pattern/advance"), 409, "phase-refuses")
        assert await database.fetch(OLD_VERSIONS) == await database.fetch(NEW_VERSIONS)


# --- giving the old rows away ---


async def offered(stage: Stage) -> SchemaArchiveOldRequested:
    await stage.do("archive-old")
    async with stage.database.acquire() as conn:
        return [event for _, event in await appended(conn) if isinstance(event, SchemaArchiveOldRequested)][-1]


def archived(asked: SchemaArchiveOldRequested, **changes: Any) -> SchemasArchived:
    return SchemasArchived(
        mode=asked.mode,
        request_id=asked.request_id,
        rows=asked.rows,
        sha256=asked.sha256,
        bucket="archive",
        object_key="there",
        size=1,
        archived_at=datetime.now(UTC),
    ).model_copy(update=changes)


async def settle(stage: Stage, event: SchemasArchived) -> bool:
    async with stage.database.acquire() as conn, conn.transaction():
        return await archiving.settle(conn, event)


async def rows_left(stage: Stage) -> int:
    return int(await stage.database.fetchval("select count(*) from vault_standard.inline_schema"))


async def test_old_rows_are_offered_once_it_is_completed_and_deleted_when_they_are_proven_elsewhere(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        shown = [(await upload(stage.client, f"s{n}", {"n": n, "ö": "ü"})).json() for n in range(10)]
        problem(await stage.client.post(f"{P}/pattern/archive-old"), 409, "phase-refuses")
        await stage.complete()
        asked = await offered(stage)
        assert (await stage.phase(), asked.rows, await rows_left(stage)) == ("archiving", 10, 10)
        export = await stage.client.get(asked.path)
        lines = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(export.content)
        assert hashlib.sha256(lines).hexdigest() == asked.sha256
        kept = [json.loads(line) for line in lines.decode().splitlines()]
        assert {one["id"]: json.loads(one["content"])["n"] for one in kept} == {
            one["id"]: n for n, one in enumerate(shown)
        }
        assert await settle(stage, archived(asked))
        assert (await stage.phase(), await rows_left(stage)) == ("archived", 0)
        # Said once more: nothing more happens.
        assert not await settle(stage, archived(asked))
        assert (await stage.client.get(asked.path)).status_code == 404
        problem(await stage.client.post(f"{P}/pattern/rollback"), 409, "phase-refuses")
        assert (await publish(stage.client, shown[3], {"n": "next"})).status_code == 201
        assert (await stage.client.get(f"{P}/{shown[3]['id']}/content")).json() == {"n": "next"}
        assert (await stage.client.get(f"{P}/{shown[3]['id']}/diff", params={"from": 1, "to": 2})).status_code == 200
        assert await rows_left(stage) == 0


async def test_what_changed_after_it_was_offered_is_not_deleted_and_is_offered_again(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        first, _, third = [(await upload(stage.client, f"s{n}", {"n": n})).json() for n in range(3)]
        await stage.complete()
        asked = await offered(stage)
        await publish(stage.client, first, {"n": "newer"})
        await upload(stage.client, "late", {"n": "late"})
        await database.execute(
            "update vault_standard.inline_schema set note = 'by hand' where id = $1", UUID(third["id"])
        )
        assert await settle(stage, archived(asked))
        left = await database.fetch("select name, version from vault_standard.inline_schema order by name, version")
        assert [tuple(row) for row in left] == [("late", 1), ("s0", 1), ("s0", 2), ("s2", 1)]
        again = await offered(stage)
        assert (await stage.phase(), again.rows) == ("archived", 4)
        assert await settle(stage, archived(again))
        assert await rows_left(stage) == 0


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"rows": 1}, {"request_id": uuid4()}])
async def test_nothing_is_deleted_for_another_digest_count_or_request(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool, wrong: dict[str, Any]
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        for n in range(3):
            await upload(stage.client, f"s{n}", {"n": n})
        await stage.complete()
        asked = await offered(stage)
        if "request_id" in wrong:
            assert not await settle(stage, archived(asked, **wrong))
        else:
            with pytest.raises(archiving.NotWhatWasOffered, match=str(asked.request_id)):
                await settle(stage, archived(asked, **wrong))
        assert (await stage.phase(), await rows_left(stage)) == ("archiving", 3)
        assert await settle(stage, archived(asked))


async def test_a_rollback_withdraws_what_was_offered(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        shown = (await upload(stage.client, "a", {"a": 1})).json()
        await stage.complete()
        asked = await offered(stage)
        await stage.client.post(f"{P}/pattern/rollback")
        assert not await settle(stage, archived(asked))
        assert (await stage.phase(), await rows_left(stage)) == ("rolled_back", 1)
        assert (await stage.client.get(f"{P}/{shown['id']}/content")).json() == {"a": 1}
        assert (await stage.client.get(asked.path)).status_code == 404


async def test_the_service_forgets_rows_when_it_hears_that_they_are_archived_and_no_others(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool, kafka: str
) -> None:
    async with stage_of(configure, issuer_of_tokens, database) as stage:
        await upload(stage.client, "a", {"a": 1})
        await stage.complete()
        asked = await offered(stage)
        async with living(compose(configure()), issuer_of_tokens.token(ADA)):
            for event in (archived(asked, sha256="0" * 64), archived(asked)):
                # Keys of their own: the first one is a dead letter, which parks its key.
                await emit(kafka, event, key=str(uuid4()))

            async def both() -> bool:
                # The service publishes its own event contracts meanwhile: they were not offered.
                left = await database.fetchval("select count(*) from vault_standard.inline_schema where name = 'a'")
                return left == 0 and bool(await database.fetchval("select count(*) from replank_inbox.dead_letter"))

            await eventually(both, "the forged one is a dead letter, the other one is believed", within=40)
        assert await stage.phase() == "archived"
