-- What a migration that runs leaves behind: audit, leases, reads, and losses that were accepted.

create table audit (
    seq bigint generated always as identity primary key,
    migration_id uuid not null references migration on delete cascade,
    at timestamptz not null default clock_timestamp(),
    who text not null,
    action text not null,
    reason text not null,
    from_phase text not null,
    to_phase text not null,
    evidence jsonb not null
);
create index audit_of_migration on audit (migration_id, seq);
comment on table audit is 'Who did what to a migration, why, and on what evidence. Written with what it tells of.';

-- One leader a migration, over all processes of the service. The token grows with every holder: what a leader writes
-- names it, so that one who was thought dead changes nothing.
create table lease (
    migration_id uuid primary key references migration on delete cascade,
    owner text not null,
    token bigint not null,
    held_until timestamptz not null,
    report jsonb not null default '{}',
    reported_at timestamptz
);
comment on column lease.report is 'What the work says of itself (replank_schema.migration.report.Report).';

create table read_route (
    migration_id uuid not null references migration on delete cascade,
    endpoint text not null,
    mode text not null check (mode in ('kv', 'compare', 'new_with_fallback', 'new')),
    rollout numeric(6, 3) not null check (rollout between 0 and 100),
    primary key (migration_id, endpoint)
);
comment on table read_route is 'Which store answers an endpoint: what the flags say, as far as they were set from here.';

create table accepted_reject (
    migration_id uuid not null references migration on delete cascade,
    run integer not null,
    key text not null,
    accepted_by text not null,
    reason text not null,
    accepted_at timestamptz not null default clock_timestamp(),
    primary key (migration_id, run, key)
);
comment on table accepted_reject is 'Records that are not in the tables, and whose loss somebody took upon them.';
