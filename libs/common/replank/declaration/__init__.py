"""Declaring contracts: a service says over Kafka which events it sends, and what they look like.

`replank.service.Service` does it at start. Whoever uses the library without it::

    await declaration.install(conn)                                       # once, beside outbox.install
    async with conn.transaction():
        await declaration.declare(conn, [OrderPaid, OrderSent], service="shop")

Each contract is declared once, and again when it has changed: what this database said last is kept in it. Where two
releases of a service take turns to start, the one that started last has the word.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import asyncpg

from replank import outbox
from replank.connection import Connection
from replank.contracts.declarations import EventContractDeclared, schema_sha256
from replank.contracts.documents import reader_schema
from replank.errors import ReplankError
from replank.events import Event
from replank.installation import Installation

__all__ = ["VERSION", "DeclarationMismatch", "declare", "install"]


class DeclarationMismatch(ReplankError):
    """What this database keeps of declarations, or the server under it, cannot be used by this library."""


_INSTALLATION: Final = Installation(
    schema="replank_contracts",
    name="the memory of declared contracts",
    package="replank.declaration",
    migrations=("0001_tables.sql",),
    mismatch=DeclarationMismatch,
)
VERSION: Final = _INSTALLATION.version

# Sorted, so that processes which start at once take the rows in one order: the later waits, and finds nothing to say.
_REMEMBER: Final = """
    insert into replank_contracts.declared (contract, sha256)
    select contract, sha256 from unnest($1::text[], $2::text[]) as given (contract, sha256) order by contract
    on conflict (contract) do update set sha256 = excluded.sha256, at = excluded.at
    where declared.sha256 <> excluded.sha256
    returning contract
"""


async def install(conn: Connection) -> int:
    """Install what `declare` needs beside the outbox, or bring it up to date; returns its version. Safe to repeat.

    The role needs CREATE on the database, or to own the schema ``replank_contracts``; it becomes the owner.

    Raises `DeclarationMismatch` for a newer version than this library knows and for a server older than Postgres 15;
    `asyncpg.LockNotAvailableError` when a lock is not to be had within 3 seconds.
    """
    async with _INSTALLATION.installing(conn):
        return VERSION


async def declare(conn: Connection, contracts: Iterable[type[Event]], *, service: str) -> list[str]:
    """Append `EventContractDeclared` for each contract that this database last declared otherwise, or never.

    Within the transaction that is open on ``conn``; returns the types that were declared. Two that declare at once in
    one database take turns. The topic ``replank.contracts`` has to be there for the relay.

    Raises `DeclarationMismatch` where `install` has not run, and what `outbox.append` raises.
    """
    if not conn.is_in_transaction():
        # What is remembered and what is appended have to commit together.
        raise outbox.NotInTransaction(
            "contracts can only be declared inside a transaction",
            fix="write `async with conn.transaction():` around it",
        )
    given = {contract.event_type: contract for contract in contracts}
    schemas = {event_type: reader_schema(contract) for event_type, contract in given.items()}
    digests = {event_type: schema_sha256(schema) for event_type, schema in schemas.items()}
    try:
        rows = await conn.fetch(_REMEMBER, list(digests), list(digests.values()))
    except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedTableError) as error:
        raise DeclarationMismatch(
            "this database does not remember which contracts were declared",
            fix="run `migrate pre` of the service, or declaration.install(conn)",
        ) from error
    changed = sorted(row["contract"] for row in rows)
    now = datetime.now(UTC)
    await outbox.append_many(
        conn,
        [
            outbox.Message(
                EventContractDeclared(
                    contract=event_type,
                    topic=given[event_type].event_topic,
                    service=service,
                    json_schema=schemas[event_type],
                    sha256=digests[event_type],
                    declared_at=now,
                ),
                key=event_type,
                subject=f"contract:{event_type}",
            )
            for event_type in changed
        ],
    )
    return changed
