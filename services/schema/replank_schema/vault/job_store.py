"""All SQL about jobs, on the caller's connection."""

# ruff: noqa: S608 - what is put in are our own dataclasses' columns and constant text
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import JsonValue

from replank.connection import Connection
from replank.telemetry.context import Carried, capture

JobState = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Something that takes longer than a request. ``done`` and ``total`` count what its kind counts; ``problem`` says
    why it failed, or why it waits to be tried again; ``position`` is from where it goes on, in its kind's own terms."""

    id: UUID
    kind: str
    state: JobState
    request: Mapping[str, Any]
    done: int
    total: int | None
    position: str | None
    result: Mapping[str, JsonValue] | None
    problem: str | None
    attempts: int
    trace: Carried
    created_at: datetime
    created_by: str
    updated_at: datetime


_JOB: Final = ", ".join(column.name for column in fields(Job))
_INSERT: Final = f"""
    insert into job (id, kind, request, total, trace, created_by)
    values ($1, $2, $3::text::jsonb, $4, $5::text::jsonb, $6)
    returning {_JOB}
"""
_GET: Final = f"select {_JOB} from job where id = $1"
# A lease that has not ended on a queued job is its pause before it is tried again.
_CLAIM: Final = f"""
    update job
       set state = 'running', attempts = attempts + 1, problem = null,
           leased_until = clock_timestamp() + $2::interval, updated_at = clock_timestamp()
     where id = (
        select id from job
         where kind = any($1) and state in ('queued', 'running')
           and (leased_until is null or leased_until < clock_timestamp())
         order by created_at
         limit 1
           for update skip locked
     )
    returning {_JOB}
"""
# The number of attempts is the fencing token: whoever was overtaken sees it here.
_BEAT: Final = """
    update job
       set done = $3, total = coalesce($4, total), leased_until = clock_timestamp() + $5::interval,
           position = coalesce($6, position), updated_at = clock_timestamp()
     where id = $1 and attempts = $2 and state = 'running'
    returning cancel
"""
_END: Final = """
    update job
       set state = $3, result = $4::text::jsonb, problem = $5, done = coalesce($6, done), total = coalesce($7, total),
           leased_until = null, updated_at = clock_timestamp()
     where id = $1 and attempts = $2 and state = 'running'
    returning id
"""
_AGAIN: Final = """
    update job
       set state = 'queued', problem = $3, leased_until = clock_timestamp() + $4::interval,
           updated_at = clock_timestamp()
     where id = $1 and attempts = $2 and state = 'running'
"""
_CANCEL: Final = f"""
    update job
       set cancel = true, state = case state when 'queued' then 'cancelled' else state end,
           updated_at = clock_timestamp()
     where id = $1 and state in ('queued', 'running')
    returning {_JOB}
"""
_EXPIRE: Final = """
    delete from job where state not in ('queued', 'running') and updated_at < clock_timestamp() - $1::interval
"""
_OPEN: Final = "select id from job where state in ('queued', 'running') and id = any($1)"
_LATEST: Final = f"select {_JOB} from job where kind = $1 order by created_at desc limit 1"


async def insert(
    conn: Connection, job_id: UUID, kind: str, request: Mapping[str, Any], *, total: int | None = None, by: str
) -> Job:
    """Queue a job, which goes on in the trace of whoever asked for it."""
    trace = json.dumps(capture()._asdict())
    return _job(await conn.fetchrow(_INSERT, job_id, kind, json.dumps(request), total, trace, by))


async def get(conn: Connection, job_id: UUID) -> Job | None:
    row = await conn.fetchrow(_GET, job_id)
    return _job(row) if row else None


async def latest(conn: Connection, kind: str) -> Job | None:
    """The youngest job of a kind."""
    row = await conn.fetchrow(_LATEST, kind)
    return _job(row) if row else None


async def claim(conn: Connection, kinds: Sequence[str], lease: timedelta) -> Job | None:
    """Take the oldest job of these kinds that nobody works on."""
    row = await conn.fetchrow(_CLAIM, list(kinds), lease)
    return _job(row) if row else None


async def beat(
    conn: Connection, job: Job, *, done: int, total: int | None, position: str | None, lease: timedelta
) -> bool | None:
    """Keep a job, and say how far it is. Whether it is to be cancelled; None if another process has it."""
    cancel: bool | None = await conn.fetchval(_BEAT, job.id, job.attempts, done, total, lease, position)
    return cancel


async def end(
    conn: Connection,
    job: Job,
    state: Literal["done", "failed", "cancelled"],
    *,
    result: Mapping[str, JsonValue] | None = None,
    problem: str | None = None,
    done: int | None = None,
    total: int | None = None,
) -> bool:
    """End a job; False if another process has it."""
    encoded = None if result is None else json.dumps(result)
    return await conn.fetchval(_END, job.id, job.attempts, state, encoded, problem, done, total) is not None


async def again(conn: Connection, job: Job, problem: str, pause: timedelta) -> None:
    """Let a job go, to be tried again after a pause."""
    await conn.execute(_AGAIN, job.id, job.attempts, problem, pause)


async def cancel(conn: Connection, job_id: UUID) -> Job | None:
    """Have a job cancelled: at once, or when whoever works on it sees it. None if it has ended."""
    row = await conn.fetchrow(_CANCEL, job_id)
    return _job(row) if row else None


async def are_open(conn: Connection, job_ids: Sequence[UUID]) -> set[UUID]:
    """Those of these jobs that have not ended."""
    return {row["id"] for row in await conn.fetch(_OPEN, list(job_ids))}


async def expire(conn: Connection, older_than: timedelta) -> None:
    """Forget jobs that ended longer ago than this."""
    await conn.execute(_EXPIRE, older_than)


def _job(row: Any) -> Job:
    return Job(
        **{
            **row,
            "request": json.loads(row["request"]),
            "result": None if row["result"] is None else json.loads(row["result"]),
            "trace": Carried(**json.loads(row["trace"])),
        }
    )
