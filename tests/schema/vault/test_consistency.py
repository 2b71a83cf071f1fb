"""Checking and repairing the vault: an injected fault for every row of docs/reference/vault-consistency.md."""

from __future__ import annotations

import asyncio
import re
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
import pytest_asyncio
import zstandard
from uuid_utils.compat import uuid7

from replank.contracts.schema import SchemaInconsistencyDetected
from replank.objects import ObjectInfo, ObjectNotFound, ObjectStore, ObjectStoreSettings
from replank.telemetry import metrics
from replank.testing import eventually
from replank.testing.services import Issuer, Rights, appended
from replank_schema.vault import collector, consistency, job_store, repair
from replank_schema.vault.codec import Compressor
from replank_schema.vault.findings import KINDS, QUARANTINE
from replank_schema.vault.job_store import Job
from replank_schema.vault.jobs import Jobs, Work
from replank_schema.vault.model import INCOMING, blob_key
from replank_schema.vault.vault import Vault, open_vault
from tests.schema.vault.conftest import Configure
from tests.schema.vault.served import ADA, BEN, CUSTOMER, problem, publish, sha256_of, text_of, upload

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "vault-consistency.md"
AT = "/schemavault/consistency"
LATER = {**CUSTOMER, "properties": {**CUSTOMER["properties"], "phone": {"type": "string"}}}
ORDERS = {"orders": [{"lines": [{"sku": f"sku {number}", "id": str(number)}]} for number in range(200)]}
GRACE = timedelta(seconds=1)
OVERDUE = timedelta(seconds=3)


class Elsewhere:
    """Another place where contents are."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    async def content(self, sha256: str) -> AsyncIterator[bytes] | None:
        text = self.contents.get(sha256)

        async def chunks(text: bytes) -> AsyncIterator[bytes]:
            yield text[:7]
            yield text[7:]

        return None if text is None else chunks(text)


@dataclass
class World:
    """A vault with two schemas: ``customer`` with two versions, ``orders`` with one. Somebody does its jobs."""

    client: httpx.AsyncClient
    vault: Vault
    database: asyncpg.Pool
    sources: Elsewhere
    jobs: Jobs | None = None
    first: str = ""
    second: str = ""
    orders: str = ""
    customer: dict[str, Any] = field(default_factory=dict)

    async def prepare(self) -> None:
        published = (await upload(self.client, "customer", tag=["crm"])).json()
        self.customer = (await publish(self.client, published, LATER)).json()
        shown = (await upload(self.client, "orders", ORDERS)).json()
        self.first, self.second, self.orders = published["sha256"], self.customer["sha256"], shown["sha256"]

    async def ask(self, what: str, body: Any = None) -> dict[str, Any]:
        """The result of a check or a repair."""
        answer = await self.client.post(f"{AT}/{what}", json=body)
        assert answer.status_code == 202, answer.text
        if self.jobs is not None:
            self.jobs.wake()

        async def job() -> dict[str, Any]:
            shown: dict[str, Any] = (await self.client.get(answer.headers["location"])).json()
            assert shown["state"] == "done", shown
            assert shown["done"] == shown["total"] or what == "repair", shown
            return shown

        result: dict[str, Any] = (await eventually(job, f"the {what} is done", within=20))["result"]
        return result

    async def check(self, *, deep: bool) -> dict[str, Any]:
        return await self.ask("check", {"deep": deep})

    async def findings(self, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            answer = await self.client.get(f"{AT}/findings", params={**query, "limit": 3, **cursor})
            assert answer.status_code == 200, answer.text
            found += answer.json()["items"]
            if answer.json()["next"] is None:
                return found
            cursor = {"cursor": answer.json()["next"]}

    async def open(self) -> dict[str, str]:
        """What each open finding is about, by kind."""
        return {finding["kind"]: finding["thing"] for finding in await self.findings(state="open")}

    async def told(self) -> list[SchemaInconsistencyDetected]:
        async with self.database.acquire() as conn:
            return [event for _, event in await appended(conn) if isinstance(event, SchemaInconsistencyDetected)]

    async def claimed_check(self) -> Job:
        """A deep check that nobody else does."""
        async with self.vault.pool.acquire() as conn, conn.transaction():
            await job_store.insert(conn, uuid7(), consistency.KIND, {"deep": True}, by=ADA)
            job = await job_store.claim(conn, [consistency.KIND], timedelta(seconds=60))
        assert job is not None
        return job

    # --- what faults are made of ---

    async def sql(self, statement: str, *values: Any) -> None:
        """As superuser, and without the checks of the vault's own tables and their foreign keys."""
        async with self.database.acquire() as conn, conn.transaction():
            await conn.execute("set local search_path = vault_standard")
            await conn.execute("set local session_replication_role = replica")
            assert not (await conn.execute(statement, *values)).endswith(" 0"), "nothing was done"

    async def stored(self, sha256: str) -> bytes:
        return await self.vault.objects.read(blob_key(sha256))

    async def overwrite(self, sha256: str, stored: bytes) -> None:
        await self.vault.objects.put(blob_key(sha256), stored)

    async def put_old(self, key: str, stored: bytes, age: timedelta) -> None:
        """Put an object, and come back when it is older than that."""
        await self.vault.objects.put(key, stored)

        async def is_old() -> bool:
            info = await self.vault.objects.stat(key)
            assert info.last_modified is not None
            assert info.last_modified < datetime.now(UTC) - age - timedelta(seconds=0.1)
            return True

        await eventually(is_old, f"{key} is older than {age}", within=10)


