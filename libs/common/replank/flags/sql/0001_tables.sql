-- The tables of the feature flags. In the authority's database `flag` and `history` are what holds; in every service's
-- database `copy` is what it knew last, so that it can start without Kafka.
--
-- "if not exists": the first installations had these tables and no table of versions.

create table if not exists replank_flags.flag (
    name text collate "C" primary key,
    value jsonb,
    enabled boolean not null,
    rollout numeric(6, 3) not null check (rollout between 0 and 100),
    version bigint not null,
    deleted boolean not null,
    updated_by text not null,
    reason text not null,
    updated_at timestamptz not null,
    check (deleted = (value is null))
);

create table if not exists replank_flags.history (
    name text collate "C" not null,
    version bigint not null,
    value jsonb,
    enabled boolean not null,
    rollout numeric(6, 3) not null,
    deleted boolean not null,
    updated_by text not null,
    reason text not null,
    updated_at timestamptz not null,
    primary key (name, version)
);

create table if not exists replank_flags.copy (
    name text collate "C" primary key,
    version bigint not null,
    flag jsonb not null,
    received_at timestamptz not null default clock_timestamp()
);
