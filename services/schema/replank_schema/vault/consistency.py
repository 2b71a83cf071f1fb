"""Checking the vault: do its tables and its object store say the same?

The listing of the bucket and the rows of contents are in one order, and are walked side by side, then the schemas, then
what was found before: pages of rows, batches of suspects, never the whole. A check that is interrupted goes on from
where it was, since a deep one reads everything and may outlive many a process; what it says of a thing is true of the
moment at which it looked at that thing, so it is none the worse for the pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from replank.connection import POSTGRES_ERRORS
from replank.errors import DependencyUnavailable
from replank.objects import ObjectInfo
from replank_schema.vault import consistency_store, findings
from replank_schema.vault.consistency_store import BlobRow
from replank_schema.vault.findings import KINDS, Case, Found
from replank_schema.vault.jobs import Work
from replank_schema.vault.model import blob_key, sha256_of_key
from replank_schema.vault.proof import prove
from replank_schema.vault.vault import Vault

_log = logging.getLogger(__name__)

KIND: Final = "check"

_PAGE: Final = 1000
# How many are read before the position is kept: what is read once more after a crash.
_DEEP_BATCH: Final = 50
# Schemas come with the names of their fields, up to 64 KiB each.
_DEEP_PAGE: Final = 100
_READ_AT_ONCE: Final = 2
_PAUSE: Final = 0.5
_MEASURE_EVERY: Final = 60.0
_FIRST: Final = UUID(int=0)

T = TypeVar("T")


class Check(BaseModel):
    """What a check is asked for: with ``deep`` every content is read and understood again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deep: bool = True


async def handle(work: Work) -> None:
    """Do a check. Its result counts what it looked at, what it found anew, what is gone, and what is open now."""
    deep = Check.model_validate(work.job.request).deep
    case = Case(work.vault, work.job.id)
    part, _, after = (work.position or "contents:").partition(":")
    if work.position is not None:
        work.done = work.job.done
    async with work.vault.pool.acquire() as conn:
        work.total = await consistency_store.total(conn)
    if part == "contents":
        await _check_contents(work, case, after, deep=deep)
        part, after = "schemas", ""
    if part == "schemas":
        await _check_schemas(work, case, UUID(after) if after else None, deep=deep)
        part, after = "findings", ""
    await _check_findings(work, case, UUID(after) if after else _FIRST, deep=deep)
    async with work.vault.pool.acquire() as conn:
        found = await consistency_store.count_found(conn, work.job.id)
        gone = await consistency_store.count_closed(conn, work.job.id, "gone")
        still = await consistency_store.count_open(conn)
    await findings.measure(work.vault)
    work.total = work.done  # what there was, by then
    async with work.finish({"checked": work.done, "found": {**found}, "gone": {**gone}, "open": {**still}}):
        pass


async def watch(vault: Vault, stop: asyncio.Event) -> None:
    """Keep the gauges of open findings, whichever process finds and closes them, until ``stop`` is set."""
    while not stop.is_set():
        try:
            await findings.measure(vault)
        except (DependencyUnavailable, *POSTGRES_ERRORS) as error:
            _log.warning("open findings cannot be counted: %s", error, extra={"vault_mode": vault.mode})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MEASURE_EVERY):
                await stop.wait()


# --- contents ---


@dataclass(frozen=True, slots=True)
class _Seen:
    """A content's row and object, of which there may be either; or an object that is no content's, without a digest."""

    sha256: str | None
    row: BlobRow | None
    info: ObjectInfo | None


async def _check_contents(work: Work, case: Case, after: str, *, deep: bool) -> None:
    batch: list[_Seen] = []
    most = _DEEP_BATCH if deep else _PAGE

    async def look() -> None:
        await _look_at(case, batch, deep=deep)
        work.done += sum(seen.row is not None for seen in batch)
        last = next((seen.sha256 for seen in reversed(batch) if seen.sha256 is not None), None)
        if last is not None:
            work.position = f"contents:{last}"
        batch.clear()

    async with aclosing(_side_by_side(case.vault, after)) as everything:
        async for seen in everything:
            batch.append(seen)
            if len(batch) >= most:
                await look()
    await look()


