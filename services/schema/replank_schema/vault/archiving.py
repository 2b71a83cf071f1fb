"""Giving the rows of the old pattern away: to the archiver, by an event, and deleting them once it has proven them.

What is offered does not change: it is an object, made once. Nothing is deleted before another service has read its own
copy back; then exactly those rows go that are still as they were offered, in the transaction of its event. Whatever
fails before leaves every row where it is.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from replank import outbox
from replank.connection import Connection
from replank.contracts.archiver import SchemasArchived
from replank.contracts.schema import SchemaArchiveOldRequested
from replank.objects import ObjectNotFound
from replank_schema.vault import archive_store, job_store, moving, pattern_store
from replank_schema.vault.archive_store import Row
from replank_schema.vault.codec import Compressor
from replank_schema.vault.job_store import Job
from replank_schema.vault.jobs import Handler, Work
from replank_schema.vault.model import EXPORTS, SchemaNotFound, VaultError
from replank_schema.vault.pattern import MoveRefused, Phase
from replank_schema.vault.vault import Vault

KIND: Final = "archive"

_PAGE: Final = 8  # they come with their contents
_FIRST: Final = UUID(int=0)
_PATH: Final = "select set_config('search_path', $1, true)"
_MAY: Final = frozenset({Phase.COMPLETED, Phase.ARCHIVED})


class NotWhatWasOffered(VaultError):
    """The archiver has something else than the rows that it was offered. Nothing was deleted."""


async def start(vault: Vault, *, by: str) -> Job:
    """Queue the job that offers all old rows to the archiver.

    Raises `MoveRefused`, and `asyncpg.UniqueViolationError` while one is under way.
    """
    async with vault.pool.acquire() as conn, conn.transaction():
        await pattern_store.alone(conn, vault.mode)
        await _require_completed(conn)
        rows = await pattern_store.rows(conn)
        if not rows:
            raise MoveRefused("there are no old rows to be archived", fix="there is nothing to do")
        return await job_store.insert(conn, uuid7(), KIND, {}, total=rows, by=by)


async def _require_completed(conn: Connection) -> Phase:
    standing = await pattern_store.get(conn)
    if standing is None or standing.phase not in _MAY or standing.verified_at is None:
        raise MoveRefused(
            f"old rows are archived once the migration is completed and verified; it is "
            f"{standing.phase if standing else Phase.PLANNED}",
            fix="look at GET pattern, and advance it",
        )
    return standing.phase


def export_key(request_id: UUID) -> str:
    return f"{EXPORTS}{request_id}"


class _Export:
    """Reads every row once, in order. What it knows it knows when `compressed` has ended."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._digest = hashlib.sha256()
        self.rows: list[Row] = []

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    async def compressed(self) -> AsyncIterator[bytes]:
        compressor = Compressor()
        after = (_FIRST, 0)
        while True:
            async with self._work.vault.pool.acquire() as conn, conn.transaction():
                await conn.execute("set local timezone to 'UTC'")
                found = await archive_store.lines(conn, after, _PAGE)
            for row in found:
                after = (row["id"], row["version"])
                self.rows.append((row["id"], row["version"], row["row_version"]))
                line: bytes = row["line"].encode() + b"\n"
                self._digest.update(line)
                if made := await asyncio.to_thread(compressor.feed, line):
                    yield made
            self._work.done = len(self.rows)
            if len(found) < _PAGE:
                break
        yield compressor.finish()


def handler(prefix: str) -> Handler:
    """The handler of the mode whose routes begin so."""

    async def handle(work: Work) -> None:
        await _offer(work, prefix)

    return handle


async def _offer(work: Work, prefix: str) -> None:
    """Write the rows to an object, and ask the archiver to take it. Interrupted, it begins again."""
    vault, job = work.vault, work.job
    async with vault.pool.acquire() as conn:
        phase = await _require_completed(conn)
    if phase is Phase.COMPLETED:
        await _require_alike(work)
    export = _Export(work)
    info = await vault.objects.put(export_key(job.id), export.compressed(), content_type="application/zstd")
    async with work.finish({"rows": len(export.rows), "sha256": export.sha256}) as conn:
        await pattern_store.alone(conn, vault.mode)
        phase = await _require_completed(conn)
        request = await archive_store.insert(
            conn, job.id, export.rows, sha256=export.sha256, stored_size=info.size, by=job.created_by
        )
        if phase is Phase.COMPLETED:
            await pattern_store.move(conn, Phase.ARCHIVING, by=job.created_by)
        asked = SchemaArchiveOldRequested(
            mode=vault.mode,
            request_id=request.id,
            rows=request.rows,
            sha256=request.sha256,
            path=f"{prefix}/pattern/export/{request.id}",
            requested_by=request.requested_by,
            requested_at=request.requested_at,
        )
        await outbox.append(conn, asked, key=str(request.id), subject=f"vault:{vault.mode}")


async def _require_alike(work: Work) -> None:
    """While both patterns are written they must say the same, or the old one is not given away."""
    after = (_FIRST, 0)
    while True:
        async with work.vault.pool.acquire() as conn:
            pairs = await pattern_store.pairs(conn, after, _PAGE)
            rejected = await pattern_store.rejected_of(conn, [pair["schema_id"] for pair in pairs])
        for pair in pairs:
            after = (pair["schema_id"], pair["version"])
            if pair["schema_id"] not in rejected and (reason := moving.stated_difference(pair)) is not None:
                raise MoveRefused(
                    f"version {pair['version']} of {pair['name']}: {reason}", fix="roll back, and migrate again"
                )
        if len(pairs) < _PAGE:
            return


async def offered(vault: Vault, request_id: UUID) -> str:
    """The key of the object that was offered. Raises `SchemaNotFound` for what is not offered, or not any more."""
    async with vault.pool.acquire() as conn:
        request = await archive_store.get(conn, request_id)
    if request is None or request.state != "requested":
        raise SchemaNotFound(f"nothing is offered as {request_id}", fix="it was archived, or withdrawn by a rollback")
    key = export_key(request_id)
    if not await vault.objects.exists(key):
        raise ObjectNotFound(f"the export {key} is not in the object store", fix="archive the old rows again")
    return key


async def settle(conn: Connection, archived: SchemasArchived) -> bool:
    """Delete what is archived, in the caller's transaction, as the owner of the tables.

    False: it was done before, or is not wanted any more, because the migration was rolled back. Raises
    `NotWhatWasOffered`.
    """
    before: str = await conn.fetchval("select current_setting('search_path')")
    # For this transaction at most; the mode is one of two words.
    await conn.execute(_PATH, f"vault_{archived.mode}")
    settled = await _settle(conn, archived)
    await conn.execute(_PATH, before)
    return settled


async def _settle(conn: Connection, archived: SchemasArchived) -> bool:
    standing = await pattern_store.alone(conn, archived.mode)
    request = await archive_store.get(conn, archived.request_id)
    if standing is None or request is None or request.state != "requested":
        return False
    if (request.rows, request.sha256) != (archived.rows, archived.sha256):
        raise NotWhatWasOffered(
            f"the archiver has {archived.rows} rows with the SHA-256 {archived.sha256} of the request {request.id}, "
            f"which offered {request.rows} with {request.sha256}",
            fix="find out what the archiver fetched; the rows are all still here",
        )
    await archive_store.settle(conn, request, bucket=archived.bucket, object_key=archived.object_key)
    if standing.phase is Phase.ARCHIVING:
        await pattern_store.move(conn, Phase.ARCHIVED, by=request.requested_by)
    return True
