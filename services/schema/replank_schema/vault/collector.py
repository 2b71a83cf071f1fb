"""Taking away what nobody refers to: contents, unfinished uploads, the records of jobs long ended.

A content goes in three steps: its row is condemned, which only ever happens to one that nobody referred to or touched
for the length of the grace; its object is deleted; its row goes, in the transaction that held the row through the
second step. Who sends the same content meanwhile waits for the row, or does the rest himself: never does an object that
somebody counts on go.

An object without a row is left alone. No crash leaves one, since the row is there first; but a database that was
restored to an earlier moment does, and then the objects are all that is left. A consistency check finds them, and a
repair that somebody asked for takes them away (`collect_one`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from replank.connection import POSTGRES_ERRORS
from replank.errors import DependencyUnavailable
from replank.objects import ObjectStoreError
from replank_schema.vault import archive_store, contents, job_store
from replank_schema.vault.model import EXPORTS, INCOMING
from replank_schema.vault.vault import Vault

_log = logging.getLogger(__name__)

_PAGE: Final = 500
_JOBS_KEPT: Final = timedelta(days=7)

_CONDEMN: Final = """
    update blob set state = 'condemned'
     where sha256 in (
        select sha256 from blob b
         where touched_at < clock_timestamp() - $1::interval and state <> 'condemned'
           and not exists (select from version v where v.sha256 = b.sha256)
         limit $2
     )
       -- Again, of the row as it is once it is locked.
       and touched_at < clock_timestamp() - $1::interval and state <> 'condemned'
"""
# The same of one content.
_CONDEMN_ONE: Final = """
    update blob set state = 'condemned'
     where sha256 = $2 and touched_at < clock_timestamp() - $1::interval and state <> 'condemned'
       and not exists (select from version v where v.sha256 = blob.sha256)
"""
_CONDEMN_UNKNOWN: Final = "insert into blob (sha256, state) values ($1, 'condemned') on conflict do nothing"
_CONDEMNED: Final = "select sha256 from blob where state = 'condemned' and sha256 > $1 order by sha256 limit $2"


@dataclass(slots=True)
class Collected:
    """What one run took away. ``contents`` are contents, ``uploads`` those received and never published."""

    contents: int = 0
    uploads: int = 0


async def run(vault: Vault, stop: asyncio.Event) -> None:
    """Collect now and then until ``stop`` is set. Outages are waited out; any number of processes may do so."""
    while not stop.is_set():
        try:
            collected = await collect(vault)
            if collected.contents or collected.uploads:
                _log.info(
                    "collected %d contents and %d unfinished uploads",
                    collected.contents,
                    collected.uploads,
                    extra={"vault_mode": vault.mode},
                )
        except (DependencyUnavailable, ObjectStoreError, *POSTGRES_ERRORS) as error:
            _log.warning("nothing is collected: %s", error, extra={"vault_mode": vault.mode})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(vault.limits.collect_every):
                await stop.wait()


async def collect(vault: Vault) -> Collected:
    """Take away what is older than the grace and referred to by nobody."""
    collected = Collected()
    grace = vault.limits.grace
    async with vault.pool.acquire() as conn:
        while (await conn.execute(_CONDEMN, grace, _PAGE)).endswith(f" {_PAGE}"):
            pass
        await job_store.expire(conn, _JOBS_KEPT)
    before = datetime.now(UTC) - grace
    after = ""
    while True:
        async with vault.pool.acquire() as conn:
            condemned = [row["sha256"] for row in await conn.fetch(_CONDEMNED, after, _PAGE)]
        for sha256 in condemned:
            collected.contents += await contents.remove_condemned(vault, sha256)
        if len(condemned) < _PAGE:
            break
        after = condemned[-1]
    collected.uploads += await _unfinished(vault, before)
    await _exports(vault, before)
    await vault.objects.abort_stale_uploads(older_than=grace)
    return collected


async def collect_one(vault: Vault, sha256: str) -> bool:
    """Take one content away as a run would, be it that its row is old and nobody refers to it, or that it has none.

    Whether it is gone now. That an object without a row is older than the grace is for the caller to know.
    """
    async with vault.pool.acquire() as conn:
        await conn.execute(_CONDEMN_ONE, vault.limits.grace, sha256)
        await conn.execute(_CONDEMN_UNKNOWN, sha256)
    return await contents.remove_condemned(vault, sha256)


async def _exports(vault: Vault, before: datetime) -> None:
    """Remove what was written for the archiver, which has it, or is not to have it any more."""
    written = await _named(vault, EXPORTS, before)
    if not written:
        return
    async with vault.pool.acquire() as conn:
        needed = await job_store.are_open(conn, list(written)) | await archive_store.are_open(conn, list(written))
    for request_id, key in written.items():
        if request_id not in needed:
            await vault.objects.delete(key)


async def _named(vault: Vault, folder: str, before: datetime) -> dict[UUID, str]:
    """Objects of this folder that were there before that moment and are named after something."""
    found: dict[UUID, str] = {}
    async for info in vault.objects.list(folder):
        with contextlib.suppress(ValueError):
            if info.last_modified is not None and info.last_modified < before:
                found[UUID(info.key.removeprefix(folder))] = info.key
    return found


async def _unfinished(vault: Vault, before: datetime) -> int:
    """Remove what was received for a job that does not exist, or has ended."""
    received = await _named(vault, INCOMING, before)
    if not received:
        return 0
    async with vault.pool.acquire() as conn:
        still_needed = await job_store.are_open(conn, list(received))
    for job_id, key in received.items():
        if job_id not in still_needed:
            await vault.objects.delete(key)
    return len(received.keys() - still_needed)
