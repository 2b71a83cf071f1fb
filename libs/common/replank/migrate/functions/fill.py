"""``fill`` and ``fill_compared``: a backfill's chunk into the tables.

A record is parsed once and converted once, in one statement for each entity, which puts its rows into all its tables
and adds up their fingerprints as they were converted. What these are compared with is read from the tables afterwards,
by another statement, from the places where the rows were put. So the comparison sees what is stored, whatever triggers,
types or generated columns made of it; it does not see what else is there under the same keys: `compare` does.
"""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from replank.migrate.functions.text import (
    AS_BEFORE,
    BY_HASH,
    WRITER,
    as_applier,
    chunk_of,
    function,
    ignored,
    present,
    row_hashes,
    values,
)
from replank.migrate.mapping import Mapping
from replank.migrate.parts import ChildPart, EntityPart, Part, elements_of, listed
from replank.migrate.sql import identifier, literal
from replank.migrate.steps import of_element, of_record

# A chunk is in memory a few times over, as what the parts of a statement hand to each other.
_SETTINGS: Final = f"{BY_HASH} set work_mem = '64MB'"


def fill(mapping: Mapping, schema: str, entities: Sequence[EntityPart], *, compared: bool) -> str:
    """``fill``, or ``fill_compared``, which reads back what it wrote and holds it against what it was made from."""
    most_children = max(len(entity.children) for entity in entities)
    places = "".join(f"\n    replank_places_{n} tid[];" for n in range(most_children + 1)) if compared else ""
    blocks = "".join(_fill_entity(schema, entity, compared=compared) for entity in entities)
    body = f"""#variable_conflict use_column
declare
    {WRITER}
    replank_present text[];
    replank_count bigint;
    replank_keys text[];
    replank_vals text[];
    replank_good bigint;
    replank_new bigint;
    replank_bad text[];
    replank_bad_vals jsonb[];
    replank_problems text[];
    replank_all_bad text[] := '{{}}';
    replank_seen text[];
    replank_others text[];
    replank_source numeric;
    replank_target numeric;{places}
begin
    filled := 0;
    rejected := 0;{f"{chr(10)}    different := '{{}}';" if compared else ""}
    -- What the applier has seen is newer than what a backfill reads, deletes included.
    select count(*), array_agg(a.key) into kept, replank_seen from {schema}.applied as a where a.key = any ($1);
    if kept > 0 or array_position($2, null) is not null then
        select array_agg(c.key), array_agg(c.val) into $1, $2 from unnest($1, $2) as c(key, val)
         where c.val is not null and c.key not in (select s.key from unnest(replank_seen) as s(key));
        if $1 is null then
            return next;
            return;
        end if;
    end if;
    {as_applier(mapping)}{present(schema)}
    if replank_count is distinct from cardinality($1) then
        select array_agg(c.key), array_agg('key: no entity has such keys'::text), array_agg(c.val::jsonb)
          into replank_bad, replank_problems, replank_bad_vals
          from unnest($1, $2) as c(key, val)
         where {schema}.entity_of(c.key) is null and not ({ignored(mapping, "c.key")});
        if replank_bad is not null then
            replank_all_bad := replank_all_bad || replank_bad;
            perform {schema}.refuse(replank_bad, replank_problems, replank_bad, replank_bad_vals, null);
        end if;
    end if;{blocks}
    rejected := cardinality(replank_all_bad);
    -- Records that were rejected before and are good now.
    perform {schema}.mended($1, replank_all_bad);
    {AS_BEFORE}
    return next;
end"""
    return function(
        f"{schema}.{'fill_compared' if compared else 'fill'}(keys text[], vals text[])",
        f"returns table (filled bigint, kept bigint, rejected bigint{', different text[]' if compared else ''})",
        "plpgsql",
        body,
        settings=_SETTINGS,
        kind="volatile",
    )


def _fill_entity(schema: str, entity: EntityPart, *, compared: bool) -> str:
    leave_alone = f"\n                on conflict ({listed(entity.primary_key)}) do nothing"
    return f"""
    if {literal(entity.name)} = any(replank_present) then{chunk_of(schema, entity)}
        begin{_put(entity, "", compared=compared)}
        exception when unique_violation then
            -- Something was there before, which is rare: only then is it looked for row by row.{
        _put(entity, leave_alone, compared=compared)
    }
        end;
        filled := filled + replank_new;
        kept := kept + replank_good - replank_new;
        if replank_bad is not null then
            replank_all_bad := replank_all_bad || replank_bad;
            perform {schema}.refuse(replank_bad, replank_problems, replank_bad, replank_bad_vals, null);
        end if;{_read_back(schema, entity) if compared else ""}
    end if;"""


