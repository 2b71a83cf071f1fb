"""What is the same for every mapping: the two tables beside the functions, and functions between arrays."""

from __future__ import annotations

from typing import Final

TABLES: Final = """
create schema if not exists {schema};
-- The newest version of each key that was seen. A deleted key stays, as its tombstone: what is late is known for late.
create table if not exists {schema}.applied (
    key         text collate "C" primary key,
    version     bigint not null,
    deleted     boolean not null,
    traceparent text,
    at          timestamptz not null default clock_timestamp()
);
-- Records that could not be converted. Those that a backfill met have no version.
create table if not exists {schema}.reject (
    key      text collate "C" primary key,
    value    jsonb,
    version  bigint,
    reason   text not null,
    path     text not null,
    first_at timestamptz not null default clock_timestamp(),
    last_at  timestamptz not null default clock_timestamp(),
    attempts integer not null default 1
);
"""


SHARED: Final = """
-- Of changes to the same key the newest, and of those the ones that are newer than what was seen. In the order of keys,
-- so that two batches at once wait for each other and never for themselves.
create function {schema}.take(
    text[], jsonb[], bigint[], text[], out keys text[], out vals jsonb[], out versions bigint[])
language sql volatile
{settings}
as $$
    with newest as materialized (
        select distinct on (c.key collate "C") c.key, c.val, c.version, c.traceparent
          from unnest($1, $2, $3, $4) as c(key, val, version, traceparent)
         order by c.key collate "C", c.version desc
    ), taken as (
        insert into {schema}.applied as a (key, version, deleted, traceparent)
        select n.key, n.version, n.val is null, n.traceparent from newest as n order by n.key collate "C"
            on conflict (key) do update
            set version = excluded.version, deleted = excluded.deleted, traceparent = excluded.traceparent,
                at = clock_timestamp()
            where a.version < excluded.version
        returning a.key
    )
    select array_agg(n.key), array_agg(n.val), array_agg(n.version) from newest as n join taken as t on t.key = n.key
$$;

-- Note records ($1, and $2 why) of a batch ($3, $4, $5: versions, null from a backfill) that could not be converted.
create function {schema}.refuse(text[], text[], text[], jsonb[], bigint[]) returns void
language sql volatile
{settings}
as $$
    insert into {schema}.reject as e (key, value, version, reason, path)
    select b.key, c.val, c.version, substr(b.problem, strpos(b.problem, ': ') + 2), split_part(b.problem, ': ', 1)
      from unnest($1, $2) as b(key, problem) join unnest($3, $4, $5) as c(key, val, version) on c.key = b.key
     order by b.key collate "C"
        on conflict (key) do update
        set value = excluded.value, version = excluded.version, reason = excluded.reason, path = excluded.path,
            last_at = clock_timestamp(), attempts = e.attempts + 1
$$;

-- A chunk ($1, $2) without some of its keys ($3).
create function {schema}.without(text[], jsonb[], text[], out keys text[], out vals jsonb[])
language sql stable
{settings}
as $$
    select array_agg(c.key), array_agg(c.val) from unnest($1, $2) as c(key, val)
     where not exists (select from unnest($3) as b(key) where b.key = c.key)
$$;

-- Forget the rejects of keys ($1) whose records are good now: of all but those that are bad still ($2).
create function {schema}.mended(text[], text[]) returns void
language sql volatile
{settings}
as $$
    delete from {schema}.reject as e
     where e.key = any ($1) and not exists (select from unnest($2) as b(key) where b.key = e.key)
$$;

-- What became of each change of a batch ($1, $2), given those that were newer ($3, $4) and the problems ($5, $6).
create function {schema}.outcomes(text[], bigint[], text[], bigint[], text[], text[])
returns table (key text, outcome text, problem text)
language sql stable
{settings}
as $$
    select c.key, case when t.key is null then 'stale' when b.key is null then 'applied'
                       when b.problem is null then 'ignored' else 'rejected' end, b.problem
      from unnest($1, $2) with ordinality as c(key, version, place)
      left join unnest($3, $4) as t(key, version) on t.key = c.key and t.version = c.version
      left join unnest($5, $6) as b(key, problem) on b.key = t.key
     order by c.place
$$;
"""