@asynccontextmanager
async def working(vault: Vault, sources: Elsewhere | None = None) -> AsyncIterator[Jobs]:
    """Do checks and repairs, as one process of the service does."""
    jobs = Jobs(vault, [{consistency.KIND: consistency.handle, repair.KIND: repair.handler(sources)}])
    stop = asyncio.Event()
    task = asyncio.create_task(jobs.run(stop))
    try:
        yield jobs
    finally:
        stop.set()
        await task


@asynccontextmanager
async def vault_of(configure: Configure, **limits: Any) -> AsyncIterator[Vault]:
    """The standard mode, as a process of the service has it."""
    settings = configure(**limits)
    assert settings.s3_url is not None
    opened = open_vault("standard", settings.vault["standard"], s3_url=settings.s3_url, limits=settings.vault_limits)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def vault(configure: Configure) -> AsyncIterator[Vault]:
    """The vault with little patience."""
    async with vault_of(configure, grace_seconds=1, collect_every=1, job_lease=1) as opened:
        yield opened


@pytest_asyncio.fixture
async def patient_vault(configure: Configure) -> AsyncIterator[Vault]:
    """The vault with the usual patience, whose jobs say every fifth of a second how far they are."""
    async with vault_of(configure, job_lease=1) as opened:
        yield opened


@pytest_asyncio.fixture
async def world(client: httpx.AsyncClient, vault: Vault, database: asyncpg.Pool) -> AsyncIterator[World]:
    made = World(client, vault, database, Elsewhere())
    await made.prepare()
    async with working(vault, made.sources) as made.jobs:
        yield made


# --- the page ---


