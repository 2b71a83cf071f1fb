"""What these tests ask again and again: which effects are there, and which dead letters."""

from __future__ import annotations

from typing import Any

import asyncpg

from replank.inbox import Delivery, Done, Outcome
from tests.common.inbox.contracts import Paid


async def write(delivery: Delivery[Paid]) -> Outcome:
    """A handler with one effect."""
    await delivery.conn.execute(
        "insert into effect (number, key, event_id, attempt) values ($1, $2, $3, $4)",
        delivery.event.number,
        delivery.key,
        delivery.event_id,
        delivery.attempt,
    )
    return Done()


async def row(db: asyncpg.Pool, query: str, *arguments: object) -> tuple[Any, ...]:
    """The only row of an answer."""
    (found,) = await rows(db, query, *arguments)
    return found


async def rows(db: asyncpg.Pool, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """The rows of an answer, as plain tuples."""
    return [tuple(found) for found in await db.fetch(query, *arguments)]


async def numbers(db: asyncpg.Pool) -> list[int]:
    """The numbers of all effects, in the order in which they were made."""
    return [number for (number,) in await rows(db, "select number from effect order by id")]


async def letters(db: asyncpg.Pool) -> list[tuple[Any, ...]]:
    """Reason and state of all dead letters, in their order."""
    return await rows(db, "select reason, state from replank_inbox.dead_letter order by seq")


async def has(db: asyncpg.Pool, *wanted: int) -> bool:
    """Whether these are the effects, and no others; `AssertionError` once there are too many to ever be."""
    found = await numbers(db)
    assert len(found) <= len(wanted), f"too many effects: {found}"
    return found == list(wanted)
