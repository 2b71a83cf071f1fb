"""A mapping as SQL: compiled once, and the same SQL for backfill, dual writing, comparison and the way back.

Everything lives in one schema of the target, ``replank_m_<name>``, beside the two tables ``applied`` (the newest
version of each key that was seen, deletes included) and ``reject`` (records that could not be converted, and why).
Functions take arrays: a chunk or a batch is one call, whose statements work on sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from replank.migrate import conversion
from replank.migrate.functions.apply import apply
from replank.migrate.functions.compare import compare, fields
from replank.migrate.functions.down import down, extra
from replank.migrate.functions.fill import fill
from replank.migrate.functions.shared import SHARED, TABLES
from replank.migrate.functions.text import BY_HASH
from replank.migrate.functions.up import entity_of, up
from replank.migrate.mapping import Mapping
from replank.migrate.parts import EntityPart
from replank.migrate.sql import schema_of
from replank.migrate.tables import Constraint, IndexBuild, Table, foreign_keys, index_of, not_null, table_of

__all__ = ["Compiled", "Constraint", "IndexBuild", "Table", "compile"]

# What a script that ran before may have left: what a function returns cannot be replaced.
_SIGNATURES: Final = (
    "entity_of(text)",
    "lenient_date(text)",
    "lenient_timestamptz(text)",
    "take(text[], jsonb[], bigint[], text[])",
    "refuse(text[], text[], text[], jsonb[], bigint[])",
    "without(text[], jsonb[], text[])",
    "mended(text[], text[])",
    "outcomes(text[], bigint[], text[], bigint[], text[], text[])",
    "down(text[])",
    "fill(text[], text[])",
    "fill(text[], jsonb[])",
    "fill_compared(text[], text[])",
    "fill_compared(text[], jsonb[])",
    "apply(text[], jsonb[], bigint[], text[])",
    "compare(text[], jsonb[])",
    "fields(text, jsonb)",
    "extra(text, integer, text)",
)


@dataclass(frozen=True, slots=True)
class Compiled:
    """All the SQL of a mapping."""

    mapping: Mapping
    schema: str
    """The migration's schema in the target, quoted."""
    tables: tuple[Table, ...]
    """Parents before children."""
    functions: str
    """One script: the schema, its tables and its functions. It may be run again, and keeps what the tables hold."""
    constraints: tuple[Constraint, ...]
    """NOT NULL first, then foreign keys, each after the table it refers to."""
    indexes: tuple[IndexBuild, ...]
    drop: str
    """Drops the migration's schema, not the tables of the target."""


def compile(mapping: Mapping) -> Compiled:  # noqa: A001 - it is what it does, and is always called by its module
    """Compile a mapping that was read by `replank.migrate.mapping.load`."""
    entities = [EntityPart(mapping, name, entity) for name, entity in mapping.entities.items()]
    parts = [part for entity in entities for part in (entity, *entity.children)]
    schema = schema_of(mapping.name)
    return Compiled(
        mapping=mapping,
        schema=schema,
        tables=tuple(table_of(part) for part in parts),
        functions="\n".join(_script(mapping, schema, entities)).strip() + "\n",
        constraints=tuple(
            [c for p in parts for c in not_null(p)] + [c for p in parts for c in foreign_keys(p, mapping)]
        ),
        indexes=tuple(index_of(part, name, index) for part in parts for name, index in part.indexes.items()),
        drop=f"drop schema if exists {schema} cascade",
    )


def _script(mapping: Mapping, schema: str, entities: Sequence[EntityPart]) -> Iterator[str]:
    yield TABLES.format(schema=schema)
    dropped = [
        f"drop function if exists {part.up}(text[], jsonb[]);"
        for entity in entities
        for part in (entity, *entity.children)
    ]
    yield "\n".join([*dropped, *(f"drop function if exists {schema}.{signature};" for signature in _SIGNATURES)])
    yield conversion.helpers(schema)
    yield entity_of(schema, entities)
    for entity in entities:
        yield from up(entity)
    yield SHARED.format(schema=schema, settings=BY_HASH)
    yield down(schema, entities)
    yield apply(mapping, schema, entities)
    yield compare(schema, entities)
    yield from (fill(mapping, schema, entities, compared=compared) for compared in (False, True))
    yield fields(schema, entities)
    yield extra(schema, entities)
