create table schemas_manifest (
    request_id uuid primary key,
    mode text not null,
    rows bigint not null check (rows >= 0),
    sha256 text not null,
    bucket text not null,
    object_key text not null,
    size bigint not null check (size >= 0),
    archived_at timestamptz not null
);
comment on table schemas_manifest is
    'Rows of schemas that are in object storage, compressed, and were read back: a row exists only for proven lines.';
