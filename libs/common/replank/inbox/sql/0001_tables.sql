-- What a consumer has applied, what it could not apply, and what waits behind that.
--
-- `applied` is range-partitioned by the event id itself: ids are UUIDv7, which begin with their time, so one index both
-- keeps (consumer, event_id) unique and lets whole days be dropped. The first partition has no lower bound (a new consumer
-- may read a topic from its beginning), the last has no upper bound (a consumer never fails because maintenance was down).

create table replank_inbox.applied (
    consumer text not null,
    event_id uuid not null,
    applied_at timestamptz not null default now(),
    primary key (consumer, event_id)
) partition by range (event_id);

create table replank_inbox.applied_first partition of replank_inbox.applied for values from (minvalue) to (maxvalue);

create table replank_inbox.dead_letter (
    seq bigint generated always as identity primary key,
    consumer text not null,
    event_id uuid not null,
    topic text not null,
    "partition" integer not null,
    "offset" bigint not null,
    recorded_at timestamptz not null,
    key bytea,
    ordered boolean not null,
    type text,
    source text,
    headers jsonb not null,
    value bytea,
    reason text not null,
    detail text not null,
    stack text,
    traceparent text,
    attempts integer not null,
    state text not null default 'dead' check (state in ('dead', 'redriving', 'redriven', 'discarded')),
    redrive_at timestamptz,
    resolved_at timestamptz,
    created_at timestamptz not null default now(),
    unique (consumer, event_id)
);
-- The redriver's question, asked all the time and almost always answered with nothing.
create index dead_letter_redriving on replank_inbox.dead_letter (consumer, seq) where state = 'redriving';
-- What still stands before an event of a key, and whether anything does.
create index dead_letter_unresolved on replank_inbox.dead_letter (consumer, topic, key, seq)
    where state in ('dead', 'redriving');

create table replank_inbox.parked_key (
    consumer text not null,
    topic text not null,
    key bytea not null,
    parked_at timestamptz not null default now(),
    primary key (consumer, topic, key)
);

create table replank_inbox.dead_letter_audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    action text not null check (action in ('redrive', 'discard')),
    actor text not null default session_user,
    consumer text not null,
    reason text not null,
    seqs bigint[] not null
);

create table replank_inbox.consumer (
    consumer text not null,
    instance uuid not null,
    host text not null,
    pid integer not null,
    handlers jsonb not null,
    started_at timestamptz not null default now(),
    heartbeat_at timestamptz not null default now(),
    primary key (consumer, instance)
);
