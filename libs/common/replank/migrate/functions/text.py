"""What the functions have in common: how they are declared, and pieces of SQL that several of them are made of."""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from replank.migrate.mapping import Mapping
from replank.migrate.parts import EntityPart, Part
from replank.migrate.sql import identifier, literal

# The same answer in every session, whatever its settings; and plans that stay what they were when the tables were
# empty: each statement goes from a chunk's keys to rows by index.
SETTINGS: Final = (
    "set search_path = '' set datestyle = 'ISO, YMD' set timezone = 'UTC' set extra_float_digits = 1 set jit = off"
    " set plan_cache_mode = force_generic_plan"
)
# Between two arrays, whatever the caller needs for tables.
BY_HASH: Final = f"{SETTINGS} set enable_hashjoin = on set enable_seqscan = off"
BY_INDEX: Final = f"{SETTINGS} set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off"


def function(
    signature: str, returns: str, language: str, body: str, *, settings: str = "", kind: str = "stable"
) -> str:
    """A ``create function``."""
    tag = "$f$"
    while tag in body:
        # A text of the mapping's has it inside.
        tag = f"$f{len(tag)}{tag[-2]}$"
    return f"\ncreate function {signature}\n{returns}\nlanguage {language} {kind}\n{settings}\nas {tag}\n{body}\n{tag};"


def present(schema: str) -> str:
    """Which entities are in a chunk, so that nothing is asked of the others; and how many keys have one."""
    return f"""
    select array_agg(g.entity), sum(g.keys) into replank_present, replank_count
      from (select e.entity, count(*) as keys
              from (select {schema}.entity_of(c.key) as entity from unnest($1) as c(key) offset 0) as e
             group by e.entity) as g where g.entity is not null;"""


#: Who writes when a function begins, and at its end again. Not by a clause of the function: for a setting that is
#: nobody's, those are for superusers.
WRITER: Final = "replank_writer text := coalesce(current_setting('replank_migrate.applier', true), '');"
AS_BEFORE: Final = "perform set_config('replank_migrate.applier', replank_writer, true);"

#: An entity's part of keys and values, into variables.
CHUNK: Final = """
    select array_agg(c.key), array_agg(c.val) into replank_keys, replank_vals
      from unnest({keys}, {vals}) as c(key, val) where {schema}.entity_of(c.key) = {name}{more};"""


def chunk_of(schema: str, entity: EntityPart) -> str:
    """Put an entity's part of a chunk into variables. A chunk in the order of keys mostly is of one entity."""
    return f"""
        if replank_count = cardinality($1) and cardinality(replank_present) = 1 then
            replank_keys := $1;
            replank_vals := $2;
        else{CHUNK.format(keys="$1", vals="$2", schema=schema, name=literal(entity.name), more="")}
        end if;"""


def converted(part: Part, keys: str, vals: str) -> str:
    """What a part's function returns, under names that no column can have: ``key``, ``problem``, ``v0``, ``v1``, …."""
    problem = ", problem" if isinstance(part, EntityPart) else ""
    values = ", ".join(f"v{n}" for n in range(len(part.columns)))
    return f"{part.up}({keys}, {vals}) as r(key{problem}, {values})"


def values(part: Part) -> str:
    """The values of what `converted` returns, in the order of the table."""
    return ", ".join(f"r.v{n}" for n in range(len(part.columns)))


def rows_of(part: Part, keys: str) -> str:
    """The rows ``t`` of the keys in an array, with the keys in ``k``: by the primary key's index, one by one."""
    return (
        f"(select c.key, {part.of_key('c.key')} from unnest({keys}) as c(key) offset 0) as k"
        f" join {part.table} as t on {part.found_by('t', 'k')}"
    )


def as_applier(mapping: Mapping) -> str:
    """From here on the applier writes: triggers let it through whichever store is open, and capture nothing of it."""
    return f"perform set_config('replank_migrate.applier', {literal(mapping.name)}, true);"


def ignored(mapping: Mapping, key: str) -> str:
    """The condition that a key of no entity stays where it is."""
    if mapping.others == "ignore":
        return "true"
    return " or ".join(p.matches_sql(key) for p in mapping.ignored_patterns) or "false"


def _row_hash(part: Part, values: Sequence[str], seed: int) -> str:
    """64 bits over the columns of a row, each by the hash that goes with its type's equality, in their order."""
    # The hash of a bigint takes -1 for 4294967295; that of a numeric does not. The hash of a jsonb repeats itself every
    # 32 members, so that two of them that swap, or change alike, cancel; its text is one for one value.
    firm = {"bigint": "numeric", "jsonb": "text"}
    kinds = [firm.get(kind) for _, kind, _ in part.columns]
    columns = [f"({v})::{kind}" if kind else v for v, kind in zip(values, kinds, strict=True)]
    # The hash of a record is a sum over its columns: in a sum over rows, two rows that swap a value would cancel.
    return f"hashtextextended(hash_record_extended(row({', '.join(columns)}), {seed})::text, {seed})"


def row_hashes(part: Part, seed: int) -> tuple[str, str]:
    """The hash of a row as it is converted (``r``), and as it is in the table (``t``)."""
    converted = [f"r.v{n}" for n in range(len(part.columns))]
    return _row_hash(part, converted, seed), _row_hash(part, target_values(part), seed)


def target_values(part: Part) -> list[str]:
    """The values of a row ``t``. A rest with nothing in it is none, whoever wrote it."""
    return [
        f"nullif(t.{identifier(name)}, '{{}}')" if name == part.rest else f"t.{identifier(name)}" for name in part.names
    ]
