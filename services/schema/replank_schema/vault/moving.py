"""Moving a mode from the old pattern to the new one, and back.

`start` begins to write to both; the job backfills what is there, and then proves of every row that its content is in
the object store and that both patterns say the same. From then on reads may go to the new one. `roll_back` has reads
and writes go to the old one from one moment to the next, which has every write, since it never ceased to be written.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, Final
from uuid import UUID

from pydantic import JsonValue
from uuid_utils.compat import uuid7

from replank.connection import Connection
from replank.migrate.throttle import Throttle, ThrottleSettings
from replank.objects import ObjectNotFound
from replank_schema.vault import archive_store, contents, inline_store, job_store, pattern_store, store
from replank_schema.vault.codec import CorruptContent
from replank_schema.vault.job_store import Job
from replank_schema.vault.jobs import Work
from replank_schema.vault.model import Blob, VaultError, words_of
from replank_schema.vault.pattern import FOLLOWING, REVERSIBLE, STARTABLE, MoveRefused, Phase
from replank_schema.vault.pattern_store import Reject, Standing
from replank_schema.vault.scan import NotJson
from replank_schema.vault.vault import Vault

KIND: Final = "migrate"

_PAGE: Final = 200
_PAIRS: Final = 8  # they come with their contents
_FIRST: Final = UUID(int=0)
_VERIFYING: Final = "verify"


class Differs(VaultError):
    """Rows are not in the new pattern as they are in the old one."""


# --- what somebody asks for ---


async def start(vault: Vault, *, by: str) -> Job:
    """Begin to write to both patterns, and queue the job that moves what is there; also again, after it failed.

    Raises `MoveRefused`, and `asyncpg.UniqueViolationError` while a job of this kind is under way.
    """
    async with vault.pool.acquire() as conn, conn.transaction():
        standing = await _alone(conn, vault, by=by)
        _demand(standing, standing.phase in STARTABLE, "migrated", "there is nothing to move any more")
        if standing.phase in {Phase.PLANNED, Phase.ROLLED_BACK}:
            # What is there was not written since.
            await pattern_store.forget_copies(conn)
        await pattern_store.forget_run(conn)
        rows = await pattern_store.rows(conn)
        job = await job_store.insert(conn, uuid7(), KIND, {}, total=2 * rows, by=by)
        await pattern_store.start(conn, job.id, by=by)
    return job


async def advance(vault: Vault, *, force: bool, by: str) -> Standing:
    """Go on to the next phase: from reading with fallback to reading without, and from there to done.

    Refused while the flag is off, or while there are rejected rows or reads that were answered differently, unless it
    is forced. Raises `MoveRefused`.
    """
    optimized = await vault.switch.optimized()
    async with vault.pool.acquire() as conn, conn.transaction():
        standing = await _alone(conn, vault, by=by)
        to = FOLLOWING.get(standing.phase)
        _demand(standing, to is not None, "advanced", "migrate it first, or archive what is old")
        _demand(standing, optimized, "advanced", "the flag USE_OPTIMIZED_SCHEMAS is off for it")
        rejected = await pattern_store.rejected(conn)
        different = sum(outcomes.get("mismatch", 0) for outcomes in (await pattern_store.reads(conn)).values())
        _demand(standing, force or not rejected, "advanced", f"{rejected} rows are rejected: mend them, or force it")
        _demand(
            standing,
            force or not different,
            "advanced",
            f"{different} reads were answered differently: find out why and migrate again, or force it",
        )
        if to is None:
            raise AssertionError("was demanded above")
        return await pattern_store.move(conn, to, by=by)


async def roll_back(vault: Vault, *, by: str) -> Standing:
    """Have reads and writes go to the old pattern from now on. Raises `MoveRefused` once old rows are archived."""
    async with vault.pool.acquire() as conn, conn.transaction():
        standing = await _alone(conn, vault, by=by)
        if standing.phase is Phase.ROLLED_BACK:
            return standing
        _demand(standing, standing.phase in REVERSIBLE, "rolled back", "the old pattern does not have every write")
        if standing.job_id is not None:
            await job_store.cancel(conn, standing.job_id)
        await archive_store.withdraw(conn)
        return await pattern_store.move(conn, Phase.ROLLED_BACK, by=by)


async def _alone(conn: Connection, vault: Vault, *, by: str) -> Standing:
    standing = await pattern_store.alone(conn, vault.mode)
    if standing is None:
        optimized = await vault.switch.optimized()
        await pattern_store.begin(conn, Phase.NEW if optimized else Phase.PLANNED, by=by)
        standing = await pattern_store.get(conn)
    if standing is None:
        raise AssertionError("it was begun above")
    return standing


def _demand(standing: Standing, condition: bool, what: str, why: str) -> None:
    if not condition:
        raise MoveRefused(
            f"a mode in the phase {standing.phase} cannot be {what} now: {why}", fix="look at GET pattern for its phase"
        )


# --- the job ---


async def handle(work: Work) -> None:
    """Backfill and verify. Interrupted, it goes on where it was; what is moved already is not moved again."""
    vault, job = work.vault, work.job
    throttle = _throttle(vault)
    work.done = job.done
    if job.position is None or not job.position.startswith(_VERIFYING):
        await _backfill(work, throttle)
        async with vault.pool.acquire() as conn, conn.transaction():
            await pattern_store.alone(conn, vault.mode)
            await _require_phase(conn, job, Phase.BACKFILLING)
            await pattern_store.move(conn, Phase.VERIFYING, by=job.created_by)
        work.position = _VERIFYING
    rows = await _verify(work, throttle)
    async with vault.pool.acquire() as conn:
        rejected = await pattern_store.rejected(conn)
    result: dict[str, JsonValue] = {"rows_verified": rows, "rejected": rejected}
    async with work.finish(result) as conn:
        await pattern_store.alone(conn, vault.mode)
        await _require_phase(conn, job, Phase.VERIFYING)
        await pattern_store.verified(conn, job.id, rows)


async def _require_phase(conn: Connection, job: Job, *phases: Phase) -> None:
    standing = await pattern_store.get(conn)
    if standing is None or standing.job_id != job.id or standing.phase not in phases:
        raise MoveRefused("the migration was taken back, or started again", fix="look at GET pattern")


def _throttle(vault: Vault) -> Throttle:
    # Only its pace: it asks no server for anything.
    pace = ThrottleSettings(rows_per_second=vault.limits.moves_per_second)
    return Throttle(source="", target="", settings=lambda: pace)


async def _backfill(work: Work, throttle: Throttle) -> None:
    vault = work.vault
    after = UUID(work.position) if work.position is not None else _FIRST
    while True:
        async with vault.pool.acquire() as conn:
            found = await pattern_store.waiting(conn, after, _PAGE)
        for schema_id in found:
            await throttle.admit()
            moved = await _move(work, schema_id)
            throttle.spent(moved)
            work.done += moved
            after = schema_id
            work.position = str(after)
        if len(found) < _PAGE:
            return


async def _move(work: Work, schema_id: UUID) -> int:
    """Put the contents of a schema's rows into the object store, then its rows into the new pattern.

    How many rows that were; those of a schema of which one cannot be moved stay where they are.
    """
    vault = work.vault
    async with vault.pool.acquire() as conn:
        rows = await pattern_store.versions(conn, schema_id)
    blobs = {}
    for row in rows:
        if (blob := await _keep(vault, schema_id, row)) is not None:
            blobs[row["version"]] = blob
    async with vault.pool.acquire() as conn, conn.transaction():
        await pattern_store.share(conn, vault.mode)
        await _require_phase(conn, work.job, Phase.BACKFILLING)
        await inline_store.hold(conn, schema_id)
        held = await pattern_store.versions(conn, schema_id)
        for row in held:
            blob = blobs.get(row["version"])
            # Published meanwhile: few, so whoever writes this schema waits for them.
            if blob is None or blob.sha256 != row["sha256"]:
                blob = await _keep(vault, schema_id, row)
            if blob is None:
                return len(held)
            blobs[row["version"]] = blob
        if await store.get(conn, schema_id) is None:
            await _copy(conn, schema_id, blobs, current=next(row["version"] for row in held if row["is_current"]))
        await pattern_store.accept(conn, schema_id)
    return len(held)


async def _keep(vault: Vault, schema_id: UUID, row: Any) -> Blob | None:
    """Have the content of a row in the object store; None where it is rejected."""
    try:
        return await _kept(vault, schema_id, row)
    except (NotJson, Differs) as error:
        found = Reject(schema_id, row["version"], row["name"], "backfill", error.message)
    async with vault.pool.acquire() as conn:
        await pattern_store.reject(conn, found)
    return None


async def _kept(vault: Vault, schema_id: UUID, row: Any) -> Blob:
    async with vault.pool.acquire() as conn:
        inline = await inline_store.content(conn, schema_id, row["version"])
    if inline is None:
        raise Differs(f"version {row['version']} of {row['name']} went away while it was moved", fix="migrate again")
    taken = await contents.take_in(inline.text.encode())
    if taken.blob.sha256 != row["sha256"]:
        raise Differs(
            f"the content of version {row['version']} of {row['name']} has the SHA-256 {taken.blob.sha256}, "
            f"not {row['sha256']} as its row says",
            fix="find out which of the two is right, and mend the row",
        )
    if taken.data is None:
        raise AssertionError("it was in memory")
    return await contents.keep(vault, taken.blob, taken.data)


async def _copy(conn: Connection, schema_id: UUID, blobs: dict[int, Blob], *, current: int) -> None:
    for version, blob in blobs.items():
        await contents.refer(conn, blob)
        await pattern_store.facts(conn, schema_id, version, blob)
    tags = await pattern_store.tags(conn, schema_id)
    await pattern_store.copy(conn, schema_id, blobs[current], words_of([*tags, *blobs[current].fields]))


async def _verify(work: Work, throttle: Throttle) -> int:
    """Look at every row of the old pattern: its content is read back from the object store. How many agree.

    Raises `Differs` in the end if any did not.
    """
    vault = work.vault
    after = (_FIRST, 0)
    agreeing = differing = 0
    while True:
        async with vault.pool.acquire() as conn:
            pairs = await pattern_store.pairs(conn, after, _PAIRS)
            rejected = await pattern_store.rejected_of(conn, [pair["schema_id"] for pair in pairs])
        for pair in pairs:
            await throttle.admit()
            throttle.spent(1)
            work.done += 1
            after = (pair["schema_id"], pair["version"])
            if not pair["there"] and pair["schema_id"] in rejected:
                continue
            if (reason := await difference(vault, pair)) is None:
                agreeing += 1
                continue
            differing += 1
            found = Reject(pair["schema_id"], pair["version"], pair["name"], "verify", reason)
            async with vault.pool.acquire() as conn:
                await pattern_store.reject(conn, found)
        if len(pairs) < _PAIRS:
            break
    if differing:
        raise Differs(
            f"{differing} of {agreeing + differing} rows are not in the new pattern as they are in the old one",
            fix="look at the rejects of GET pattern, mend them, and migrate again",
        )
    return agreeing


async def difference(vault: Vault, pair: Any) -> str | None:
    """In what a row of the old pattern and what the new one has of it differ; None: in nothing."""
    if (stated := stated_difference(pair)) is not None:
        return stated
    blob = Blob(
        sha256=pair["sha256"],
        size=pair["size"],
        stored_size=pair["stored_size"],
        frame_size=pair["frame_size"],
        kind=pair["kind"],
        field_count=pair["field_count"],
        fields_exact=pair["fields_exact"],
        fields=(),
    )
    try:
        data = await contents.read(vault, blob)
    except ObjectNotFound:
        return "its content is not in the object store"
    except CorruptContent as error:
        return error.message
    text: bytes = pair["content"].encode()
    found, wanted = await asyncio.to_thread(
        lambda: (hashlib.sha256(data).hexdigest(), hashlib.sha256(text).hexdigest())
    )
    if not found == wanted == pair["sha256"]:
        return f"its content has the SHA-256 {wanted}, that in the object store {found}, and its row says {blob.sha256}"
    return None


def stated_difference(pair: Any) -> str | None:
    """As `difference`, of what the tables say, without reading any content."""
    if not pair["there"]:
        return "it is not in the new pattern"
    if pair["state"] != "stored":
        return f"the row of its content says {pair['state']}"
    if not pair["version_agrees"]:
        return "what is known of the version differs"
    if not pair["schema_agrees"]:
        return "what is known of the schema differs"
    return None
