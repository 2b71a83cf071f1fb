-- The outbox of one database. Everything lives in one schema, to be inspected, granted and dropped as one.

create table replank_outbox.config (
    one                boolean primary key default true check (one),
    shards             integer not null check (shards between 1 and 64),
    partition_interval interval not null check (partition_interval >= interval '1 minute'),
    partitions_ahead   integer not null check (partitions_ahead between 1 and 366)
);

-- The default cache of 1 is part of the ordering promise: a session that caches ids draws them before it holds the lock.
create sequence replank_outbox.event_id as bigint cache 1;

-- Rows are inserted and, a partition at a time, dropped. Nothing updates or deletes them, so there is nothing to vacuum.
create table replank_outbox.event (
    id          bigint      not null default nextval('replank_outbox.event_id'),
    xid         xid8        not null default pg_current_xact_id(),
    created_at  timestamptz not null default clock_timestamp(),
    event_id    uuid        not null,
    bucket      smallint    not null,
    topic       text        not null,
    key         text,
    type        text        not null,
    source      text        not null,
    subject     text,
    value       bytea,
    traceparent text,
    tracestate  text,
    baggage     text,
    headers     jsonb
) partition by range (created_at);

create index event_window on replank_outbox.event (xid, id);

-- Partitions are made by replank.outbox.partitions. The last one, event_tail, has no end: a writer must never fail
-- because maintenance was down.

-- One row a shard, moved once a page: kept HOT by leaving room on the page.
create table replank_outbox.shard (
    shard          integer primary key,
    window_number  bigint      not null default 0,
    previous       pg_snapshot not null default '1:1:',
    current        pg_snapshot,
    last_id        bigint      not null default 0,
    floor_id       bigint      not null default 0,
    replay_to      bigint,
    cluster        text        not null,
    owner          text,
    token          bigint      not null default 0,
    lease_until    timestamptz not null default '-infinity',
    stuck_event_id uuid,
    stuck_reason   text,
    stuck_since    timestamptz,
    updated_at     timestamptz
) with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on column replank_outbox.shard.previous is 'everything visible in this snapshot has been published';
comment on column replank_outbox.shard.current is 'end of the window in progress: published up to last_id; null between windows';
comment on column replank_outbox.shard.cluster is 'whose transaction ids these are: system identifier and database oid';
comment on column replank_outbox.shard.floor_id is 'rows up to this id came with a dump; their xids belong to another cluster';
comment on column replank_outbox.shard.replay_to is 'after a restore: rows in (last_id, replay_to] are being published again, by id';

-- Who takes part in sharing the shards.
create table replank_outbox.relay (
    owner      text primary key,
    seen_until timestamptz not null
) with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

-- Events that Kafka refuses for good and an operator took out of the way: a full copy, because partitions are dropped.
create table replank_outbox.quarantine (
    event_id       uuid primary key,
    id             bigint not null,
    reason         text not null,
    quarantined_at timestamptz not null default clock_timestamp(),
    quarantined_by text not null default current_user,
    created_at     timestamptz not null,
    topic          text not null,
    key            text,
    type           text not null,
    source         text not null,
    subject        text,
    value          bytea,
    traceparent    text,
    tracestate     text,
    baggage        text,
    headers        jsonb
);
create index quarantine_id on replank_outbox.quarantine (id);