def _put(entity: EntityPart, on_conflict: str, *, compared: bool) -> str:
    """The one statement that converts an entity's part of the chunk and puts it into the tables."""
    results = {
        "replank_good": "u.good",
        "replank_bad": "u.bad",
        "replank_problems": "u.problems",
        "replank_bad_vals": "u.vals",
        "replank_new": "i.new",
    }
    if compared:
        sums = [f"(select sum({row_hashes(entity, 0)[0]}) from up as r where {_NEW})"]
        results |= {"replank_places_0": "i.places", "replank_others": "(select array_agg(o.key) from other as o)"}
        for n, child in enumerate(entity.children, 1):
            sums.append(f"(select sum({row_hashes(child, n)[0]}) from elements_{n} as r where {_NEW})")
            results[f"replank_places_{n}"] = f"(select array_agg(i.place) from inserted_{n} as i)"
        results["replank_source"] = " + ".join(f"coalesce({one}, 0)" for one in sums)
    return f"""
        with {",".join(_steps(entity, on_conflict))}
        select {", ".join(results.values())}
          into {", ".join(results)}
          from (select count(*) filter (where r.problem is null) as good,
                       array_agg(r.key) filter (where r.problem is not null) as bad,
                       array_agg(r.problem) filter (where r.problem is not null) as problems,
                       array_agg(r.val) filter (where r.problem is not null) as vals from up as r) as u,
               (select count(*) as new, array_agg(i.place) as places from inserted as i) as i;"""


_NEW: Final = "r.n not in (select o.n from other as o)"


def _steps(entity: EntityPart, on_conflict: str) -> Iterator[str]:
    """The way of a chunk: records, their elements, their rows, and which of them are in the tables now."""
    of_key = f", {entity.of_key('c.key')}" if entity.children else ""
    # Parsed row by row, because a cast of the whole array keeps in memory what each parse leaves behind; and not from
    # unnest as a table, which would put everything aside first.
    yield f"""
        record as{" materialized" if entity.children else ""} (
            select c.n, c.key, c.val::jsonb as val{of_key}
              from (select generate_series(1, cardinality(replank_keys)) as n,
                           unnest(replank_keys) as key, unnest(replank_vals) as val) as c offset 0
        )"""
    for n, child in enumerate(entity.children, 1):
        yield from _elements(child, n)
    faulty = "".join(
        f" left join (select distinct on (e.n) e.n, e.problem as c{n - 1} from elements_{n} as e"
        f" where e.problem is not null order by e.n, e.position) as e{n} on e{n}.n = c.n"
        for n, _ in enumerate(entity.children, 1)
    )
    known = "".join(f", e{n}.c{n - 1}" for n, _ in enumerate(entity.children, 1))
    steps, rest = of_record(entity, elements_known=True)
    source = f"(select c.n, c.key, c.val{known} from record as c{faulty})"
    yield f"""
        up as materialized (
            select r.n, r.key, r.problem, case when r.problem is not null then r.val end as val,
                   {_numbered([*steps.values, *([rest] if entity.rest else [])])}
              from {steps.steps(source)}
        )"""
    returned = ", ".join(f"t.{identifier(name)} as k{n}" for n, name in enumerate(entity.primary_key))
    yield f"""
        inserted as ({_insert(entity, "up")} where r.problem is null{on_conflict}
         returning t.ctid as place, {returned}
        )"""
    found = ", ".join(f"r.v{entity.names.index(name)}" for name in entity.primary_key)
    keys = ", ".join(f"i.k{n}" for n, _ in enumerate(entity.primary_key))
    yield f"""
        -- Records without new rows: what is wrong cannot be a row, and what was there before is left alone.
        other as materialized (
            select r.n, r.key from up as r
             where r.problem is not null
                or ((select count(*) from inserted) < (select count(*) from up as a where a.problem is null)
                    and ({found}) not in (select {keys} from inserted as i))
        )"""
    for n, child in enumerate(entity.children, 1):
        yield f"""
        inserted_{n} as ({_insert(child, f"elements_{n}")} where {_NEW}
         returning t.ctid as place
        )"""


def _elements(child: ChildPart, n: int) -> Iterator[str]:
    steps, rest = of_element(child)
    keys = [f"k{n}" for n, _ in enumerate(child.child.parent)]
    source = (
        f"(select c.n, {', '.join(f'c.{key}' for key in keys)}, e.elem, (e.ordinality - 1)::integer as position"
        f" from record as c, {elements_of(child, 'c.val')} as e(elem, ordinality))"
    )
    values = [*(f"r.{key}" for key in keys), "r.position", *steps.values, *([rest] if child.rest else [])]
    yield f"""
        elements_{n} as materialized (
            select r.n, r.position, r.problem, {_numbered(values)}
              from {steps.steps(source)}
        )"""


def _numbered(expressions: Sequence[str]) -> str:
    return ", ".join(f"{expression} as v{n}" for n, expression in enumerate(expressions))


def _insert(part: Part, source: str) -> str:
    return f"""
            insert into {part.table} as t ({listed(part.names)})
            select {values(part)} from {source} as r"""


def _read_back(schema: str, entity: EntityPart) -> str:
    """Hold the rows that are in the tables now against what they were made from, by their fingerprints."""
    parts: list[Part] = [entity, *entity.children]
    sums = " + ".join(
        f"coalesce((select sum({row_hashes(part, n)[1]}) from {part.table} as t"
        f" where t.ctid = any (replank_places_{n})), 0)"
        for n, part in enumerate(parts)
    )
    return f"""
        replank_target := {sums};
        if replank_source <> replank_target then
            different := different || coalesce((
                select array_agg(d.key)
                  from {schema}.without(replank_keys, replank_vals::jsonb[], replank_others) as g,
                       {schema}.compare(g.keys, g.vals) as c, unnest(c.different) as d(key)
            ), '{{}}');
        end if;"""
