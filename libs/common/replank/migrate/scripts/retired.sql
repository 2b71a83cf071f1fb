-- What a retired migration leaves behind where it was asked to: a store that goes on refusing writes, because the other
-- one takes them. Without it a writer that was forgotten would write, and nobody would ever read it.
grant usage on schema replank_retired to public;

create or replace function replank_retired.:"function"() returns trigger
language plpgsql
as $$
begin
    raise exception 'migration %: this store takes no writes any more, the other one does', :'name'
        using errcode = 'RPL02', hint = :'hint';
end
$$;
comment on function replank_retired.:"function"() is :'comment';
