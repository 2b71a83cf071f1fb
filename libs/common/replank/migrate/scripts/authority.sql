-- What either side of a migration has: versions, and who may write. A database that is both sides has it once.

-- A migration that is started anew goes on above the versions of its last run. Without a cache: a session that caches
-- versions draws them before it holds a record's lock.
create sequence if not exists :"schema".version as bigint start with :{first_version} cache 1;

create table if not exists :"schema".authority (
    side       text primary key check (side in ('source', 'target')),
    writes     text not null check (writes in ('open', 'held', 'closed')),
    tables     text[] not null,
    changed_at timestamptz not null default clock_timestamp()
);
comment on column :"schema".authority.tables is 'what writers of this side have locked, as SQL reads it';
-- Where both sides are in one database, it holds by itself what a flip holds across two.
create unique index if not exists authority_one_open on :"schema".authority (writes) where writes = 'open';

-- Refuses the write of a statement unless this side is open, or was when its transaction first wrote: whoever has begun
-- may finish. The transaction knows by a setting of its own, which a rolled back savepoint takes back, as it does the lock
-- on the table. Whoever is let in has locked a table of this side, and holding waits for all who have: see `writing`.
create or replace function :"schema".require_open(side text) returns void
language plpgsql volatile
as $$
declare
    writes text;
begin
    if current_setting(:'schema' || '.let_in_' || side, true) = 'yes' then
        return;
    end if;
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        -- The transaction's snapshot may be older than the decision. Locking the row fails then (40001), and the
        -- transaction is run again with a new one. The lock is given back at once: the next decision need not wait.
        begin
            perform from :"schema".authority a where a.side = require_open.side for share;
            raise exception using errcode = 'RPL00';
        exception when sqlstate 'RPL00' then
            null;
        end;
    end if;
    -- In read committed a snapshot of now, and so younger than the lock on the table.
    select a.writes into writes from :"schema".authority a where a.side = require_open.side;
    if writes = 'open' then
        writes := set_config(:'schema' || '.let_in_' || side, 'yes', true);
    elsif writes = 'held' then
        raise exception 'migration %: writes are held while the authority moves between the stores', :'name'
            using errcode = 'RPL01', hint = 'try the transaction again in a moment';
    else
        raise exception 'migration %: this store takes no writes, the other one does', :'name'
            using errcode = 'RPL02', hint = case side when 'source' then 'write to the tables'
                                                      else 'write to the key-value store' end;
    end if;
end
$$;

-- The transactions that have written to this side, or are about to, by what `pg_locks` calls them. A statement locks its
-- table before its trigger asks who may write; so once "held" is committed, whoever was let in before is among them.
-- Besides plain writers, those that lock a table to change it as a whole: a repair does. Not a vacuum.
create or replace function :"schema".writing(side text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(array_agg(distinct l.virtualtransaction), '{}')
      from :"schema".authority a, unnest(a.tables) as t(name), pg_locks l
     where a.side = writing.side and l.locktype = 'relation' and l.granted
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
       and l.relation = to_regclass(t.name)
       and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
       and l.pid is distinct from pg_backend_pid()
$$;

-- An applier carries changes to the store that is not the authority. Its changes of an open one would be lost, or be
-- somebody's loss: they are refused.
create or replace function :"schema".require_not_open(side text) returns void
language plpgsql volatile
as $$
begin
    if exists (select from :"schema".authority a where a.side = require_not_open.side and a.writes = 'open') then
        raise exception 'migration %: an applier may not change the store that takes the writes', :'name'
            using errcode = 'RPL03', hint = 'look whether an applier of the other direction still runs';
    end if;
end
$$;

-- Answers what was before; null if the database is no such side.
create or replace function :"schema".set_writes(side text, writes text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    before text;
begin
    select a.writes into before from :"schema".authority a where a.side = set_writes.side for update;
    if before = writes then
        return before;
    end if;
    if (before, writes) not in (('open', 'held'), ('held', 'open'), ('held', 'closed'), ('closed', 'open')) then
        raise exception 'migration %: the % cannot go from % to %', :'name', side, before, writes
            using errcode = 'RPL04', hint = 'an open side is held before it is closed';
    end if;
    update :"schema".authority a set writes = set_writes.writes, changed_at = clock_timestamp()
     where a.side = set_writes.side;
    return before;
end
$$;

-- The transaction remembers the versions of its last changes, for the token that its caller may ask for: a line each, at
-- most 20 of a statement, the last 8 to 16 KiB of a transaction.
create or replace function :"schema".remember(setting text, keys text[], version bigint) returns void
language plpgsql volatile
as $$
declare
    key   text;
    lines text;
begin
    if cardinality(keys) = 1 and coalesce(octet_length(current_setting(setting, true)), 0) < 8192 then
        -- The usual case, in one expression: a new transaction prepares each anew.
        lines := set_config(setting, concat(current_setting(setting, true), version, ' ', to_json(keys[1]), E'\n'), true);
        return;
    end if;
    lines := coalesce(current_setting(setting, true), '');
    foreach key in array keys[greatest(1, cardinality(keys) - 19):] loop
        lines := lines || version || ' ' || to_json(key) || E'\n';
    end loop;
    if octet_length(lines) > 16384 then
        lines := right(lines, 8192);
        lines := substr(lines, strpos(lines, E'\n') + 1);  -- whole lines
    end if;
    lines := set_config(setting, lines, true);
end
$$;

create or replace function :"schema".refuse_truncate() returns trigger
language plpgsql
as $$
begin
    raise exception 'migration %: truncate of % cannot be followed', :'name', tg_relid::regclass
        using errcode = 'feature_not_supported', hint = 'delete the rows, or cancel the migration first';
end
$$;
