"""Finding the record that a statement over many fails for.

The compiled functions do not fail for what a record holds; the database still may: a constraint, a trigger of somebody
else's, a row too wide for an index. Then the batch is halved until the record is alone, and only that one is rejected.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import asyncpg

from replank.errors import ReplankError

Record = TypeVar("Record")

# SQLSTATE classes that speak of the data in the statement: cardinality, data exception, integrity constraint, errors of
# functions and of what they call, limits of a row or an index, and what a function or trigger raised on purpose.
_OF_THE_DATA: Final = frozenset({"21", "22", "23", "2F", "38", "39", "54", "P0"})


def is_of_the_data(error: BaseException) -> bool:
    """Whether a statement failed for a record in it, rather than for the server, the schema or a privilege."""
    if not isinstance(error, asyncpg.PostgresError) or isinstance(error, asyncpg.QueryCanceledError):
        return False
    return (error.sqlstate or "")[:2] in _OF_THE_DATA


def describe(error: asyncpg.PostgresError) -> str:
    """Why the database refused a record, without what the record holds (which the server's own text may quote)."""
    where = getattr(error, "constraint_name", None) or getattr(error, "column_name", None)
    reason = f"the database refuses it: {type(error).__name__}"
    return f"{reason} ({where})" if where else reason


def name_of(error: BaseException) -> str:
    """What went wrong with a server, in words for people who look after it. Not for errors of the data."""
    return (
        str(error)
        if isinstance(error, ReplankError)
        else f"{type(error).__name__}: {str(error) or 'no answer in time'}"
    )


async def each_or_all(
    records: Sequence[Record],
    work: Callable[[Sequence[Record]], Awaitable[None]],
    refused: Callable[[Record, asyncpg.PostgresError], Awaitable[None]],
) -> None:
    """Do ``work`` on all records in as few calls as possible; hand those that fail alone to ``refused``, in order.

    ``work`` commits or leaves nothing behind, and may be called again with parts of what it failed for. Every other
    failure passes through, with the records up to it done.
    """
    if not records:
        return
    try:
        await work(records)
    except asyncpg.PostgresError as error:
        if not is_of_the_data(error):
            raise
        if len(records) == 1:
            await refused(records[0], error)
            return
    else:
        return
    half = len(records) // 2
    await each_or_all(records[:half], work, refused)
    await each_or_all(records[half:], work, refused)
