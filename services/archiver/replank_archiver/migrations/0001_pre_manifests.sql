create table manifest (
    migration_id uuid primary key,
    bucket text not null,
    object_key text not null,
    sha256 text not null,
    size bigint not null check (size >= 0),
    archived_at timestamptz not null
);
comment on table manifest is 'A plan that is in object storage and was read back: a row exists only for proven bytes.';
