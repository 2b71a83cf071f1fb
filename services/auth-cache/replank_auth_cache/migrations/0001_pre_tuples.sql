create table store (
    name text primary key,
    incarnation uuid not null default gen_random_uuid(),
    revision bigint not null default 0,
    created_at timestamptz not null default now()
);
comment on column store.incarnation is 'Tells this store from one of the same name in another or an earlier database, for caches.';
comment on column store.revision is 'Counts the transactions that changed the store''s tuples; its row lock puts them in order.';

create table relation_tuple (
    store text not null references store,
    object text not null,
    relation text not null,
    actor text not null,
    revision bigint not null,
    written_by text not null,
    written_at timestamptz not null,
    primary key (store, object, relation, actor)
);
comment on table relation_tuple is 'Actor has relation to object: the only authority for access.';