def rows_of(heading: str) -> list[list[str]]:
    section = PAGE.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    table = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def kinds_of(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_every_row_of_the_page_has_its_fault_and_says_what_the_test_expects() -> None:
    assert [row[0] for row in rows_of("What it catches")] == [fault.name for fault in FAULTS]
    for (_, shallow, deep, _), fault in zip(rows_of("What it catches"), FAULTS, strict=True):
        assert (kinds_of(shallow), kinds_of(deep)) == (set(fault.shallow), set(fault.deep)), fault.name
    assert [row[0] for row in rows_of("What it cannot catch")] == [name for name, _ in BLIND_SPOTS]
    assert {kind for fault in FAULTS for kind in fault.deep} == set(KINDS)


# --- what it catches ---


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong; what checks must say of it, by kind: about what. After a repair ``left`` is open."""

    name: str
    inject: Callable[[World], Awaitable[None]]
    shallow: dict[str, str]
    also_deep: dict[str, str] = field(default_factory=dict)
    left: Sequence[str] = ()

    @property
    def deep(self) -> dict[str, str]:
        return {**self.shallow, **self.also_deep}


def by_sql(statement: str, of: str | None = None) -> Callable[[World], Awaitable[None]]:
    """``of`` names a content or schema of the world, which the statement has as its first value."""

    async def inject(world: World) -> None:
        await world.sql(
            statement, *([UUID(world.customer["id"])] if of == "id" else [getattr(world, of)] if of else [])
        )

    return inject


async def delete_object(world: World) -> None:
    await world.vault.objects.delete(blob_key(world.second))


async def put_orphan(world: World) -> None:
    await world.put_old(blob_key("ab" * 32), b"nobody's", GRACE)


async def flip_a_bit(world: World) -> None:
    stored = bytearray(await world.stored(world.second))
    stored[len(stored) // 2] ^= 1
    await world.overwrite(world.second, bytes(stored))


async def overwrite_in_length(world: World) -> None:
    await world.overwrite(world.second, bytes(len(await world.stored(world.second))))


async def overwrite_by_another(world: World) -> None:
    await world.overwrite(world.second, await world.stored(world.orders))


async def cut_off(world: World) -> None:
    await world.overwrite(world.second, (await world.stored(world.second))[:-10])


async def compress_otherwise(world: World) -> None:
    whole = text_of(LATER)
    frames = [zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in (whole[:50], whole[50:])]
    entries = [struct.pack("<II", len(frame), size) for frame, size in zip(frames, (50, len(whole) - 50), strict=True)]
    await world.overwrite(world.second, b"".join(frames) + table_of(entries))


def table_of(entries: Sequence[bytes]) -> bytes:
    """The table of the frames, as the seekable format has it."""
    size = sum(map(len, entries)) + 9
    return struct.pack("<II", 0x184D2A5E, size) + b"".join(entries) + struct.pack("<IBI", len(entries), 0, 0x8F92EAB1)


async def store_no_json(world: World) -> None:
    text = b"no JSON"
    compressor = Compressor()
    stored = compressor.feed(text) + compressor.finish()
    await world.vault.objects.put(blob_key(sha256_of(text)), stored)
    await world.sql(
        "insert into blob (sha256, size, stored_size, frame_size, kind, field_count, fields_exact, fields, state,"
        " stored_at) values ($1, 7, $2, 1048576, 'document', 0, true, '{}', 'stored', now())",
        sha256_of(text),
        len(stored),
    )


async def condemn_and_delete(world: World) -> None:
    await world.sql("update blob set state = 'condemned' where sha256 = $1", world.second)
    await world.vault.objects.delete(blob_key(world.second))


async def leave_uncollected(world: World) -> None:
    await put_blob(world, b'"forgotten"')
    await world.sql("update blob set touched_at = now() - interval '1 hour' where sha256 = $1", FORGOTTEN)


async def leave_condemned(world: World) -> None:
    await world.sql(
        "insert into blob (sha256, state, touched_at) values ($1, 'condemned', now() - interval '1 hour')", FORGOTTEN
    )


async def put_blob(world: World, text: bytes) -> None:
    answer = await world.client.put(
        f"/schemavault/blobs/{sha256_of(text)}", content=text, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 201, answer.text


FORGOTTEN = sha256_of(b'"forgotten"')
UPLOAD = f"{INCOMING}{UUID(int=7)}"


async def leave_upload(world: World) -> None:
    await world.put_old(UPLOAD, b"received once", OVERDUE)


async def put_foreign(world: World) -> None:
    await world.vault.objects.put("notes/todo.txt", b"tidy up")


_LATER_BLOB = "update blob set {} where sha256 = $1"

FAULTS = [
    Fault("an object is deleted", delete_object, {"missing": "second"}, left=["missing"]),
    Fault("an object has no row", put_orphan, {"orphaned": "ab" * 32}),
    Fault("a bit of an object flips", flip_a_bit, {}, {"corrupt": "second"}, left=["missing"]),
    Fault(
        "an object is overwritten by bytes of the same length",
        overwrite_in_length,
        {},
        {"corrupt": "second"},
        left=["missing"],
    ),
    Fault(
        "an object is overwritten by another content",
        overwrite_by_another,
        {"wrong_size": "second"},
        {"corrupt": "second"},
        left=["missing"],
    ),
    Fault("an object is cut off", cut_off, {"wrong_size": "second"}, {"corrupt": "second"}, left=["missing"]),
    Fault(
        "an object is compressed anew, in frames of another length",
        compress_otherwise,
        {"wrong_size": "second"},
        {"corrupt": "second"},
        left=["missing"],
    ),
    Fault(
        "the stored size in a row is another",
        by_sql(_LATER_BLOB.format("stored_size = stored_size + 1"), "second"),
        {"wrong_size": "second"},
    ),
    Fault(
        "the size in a row is another",
        by_sql(_LATER_BLOB.format("size = size - 1"), "second"),
        {"dangling": "id"},
        {"wrong_facts": "second"},
    ),
    Fault(
        "the kind in a row is another",
        by_sql(_LATER_BLOB.format("kind = 'document'"), "second"),
        {"dangling": "id"},
        {"wrong_facts": "second"},
    ),
    Fault(
        "the count of fields in a row is another",
        by_sql(_LATER_BLOB.format("field_count = 99"), "second"),
        {"dangling": "id"},
        {"wrong_facts": "second"},
    ),
    Fault(
        "the names of fields in a row are others",
        by_sql(_LATER_BLOB.format("fields = array['x']"), "second"),
        {},
        {"dangling": "id", "wrong_facts": "second"},
    ),
    Fault(
        "the length of frames in a row is another",
        by_sql(_LATER_BLOB.format("frame_size = 4096"), "second"),
        {},
        {"wrong_facts": "second"},
    ),
    Fault(
        "a content is stored by hand that is no JSON",
        store_no_json,
        {},
        {"wrong_facts": sha256_of(b"no JSON")},
        left=["wrong_facts"],
    ),
    Fault(
        "the row of a content in use says that it is still arriving",
        by_sql(_LATER_BLOB.format("state = 'arriving', stored_at = null, stored_size = null"), "second"),
        {"unstored": "second"},
    ),
    Fault(
        "the row of a content in use is condemned",
        by_sql(_LATER_BLOB.format("state = 'condemned', touched_at = now() - interval '1 day'"), "first"),
        {"unstored": "first"},
    ),
    Fault(
        "the row of a content in use is condemned, and the object is gone",
        condemn_and_delete,
        {"unstored": "second"},
        left=["unstored"],
    ),
    Fault("a content that nobody refers to is not collected", leave_uncollected, {"uncollected": FORGOTTEN}),
    Fault("a condemned content is not removed", leave_condemned, {"uncollected": FORGOTTEN}),
    Fault("a received upload is not collected", leave_upload, {"unclaimed": UPLOAD}),
    Fault("an object has a key that nothing here writes", put_foreign, {"foreign": "notes/todo.txt"}, left=["foreign"]),
    Fault(
        "a schema is at an earlier version than its highest",
        by_sql("update schema set version = 1 where id = $1", "id"),
        {"dangling": "id"},
    ),
    Fault(
        "a schema is at a later version than its highest, of the same content",
        by_sql("update schema set version = 5 where id = $1", "id"),
        {"dangling": "id"},
    ),
    Fault(
        "a schema has another content than its version",
        by_sql(
            "update schema set sha256 = (select sha256 from version where version = 1 and schema_id = $1)"
            " where id = $1",
            "id",
        ),
        {"dangling": "id"},
    ),
    Fault(
        "a schema's own size, kind or count is another",
        by_sql("update schema set size = 1, kind = 'document', field_count = 0 where id = $1", "id"),
        {"dangling": "id"},
    ),
    Fault(
        "a schema is found by other words than its tags and fields",
        by_sql("update schema set words = 'invoice' where id = $1", "id"),
        {},
        {"dangling": "id"},
    ),
    Fault(
        "the row of the current version is deleted",
        by_sql("delete from version where version = 2 and schema_id = $1", "id"),
        {"lost_version": "id"},
    ),
    Fault(
        "the row of an earlier version is deleted",
        by_sql("delete from version where version = 1 and schema_id = $1", "id"),
        {"lost_version": "id"},
        left=["lost_version"],
    ),
    Fault(
        "all rows of versions are deleted",
        by_sql("delete from version where schema_id = $1", "id"),
        {"lost_version": "id"},
        left=["lost_version"],
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
async def test_a_fault_is_found_told_once_and_repaired_as_far_as_it_can_be(world: World, fault: Fault) -> None:
    def about(expected: dict[str, str]) -> dict[str, str]:
        things = {"first": world.first, "second": world.second, "orders": world.orders, "id": world.customer["id"]}
        return {kind: things.get(thing, thing) for kind, thing in expected.items()}

    await fault.inject(world)
    assert set((await world.check(deep=False))["found"]) == set(fault.shallow)
    assert await world.open() == about(fault.shallow)
    assert set((await world.check(deep=True))["found"]) == set(fault.also_deep)
    assert await world.open() == about(fault.deep)
    # What the first one found was found again, and not told again.
    told = await world.told()
    assert {event.kind: event.sha256 or event.schemas for event in told}.keys() == fault.deep.keys()
    assert len(told) == len(fault.deep)
    repaired = await world.ask("repair")
    assert set(repaired["left"]) == set(fault.left), await world.findings()
    assert set(fault.deep) <= {*repaired["mended"], *repaired["gone"], *repaired["left"]}
    # It says what is so: a check has nothing to add.
    checked = await world.check(deep=True)
    assert (checked["found"], checked["gone"], set(checked["open"])) == ({}, {}, set(fault.left))
    assert all(finding["remedy"] for finding in await world.findings())
    # And once more it does no harm.
    again = await world.ask("repair")
    assert (again["mended"], set(again["left"])) == ({}, set(fault.left))


# --- what it cannot catch ---


async def delete_both_sides(world: World) -> None:
    await world.sql("delete from version where schema_id = $1", UUID(world.customer["id"]))
    await world.sql("delete from schema where id = $1", UUID(world.customer["id"]))
    for sha256 in (world.first, world.second):
        await world.sql("delete from blob where sha256 = $1", sha256)
        await world.vault.objects.delete(blob_key(sha256))


async def delete_last_version(world: World) -> None:
    await world.sql("delete from version where version = 2 and schema_id = $1", UUID(world.customer["id"]))
    await world.sql(
        "update schema s set version = 1, sha256 = b.sha256, size = b.size, field_count = b.field_count,"
        " words = (select string_agg(word, ' ') from regexp_split_to_table(words, ' ') word where word <> 'phone')"
        " from blob b where b.sha256 = $1 and s.name = 'customer'",
        world.first,
    )


async def replace_both_sides(world: World) -> None:
    await world.sql("update version set sha256 = $1 where version = 1 and sha256 <> $1", world.orders)


async def change_words_of_people(world: World) -> None:
    await world.sql(
        "update schema set name = 'x', description = 'wrong', metadata = '{\"a\": 1}', owner = 'user:eve'"
        " where name = 'customer'"
    )


async def rot_later(world: World) -> None:
    assert (await world.check(deep=True))["open"] == {}
    await flip_a_bit(world)
    assert await world.open() == {}  # until the next one looks
    assert (await world.check(deep=True))["found"] == {"corrupt": 1}
    stored = bytearray(await world.stored(world.second))
    stored[len(stored) // 2] ^= 1
    await world.overwrite(world.second, bytes(stored))


async def wrong_and_right_again(world: World) -> None:
    stored = await world.stored(world.second)
    await delete_object(world)
    await world.overwrite(world.second, stored)


async def change_note(world: World) -> None:
    await world.sql("update version set note = 'wrong', backward = not backward, forward = not forward")


async def change_consumers(world: World) -> None:
    await world.sql("insert into consumer values ('customer', 'nobody', 5, now(), now())")


async def change_labels(world: World) -> None:
    stored = await world.stored(world.second)
    await world.vault.objects.put(blob_key(world.second), stored, metadata={"sha256": "0" * 64, "size": "1"})


async def break_the_other_mode(world: World) -> None:
    shown = (await upload(world.client, "customer", at="/pro/schemas")).json()
    await world.database.execute("update vault_pro.schema set size = 1 where id = $1", UUID(shown["id"]))


BLIND_SPOTS: list[tuple[str, Callable[[World], Awaitable[None]]]] = [
    ("a schema, its versions and their content are deleted on both sides", delete_both_sides),
    ("the last versions of a schema are deleted, and it says so consistently", delete_last_version),
    ("a content is replaced on both sides, digest and all", replace_both_sides),
    ("an object rots after the check", rot_later),
    ("what is wrong between two checks, and right again", wrong_and_right_again),
    ("people's own words are wrong: name, description, tags, metadata, owner", change_words_of_people),
    ("the note of a version, or its verdict of compatibility, is changed", change_note),
    ("who was seen using a schema is changed", change_consumers),
    ("the labels of an object are changed", change_labels),
    ("a fault in the other mode", break_the_other_mode),
]


@pytest.mark.parametrize("inject", [inject for _, inject in BLIND_SPOTS], ids=[name for name, _ in BLIND_SPOTS])
async def test_what_it_cannot_catch_it_does_not_claim_to(
    world: World, inject: Callable[[World], Awaitable[None]]
) -> None:
    await inject(world)
    assert (await world.check(deep=True))["open"] == {}


# --- mending what was lost ---


async def test_sending_the_same_bytes_again_mends_a_loss_and_the_next_check_sees_it(world: World) -> None:
    await delete_object(world)
    found = (await world.check(deep=False))["found"]
    (finding,) = await world.findings()
    assert (found, finding["schemas"], finding["affected"]) == ({"missing": 1}, [world.customer["id"]], 1)
    assert (await world.ask("repair"))["left"] == {"missing": 1}
    (finding,) = await world.findings(state="open")
    assert "send the content again" in finding["remedy"]
    assert (await upload(world.client, "another", LATER)).status_code == 201
    assert (await world.check(deep=True))["gone"] == {"missing": 1}
    shown = await world.client.get(f"/schemavault/{world.customer['id']}/content")
    assert shown.json() == LATER


async def test_a_condemned_content_in_use_is_not_collected_and_can_be_sent_again(world: World) -> None:
    await world.sql(
        "update blob set state = 'condemned', touched_at = now() - interval '1 day' where sha256 = $1", world.second
    )
    await collector.collect(world.vault)
    assert await world.stored(world.second)
    await world.vault.objects.delete(blob_key(world.second))
    problem(await upload(world.client, "new", LATER), 503, "content-busy")
    await world.check(deep=False)
    assert (await world.ask("repair"))["left"] == {"unstored": 1}
    assert (await upload(world.client, "new", LATER)).status_code == 201
    assert (await world.check(deep=True))["open"] == {}


async def test_a_lost_content_comes_from_another_source_if_that_has_it_really(world: World) -> None:
    await delete_object(world)
    await world.check(deep=False)
    for wrong in (b'{"something": "else"}', b"no JSON"):
        world.sources.contents[world.second] = wrong
        assert (await world.ask("repair"))["left"] == {"missing": 1}
        with pytest.raises(ObjectNotFound):
            await world.stored(world.second)
    world.sources.contents[world.second] = text_of(LATER)
    assert (await world.ask("repair"))["mended"] == {"missing": 1}
    assert (await world.check(deep=True))["open"] == {}


async def test_a_corrupt_object_is_kept_aside_and_its_content_comes_from_another_source(world: World) -> None:
    await flip_a_bit(world)
    corrupt = await world.stored(world.second)
    world.sources.contents[world.second] = text_of(LATER)
    await world.check(deep=True)
    repaired = await world.ask("repair")
    assert (repaired["mended"], repaired["left"]) == ({"corrupt": 1}, {})
    aside = f"{QUARANTINE}{world.second}/{sha256_of(corrupt)}"
    assert await world.vault.objects.read(aside) == corrupt
    (finding,) = await world.findings(kind="corrupt")
    assert (finding["state"], aside in finding["remedy"]) == ("repaired", True)
    assert (await world.check(deep=True))["open"] == {}


async def test_a_lost_content_comes_from_the_rows_of_the_old_pattern(world: World) -> None:
    await delete_object(world)
    await world.sql(
        "insert into inline_schema (id, version, name, kind, field_count, fields_exact, size, sha256, owner,"
        " description, tags, metadata, note, content, created_by, updated_by, published_by)"
        " select id, version, name, kind, field_count, true, size, sha256, owner, description, tags, metadata, '', $1,"
        " $2, $2, $2 from schema where name = 'customer'",
        text_of(LATER).decode(),
        ADA,
    )
    rows = repair.InlineRows(world.vault)
    assert await rows.content(world.first) is None
    found = await rows.content(world.second)
    assert found is not None
    world.sources.contents[world.second] = b"".join([chunk async for chunk in found])
    await world.check(deep=False)
    assert (await world.ask("repair"))["mended"] == {"missing": 1}


async def test_only_the_findings_that_are_named_are_repaired(world: World) -> None:
    await world.sql("update blob set stored_size = stored_size + 1 where sha256 = any($1)", [world.first, world.orders])
    await world.check(deep=False)
    first = next(finding for finding in await world.findings() if finding["thing"] == world.first)
    repaired = await world.ask("repair", {"findings": [first["id"]]})
    assert (repaired["mended"], repaired["left"]) == ({"wrong_size": 1}, {})
    assert await world.open() == {"wrong_size": world.orders}
    again = await world.client.post(f"{AT}/repair", json={"findings": [first["id"]]})
    problem(again, 404, "finding-not-open")


# --- jobs ---


async def test_one_check_and_one_repair_may_be_open_for_who_administers(
    client: httpx.AsyncClient, rights: Rights, issuer_of_tokens: Issuer, configure: Configure
) -> None:
    first = await client.post(f"{AT}/check")
    assert first.status_code == 202, first.text
    problem(await client.post(f"{AT}/check", json={"deep": False}), 409, "job-under-way")
    assert (await client.post(f"{AT}/repair")).status_code == 202
    assert (await client.post("/pro/schemas/consistency/check")).status_code == 202
    assert (await client.post(f"{first.headers['location']}/cancel")).json()["state"] == "cancelled"
    assert (await client.post(f"{AT}/check")).status_code == 202
    client.headers["authorization"] = f"Bearer {issuer_of_tokens.token(BEN)}"
    rights.allowed |= {(BEN, "view", "vault:standard"), (BEN, "admin", "vault:pro")}
    problem(await client.post(f"{AT}/check"), 403, "forbidden")
    problem(await client.post(f"{AT}/repair"), 403, "forbidden")
    problem(await client.get(f"{AT}/findings"), 403, "forbidden")
    rights.allowed.add((BEN, "admin", "vault:standard"))
    assert (await client.get(f"{AT}/findings")).json() == {"items": [], "next": None}


async def test_a_check_that_was_interrupted_goes_on_where_it_was(
    client: httpx.AsyncClient, patient_vault: Vault, database: asyncpg.Pool
) -> None:
    many = 230
    await asyncio.gather(*(put_one(client, number) for number in range(many)))
    digests = sorted(sha256_of(text_of({"number": number})) for number in range(many))
    for lost in (digests[3], digests[-3]):
        await patient_vault.objects.delete(blob_key(lost))
    job = (await client.post(f"{AT}/check")).json()
    async with working(patient_vault):

        async def position() -> bool:
            stored = await database.fetchval("select position from vault_standard.job")
            return stored is not None and stored > "contents:"

        await eventually(position, "a position is stored", within=20)
    stored = await database.fetchval("select position from vault_standard.job")
    state = await database.fetchval("select state from vault_standard.job")
    assert state == "running", "it was over before it was interrupted"
    assert await database.fetchval("select count(*) from vault_standard.finding") == 1
    # What was looked at is not looked at again: a fault before the position stays unseen.
    passed = next(digest for digest in reversed(digests) if f"contents:{digest}" <= stored)
    await patient_vault.objects.delete(blob_key(passed))
    async with working(patient_vault):

        async def done() -> dict[str, Any]:
            shown: dict[str, Any] = (await client.get(f"/schemavault/jobs/{job['id']}")).json()
            assert shown["state"] == "done", shown
            return shown

        shown = await eventually(done, "the check is done", within=30)
    assert (shown["attempts"], shown["done"], shown["total"]) == (2, many, many)
    assert shown["result"]["found"] == {"missing": 2}


async def put_one(client: httpx.AsyncClient, number: int) -> None:
    text = text_of({"number": number})
    answer = await client.put(
        f"/schemavault/blobs/{sha256_of(text)}", content=text, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 201, answer.text


class Meanwhile(ObjectStore):
    """A bucket whose first listing comes late: something happens after the rows were read."""

    def __init__(self, settings: ObjectStoreSettings, happens: Callable[[], Awaitable[None]]) -> None:
        super().__init__(settings)
        self._happens: Callable[[], Awaitable[None]] | None = happens

    async def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> AsyncIterator[ObjectInfo]:
        if self._happens is not None:
            happens, self._happens = self._happens, None
            await happens()
        async for info in super().list(prefix, after=after, limit=limit):
            yield info


async def test_what_happens_between_two_looks_is_no_fault(world: World) -> None:
    await put_blob(world, b'"forgotten"')
    await world.sql("update blob set touched_at = now() - interval '2 seconds' where sha256 = $1", FORGOTTEN)
    happened: list[str] = []

    async def happens() -> None:
        # Its row was read as stored, and its object is not listed.
        assert (await collector.collect(world.vault)).contents == 1
        # It is listed, older than the grace, and its row was not read.
        await put_blob(world, b'"new"')
        await world.put_old(blob_key(sha256_of(b'"new"')), await world.stored(sha256_of(b'"new"')), GRACE)
        # Its size was read as another.
        frame = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(text_of(LATER))
        stored = frame + table_of([struct.pack("<II", len(frame), len(text_of(LATER)))])
        assert len(stored) != len(await world.stored(world.second))
        await world.overwrite(world.second, stored)
        await world.sql("update blob set stored_size = $2 where sha256 = $1", world.second, len(stored))
        happened.append("all of it")

    async with Meanwhile(world.vault.objects.settings, happens) as bucket:
        await consistency.handle(Work(replace(world.vault, objects=bucket), await world.claimed_check()))
    assert (await world.findings(), happened) == ([], ["all of it"])


async def test_what_goes_on_meanwhile_is_no_fault(world: World) -> None:
    """Uploads, new versions, deletions and the collector beside one check after another."""
    over = asyncio.Event()
    done: Counter[str] = Counter()

    async def writes(worker: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            name = f"{worker}/{number}"
            shown = (await upload(world.client, name, {"worker": worker, "number": number % 20})).json()
            await publish(world.client, shown, {"worker": worker, "other": number % 20})
            await world.client.delete(f"/schemavault/{shown['id']}")
            text = text_of(f"{worker} {number}")
            await world.client.put(
                f"/schemavault/blobs/{sha256_of(text)}", content=text, headers={"content-type": "application/json"}
            )
            # As if nobody had touched it for long: the collector's, between two looks.
            await world.database.execute(
                "update vault_standard.blob set touched_at = now() - interval '2 seconds' where sha256 = $1",
                sha256_of(text),
            )
            done["written"] += 1

    async def collects() -> None:
        while not over.is_set():
            done["collected"] += (await collector.collect(world.vault)).contents

    tasks = [asyncio.create_task(writes(worker)) for worker in range(3)] + [asyncio.create_task(collects())]
    try:
        for round_ in range(8):
            await world.check(deep=round_ % 2 == 0)
    finally:
        over.set()
        await asyncio.gather(*tasks)
    assert min(done["written"], done["collected"]) > 5, done
    assert await world.findings() == []
    assert await world.told() == []


async def test_open_findings_are_measured(world: World) -> None:
    await delete_object(world)
    await world.check(deep=False)
    series = metrics.VAULT_FINDINGS.labels(mode="standard", kind="missing")
    assert series._value.get() == 1
    assert metrics.VAULT_CONTENTS.labels(mode="standard")._value.get() > 0
    assert metrics.VAULT_BYTES.labels(mode="standard", of="stored")._value.get() > 0
    await upload(world.client, "again", LATER)
    await world.check(deep=False)
    assert series._value.get() == 0
