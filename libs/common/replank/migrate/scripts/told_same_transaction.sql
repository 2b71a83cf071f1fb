-- Whatever is changed here is there at once.
create or replace function :"schema".:"told_by"(age double precision, most integer)
returns table (key text, version bigint)
language sql immutable
as $$
    select null::text, null::bigint where false
$$;

create or replace function :"schema".:"retell"(keys text[]) returns void
language sql immutable
as $$
    select
$$;
