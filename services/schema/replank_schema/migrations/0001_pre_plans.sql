create table migration (
    id uuid primary key,
    name text not null,
    owner text not null,
    source jsonb not null,
    plan jsonb not null,
    plan_sha256 text not null,
    phase text not null default 'planned' check (phase in ('planned', 'ready')),
    planned_by text not null,
    planned_at timestamptz not null,
    ready_at timestamptz,
    constraint ready_says_when check (phase <> 'ready' or ready_at is not null)
);
comment on table migration is 'A registered migration. Ids are UUIDv7, so id order is the order of registration.';
comment on column migration.plan_sha256 is 'SHA-256 of the plan''s canonical JSON, as the event carries it.';

-- One row an item of the checklist, written together with the migration.
create table readiness (
    migration_id uuid not null references migration on delete cascade,
    item text not null check (item in ('access', 'baseline', 'archive')),
    state text not null default 'pending' check (state in ('pending', 'met', 'failed')),
    detail text,
    event_id uuid,
    changed_at timestamptz not null,
    primary key (migration_id, item),
    constraint settled_by_an_event check (state = 'pending' or event_id is not null)
);
comment on column readiness.event_id is 'The event that settled the item: the proof.';