async def _side_by_side(vault: Vault, after: str) -> AsyncGenerator[_Seen, None]:
    """Rows and objects behind a digest, merged by it."""
    async with aclosing(_rows(vault, after)) as rows:
        objects = aiter(vault.objects.list(after=blob_key(after) if after else ""))
        row = await anext(rows, None)
        info = await anext(objects, None)
        while row is not None or info is not None:
            stored = sha256_of_key(info.key) if info is not None else None
            if info is not None and stored is None:
                yield _Seen(None, None, info)
                info = await anext(objects, None)
            elif row is not None and (stored is None or row.sha256 < stored):
                yield _Seen(row.sha256, row, None)
                row = await anext(rows, None)
            elif row is not None and row.sha256 == stored:
                yield _Seen(row.sha256, row, info)
                row, info = await anext(rows, None), await anext(objects, None)
            else:
                yield _Seen(stored, None, info)
                info = await anext(objects, None)


async def _rows(vault: Vault, after: str) -> AsyncGenerator[BlobRow, None]:
    while True:
        async with vault.pool.acquire() as conn:
            page = await consistency_store.blob_rows(conn, after=after, limit=_PAGE)
        for row in page:
            yield row
        if len(page) < _PAGE:
            return
        after = page[-1].sha256


async def _look_at(case: Case, batch: list[_Seen], *, deep: bool) -> None:
    """Judge what was seen, and look again at what does not agree."""
    vault = case.vault
    suspects: dict[str, Found] = {}
    for seen in batch:
        if seen.sha256 is not None:
            if found := findings.judge_row(vault, seen.row, seen.info):
                suspects[seen.sha256] = found
        elif seen.info is not None and findings.judge_key(vault, seen.info):
            await findings.settle_key(case, seen.info.key)
    if any("wrong_size" in found for found in suspects.values()):
        await asyncio.sleep(_PAUSE)  # for what is being stored right now
    for sha256, found in suspects.items():
        await findings.settle_content(case, sha256, deep=False, suspected=found)

    async def read(sha256: str) -> None:
        if not await _is_what_its_row_says(vault, sha256):
            await findings.settle_content(case, sha256, deep=True)

    if deep:
        stored = [seen.row.sha256 for seen in batch if seen.row and seen.row.state == "stored" and seen.info]
        await _each(stored, read, at_once=_READ_AT_ONCE)


async def _is_what_its_row_says(vault: Vault, sha256: str) -> bool:
    proof = await prove(vault, sha256)
    async with vault.pool.acquire() as conn:
        facts = await consistency_store.facts(conn, sha256)
    # What went meanwhile is for the next look.
    return proof is None or facts is None or not findings.judge_content(facts, proof)


async def _each(things: Iterable[T], do: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Do something to each, a few at a time; the first error ends it all."""
    waiting = iter(things)

    async def work() -> None:
        for thing in waiting:
            await do(thing)

    workers = [asyncio.create_task(work()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)


# --- schemas, and what was found before ---


async def _check_schemas(work: Work, case: Case, after: UUID | None, *, deep: bool) -> None:
    limit = _DEEP_PAGE if deep else _PAGE
    while True:
        async with case.vault.pool.acquire() as conn:
            page = await consistency_store.schema_rows(conn, after=after, limit=limit, words=deep)
        for row in page:
            if findings.judge_schema(row):
                await findings.settle_schema(case, row.id)
        work.done += len(page)
        if page:
            after = page[-1].id
        work.position = f"schemas:{after or ''}"
        if len(page) < limit:
            return


async def _check_findings(work: Work, case: Case, after: UUID, *, deep: bool) -> None:
    """Close what is not so any more. What a shallow check cannot see it leaves."""
    while True:
        async with case.vault.pool.acquire() as conn:
            page = await consistency_store.open_findings(conn, KINDS, only=None, after=after, limit=_PAGE)
        for finding in page:
            if finding.found_by != case.job_id:
                await findings.settle(case, findings.kind_of(finding), finding.thing, deep=deep)
        if len(page) < _PAGE:
            return
        after = page[-1].id
        work.position = f"findings:{after}"
