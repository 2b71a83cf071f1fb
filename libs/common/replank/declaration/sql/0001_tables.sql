-- What was said of a contract last, so that it is said again only when it has changed.

create table replank_contracts.declared (
    contract text primary key,
    sha256 text not null,
    at timestamptz not null default clock_timestamp()
);
