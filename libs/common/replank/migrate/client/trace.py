"""The trace of a write, carried through the database to whatever happens because of it."""

from __future__ import annotations

from typing import Final

from replank.connection import Connection
from replank.outbox import NotInTransaction
from replank.telemetry.context import capture

SET: Final = "set_config('replank.traceparent', $1, true)"


def current_traceparent() -> str:
    """The current trace context, as the database is told of it; empty when there is none."""
    return capture().traceparent or ""


async def carry_trace(conn: Connection) -> None:
    """Let what the open transaction changes be part of the current trace: its capture, and what applies it.

    Costs a round trip, and none where nothing is traced. Raises `replank.outbox.NotInTransaction`.
    """
    if not conn.is_in_transaction():
        raise NotInTransaction(
            "a trace can only be carried by a transaction",
            fix="call carry_trace inside `async with conn.transaction():`",
        )
    if traceparent := current_traceparent():
        await conn.execute(f"select {SET}", traceparent)
