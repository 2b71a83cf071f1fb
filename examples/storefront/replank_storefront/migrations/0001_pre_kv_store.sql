-- C: keys are compared byte by byte, so that the primary key serves scans by prefix.
create table kv_store (
    key text collate "C" primary key,
    value jsonb not null
);
comment on table kv_store is 'Everything the shop knows: clients, sites, catalogs, products, orders, exclusions, events.';
