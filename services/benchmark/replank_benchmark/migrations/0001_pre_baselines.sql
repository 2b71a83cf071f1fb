create table baseline (
    id uuid primary key,
    migration_id uuid not null,
    target text not null,
    source jsonb not null,
    status text not null check (status in ('captured', 'failed')),
    reason text,
    rows_estimated bigint,
    bytes_total bigint,
    plan_cost double precision,
    relations jsonb,
    explain jsonb,
    recorded_at timestamptz not null,
    constraint failed_says_why check ((status = 'failed') = (reason is not null)),
    constraint captured_has_figures check (
        status = 'failed'
        or (
            rows_estimated is not null and bytes_total is not null and plan_cost is not null
            and relations is not null and explain is not null
        )
    )
);
comment on table baseline is 'What a migration''s source looked like before anything changed, or why that could not be told.';
comment on column baseline.relations is 'Every relation that the source reads: planner''s rows, bytes, and scan counters.';

create index baseline_by_migration on baseline (migration_id, id desc);
