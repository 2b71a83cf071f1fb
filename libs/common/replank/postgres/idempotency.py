"""The answers that requests with an ``Idempotency-Key`` were given; `replank.http.idempotency` is the HTTP side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from replank.connection import Connection

_INSTALL: Final = """
create schema if not exists replank_http;
create table if not exists replank_http.idempotency (
    caller text not null,
    route text not null,
    key text not null,
    request_hash bytea not null,
    status smallint not null,
    headers text[] not null,
    body bytea not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (caller, route, key)
);
create index if not exists idempotency_created_at on replank_http.idempotency (created_at);
"""
_INSTALL_LOCK: Final = "select pg_advisory_xact_lock(hashtextextended('replank_http.install', 0))"
_LOCK: Final = (
    "select pg_try_advisory_xact_lock(hashtextextended(jsonb_build_array($1::text, $2::text, $3::text)::text, 0))"
)
_FIND: Final = """
select request_hash, status, headers, body
from replank_http.idempotency
where caller = $1 and route = $2 and key = $3 and created_at > clock_timestamp() - interval '1 day'
"""
_STORE: Final = """
insert into replank_http.idempotency (caller, route, key, request_hash, status, headers, body)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (caller, route, key) do update
set request_hash = excluded.request_hash, status = excluded.status, headers = excluded.headers,
    body = excluded.body, created_at = excluded.created_at
"""
# Every answer that is stored takes a few expired ones away, so that the table needs nobody to clean it.
_EXPIRE: Final = """
delete from replank_http.idempotency
where (caller, route, key) in (
    select caller, route, key
    from replank_http.idempotency
    where created_at <= clock_timestamp() - interval '1 day'
    order by created_at
    limit 20
    for update skip locked
)
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a key belongs to: one caller, and one method and path."""

    caller: str
    route: str
    key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered; ``request_hash`` tells whether another one is the same."""

    request_hash: bytes
    status: int
    headers: Mapping[str, str]
    body: bytes


async def install(conn: Connection) -> None:
    """Create schema ``replank_http`` with its table, if it is not there. A service does so when it migrates."""
    async with conn.transaction():
        await conn.execute(_INSTALL_LOCK)
        await conn.execute(_INSTALL)


async def lock(conn: Connection, identity: Identity) -> bool:
    """Take the key until the transaction ends; False if another transaction holds it."""
    return bool(await conn.fetchval(_LOCK, identity.caller, identity.route, identity.key))


async def find(conn: Connection, identity: Identity) -> Answer | None:
    """The answer that is kept under the key, if it has not expired."""
    row = await conn.fetchrow(_FIND, identity.caller, identity.route, identity.key)
    if row is None:
        return None
    flat = iter(row["headers"])
    return Answer(row["request_hash"], row["status"], dict(zip(flat, flat, strict=True)), row["body"])


async def keep(conn: Connection, identity: Identity, answer: Answer) -> None:
    """Keep an answer for a day."""
    flat = [text for pair in answer.headers.items() for text in pair]
    await conn.execute(
        _STORE,
        identity.caller,
        identity.route,
        identity.key,
        answer.request_hash,
        answer.status,
        flat,
        answer.body,
    )
    await conn.execute(_EXPIRE)
