-- For each statement on one table of the target, root or child.
create or replace function :"schema".:"function"() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    batch text[];
begin
    if current_setting('replank_migrate.applier', true) = :'name' then
        if exists (select from changed) then
            perform :"schema".require_not_open('target');
        end if;
        return null;
    end if;
    perform :"schema".require_open('target');
    if tg_op = 'UPDATE' then
        -- A row may have moved from one record to another.
        for batch in
            select array_agg(k.key)
              from (select u.key, (row_number() over (order by u.key) - 1) / 256 as part
                      from (select :{record_key} from changed r union select :{record_key} from previous r) as u(key) where u.key is not null) as k
             group by k.part order by k.part
        loop
            perform :"schema".carry_back(batch);
        end loop;
    else
        for batch in
            select array_agg(k.key)
              from (select u.key, (row_number() over (order by u.key) - 1) / 256 as part
                      from (select distinct :{record_key} from changed r) as u(key) where u.key is not null) as k
             group by k.part order by k.part
        loop
            perform :"schema".carry_back(batch);
        end loop;
    end if;
    return null;
end
$$;

create or replace trigger :"insert_trigger" after insert on :"table_schema".:"table"
    referencing new table as changed
    for each statement execute function :"schema".:"function"();
create or replace trigger :"update_trigger" after update on :"table_schema".:"table"
    referencing old table as previous new table as changed
    for each statement execute function :"schema".:"function"();
create or replace trigger :"delete_trigger" after delete on :"table_schema".:"table"
    referencing old table as changed
    for each statement execute function :"schema".:"function"();
create or replace trigger :"truncate_trigger" before truncate on :"table_schema".:"table"
    for each statement execute function :"schema".refuse_truncate();
