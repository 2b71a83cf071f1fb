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
comment on column :"schema".authority.tables is 'what is locked to hold the writes, as SQL reads it';
-- Where both sides are in one database, it holds by itself what a flip holds across two.
create unique index if not exists authority_one_open on :"schema".authority (writes) where writes = 'open';

-- Refuses the write of a statement unless this side is open.
create or replace function :"schema".require_open(side text) returns void
language plpgsql volatile
as $$
declare
    writes text;
begin
    if current_setting('transaction_isolation') in ('read committed', 'read uncommitted') then
        -- A snapshot of now: who waited for the lock that holding takes sees what was decided meanwhile.
        select a.writes into writes from :"schema".authority a where a.side = require_open.side;
    else
        -- The transaction's snapshot may be older than the decision. Locking the row fails then (40001), and the
        -- transaction is run again with a new one.
        select a.writes into writes from :"schema".authority a where a.side = require_open.side for share;
    end if;
    if writes = 'held' then
        raise exception 'migration %: writes are held while the authority moves between the stores', :'name'
            using errcode = 'RPL01', hint = 'try the transaction again in a moment';
    elsif writes is distinct from 'open' then
        raise exception 'migration %: this store takes no writes, the other one does', :'name'
            using errcode = 'RPL02', hint = case side when 'source' then 'write to the tables'
                                                      else 'write to the key-value store' end;
    end if;
end
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
    locked text;
begin
    if writes = 'held' then
        select array_to_string(a.tables, ', ') into locked from :"schema".authority a where a.side = set_writes.side;
        if not found then
            return null;
        end if;
        -- Waits for the transactions that have written, and makes those wait that are about to. The tables come first:
        -- a writer, too, has locked its table when it reads the authority.
        execute format('lock table %s in share row exclusive mode', locked);
    end if;
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
-- most 20 of a statement, the last 16 KiB of a transaction. The first line may be cut.
create or replace function :"schema".remember(setting text, keys text[], version bigint) returns void
language plpgsql volatile
as $$
declare
    key   text;
    lines text := coalesce(current_setting(setting, true), '');
begin
    foreach key in array keys[greatest(1, cardinality(keys) - 19):] loop
        lines := lines || version || ' ' || to_json(key) || E'\n';
    end loop;
    perform set_config(setting, right(lines, 16384), true);
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
