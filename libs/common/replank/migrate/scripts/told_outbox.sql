-- The newest changes of this side that were told at least so many seconds ago, of each record the newest: where all of
-- them are applied, so is whatever was told before them, since partitions are applied in their order. Not what an earlier
-- run of the migration told, nor what an operator took out of the way; a side that is closed has been waited for.
create or replace function :"schema".:"told_by"(age double precision, most integer)
returns table (key text, version bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select t.key, max(t.version)
      from (select e.key, e.event_id,
                   -- All of it is ASCII: see the change that is told.
                   substring(encode(substr(e.value, 1, 32), 'escape') from '^{"version": ([0-9]+),')::bigint as version
              from replank_outbox.event e
             where e.topic = :'topic' and e.created_at < clock_timestamp() - make_interval(secs => age)
             order by e.xid desc, e.id desc limit most) as t
     where t.version >= (select s.seqstart from pg_sequence s where s.seqrelid = :'version_sequence'::regclass)
       and exists (select from :"schema".authority a where a.side = :'side' and a.writes <> 'closed')
       and not exists (select from replank_outbox.quarantine q where q.event_id = t.event_id)
     group by t.key
$$;
