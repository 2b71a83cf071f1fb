"""What a retired migration leaves behind, where it was asked to: a store that goes on refusing writes.

A function in the schema ``replank_retired``, and a trigger on each table. A `WriteRouter` that is still there learns
from the refusal to write to the other store, however long after; so does a `DualWriter`, which asks for the function.
What `opened_by` says removes it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from replank.connection import Connection
from replank.migrate.authority import Side
from replank.migrate.locks import with_locks
from replank.migrate.script import script
from replank.migrate.sql import HAS_RELATION, HAS_SCHEMA, identifier
from replank.outbox import Finding

_SCHEMA: Final = "replank_retired"
_TRIGGER: Final = "replank_retired"
_BY: Final = """
    select p.oid::regprocedure::text from pg_trigger t join pg_proc p on p.oid = t.tgfoid
     where t.tgrelid = to_regclass($1) and p.pronamespace = to_regnamespace($2)
"""
_CREATE: Final = f"create schema {_SCHEMA}"
# The schema was perhaps made for another migration, by another role.
_MAY: Final = """
    select case when to_regnamespace($1) is null then has_database_privilege(current_database(), 'CREATE')
                else (select pg_has_role(nspowner, 'USAGE') from pg_namespace where nspname = $1) end
"""
_REFUSE: Final = f"""
    create or replace trigger {_TRIGGER} before insert or update or delete or truncate on {{table}}
        for each statement execute function {{function}}
"""
_HINTS: Final[dict[Side, str]] = {"source": "write to the tables", "target": "write to the key-value store"}


def guard_of(name: str, side: Side) -> str:
    """The function that says, by being there, that a side takes no writes since the migration ``name`` was retired."""
    return f"{_SCHEMA}.{identifier(_function(name, side))}()"


def opened_by(name: str, side: Side) -> str:
    """The statement that lets a side that a retired migration has left closed take writes again."""
    return f"drop function {guard_of(name, side)} cascade"


async def check(conn: Connection) -> list[Finding]:
    """What keeps `close` from working here; empty if nothing does. Reads only."""
    if await conn.fetchval(_MAY, _SCHEMA):
        return []
    return [
        Finding(
            "error",
            "schema_denied",
            f"this role may neither create the schema {_SCHEMA} nor use it as its own",
            "grant it CREATE on the database, or the ownership of the schema that is there",
        )
    ]


async def closed_by(conn: Connection, table: str) -> str | None:
    """The guard that has a table (as SQL reads it) refuse writes, as `guard_of` says it; ``None`` if there is none."""
    function: str | None = await conn.fetchval(_BY, table, _SCHEMA)
    return function


async def close(conn: Connection, name: str, side: Side, tables: Sequence[str], *, triggers: bool = True) -> None:
    """Have the tables (as SQL reads them) of one side refuse every write from now on. Safe to repeat.

    Tables that are not there any more are no error. ``triggers=False``: where they may not be installed only a
    `DualWriter` is refused. Raises `replank.migrate.locks.LocksNotGranted`.
    """
    variables = {
        "function": _function(name, side),
        "name": name,
        "hint": _HINTS[side],
        "comment": f"{opened_by(name, side)} lets this store of the migration {name} take writes again",
    }

    async def work() -> None:
        if not await conn.fetchval(HAS_SCHEMA, _SCHEMA):
            await conn.execute(_CREATE)
        await conn.execute(script("retired.sql", variables))
        for table in tables if triggers else ():
            if await conn.fetchval(HAS_RELATION, table):
                await conn.execute(_REFUSE.format(table=table, function=guard_of(name, side)))

    await with_locks(conn, work)


def _function(name: str, side: Side) -> str:
    return f"{name}_{side}"
