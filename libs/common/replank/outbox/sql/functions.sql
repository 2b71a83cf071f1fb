-- Replaced as a whole by every install. SECURITY DEFINER: a writer needs EXECUTE and nothing else.

-- One expression and no settings, so that it is inlined: as a call it costs more than the rest of an append.
create or replace function replank_outbox.uuid7() returns uuid
language sql volatile parallel safe
as $$
    -- 48 bits of Unix milliseconds, the version nibble 7, and what follows that of a random version 4 UUID.
    select (lpad(to_hex(floor(date_part('epoch', clock_timestamp()) * 1000)::bigint), 12, '0')
            || '7' || substr(gen_random_uuid()::text, 16))::uuid
$$;

-- Whose transaction ids these are. A dump that is restored elsewhere brings rows whose xid means nothing there.
create or replace function replank_outbox.cluster() returns text
language sql stable
as $$
    select system_identifier || '/' || (select oid from pg_database where datname = current_database())
      from pg_control_system()
$$;

create or replace function replank_outbox.bucket(key text) returns smallint
language sql volatile parallel safe
as $$
    select (case when key is null then floor(random() * 64)::bigint else hashtextextended(key, 0) & 63 end)::smallint
$$;

-- How many (topic, key) locks this transaction has taken. It is kept in a transaction-local setting, so that rolling
-- back to a savepoint, which gives locks back, also takes back the count.
create or replace function replank_outbox.locks_held() returns integer
language sql stable
as $$
    select coalesce(nullif(current_setting('replank_outbox.locks_held', true), ''), '0')::integer
$$;

create or replace function replank_outbox.check_headers(headers jsonb) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    wrong text;
begin
    if jsonb_typeof(headers) <> 'object' then
        raise exception 'outbox: headers must be a JSON object of strings, not %', jsonb_typeof(headers)
            using errcode = 'invalid_parameter_value';
    end if;
    select h.key into wrong from jsonb_each(headers) as h
     where jsonb_typeof(h.value) <> 'string' or h.key = '' or starts_with(h.key, 'ce_')
        or h.key in ('content-type', 'traceparent', 'tracestate', 'baggage') limit 1;
    if found then
        raise exception 'outbox: header "%" is reserved, has no name, or its value is not a string', wrong
            using errcode = 'invalid_parameter_value',
                  hint = 'ce_*, content-type, traceparent, tracestate and baggage are written by the relay';
    end if;
end
$$;

create or replace function replank_outbox.append(
    topic       text,
    key         text,
    type        text,
    value       bytea,
    event_id    uuid  default null,
    source      text  default null,
    subject     text  default null,
    traceparent text  default null,
    tracestate  text  default null,
    baggage     text  default null,
    headers     jsonb default null
) returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    held  integer;
    size  bigint;
    bound bigint := coalesce(nullif(current_setting('replank_outbox.max_bytes', true), ''), '1000000')::bigint;
begin
    if topic is null or topic = '' or type is null or type = '' or key = '' then
        raise exception 'outbox: topic, type and key must not be empty (topic "%", type "%")', topic, type
            using errcode = 'invalid_parameter_value', hint = 'pass a null key for an event without order';
    end if;
    if key is null and value is null then
        raise exception 'outbox: a tombstone (null value) on topic "%" needs a key', topic
            using errcode = 'invalid_parameter_value';
    end if;
    if headers is not null then
        perform replank_outbox.check_headers(headers);
    end if;
    size := coalesce(octet_length(value), 0) + coalesce(octet_length(key), 0) + coalesce(octet_length(subject), 0)
          + coalesce(octet_length(baggage), 0) + coalesce(octet_length(headers::text), 0);
    if size > bound then
        raise exception 'outbox: event of % bytes on topic "%" is over the limit of %', size, topic, bound
            using errcode = 'program_limit_exceeded', hint = 'store the payload elsewhere and publish a reference to it';
    end if;

    -- The order lock, before the id is drawn: for one key, id order is then commit order.
    -- A transaction with very many keys would fill the lock table, so it trades its key locks for the whole topic.
    if key is not null then
        held := replank_outbox.locks_held();
        if held < 256 then
            perform pg_advisory_xact_lock_shared(hashtextextended(topic, 7203685041));
            perform pg_advisory_xact_lock(hashtextextended(key, hashtextextended(topic, 7203685042)));
            perform set_config('replank_outbox.locks_held', (held + 1)::text, true);
        else
            perform pg_advisory_xact_lock(hashtextextended(topic, 7203685041));
        end if;
    end if;

    event_id := coalesce(event_id, replank_outbox.uuid7());
    insert into replank_outbox.event
        (event_id, bucket, topic, key, type, source, subject, value, traceparent, tracestate, baggage, headers)
    values
        (append.event_id, replank_outbox.bucket(append.key), append.topic, append.key, append.type,
         coalesce(append.source, 'postgres:' || current_database()), append.subject, append.value,
         append.traceparent, append.tracestate, append.baggage, append.headers);
    return event_id;
end
$$;

create or replace function replank_outbox.append_many(
    topics      text[],
    keys        text[],
    types       text[],
    payloads    bytea[],
    event_ids   uuid[]  default null,
    sources     text[]  default null,
    subjects    text[]  default null,
    headers     jsonb[] default null,
    traceparent text    default null,
    tracestate  text    default null,
    baggage     text    default null
) returns uuid[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- planning anew for each array costs more than any plan for it can save
as $$
declare
    n        integer := coalesce(array_length(topics, 1), 0);
    bound    bigint := coalesce(nullif(current_setting('replank_outbox.max_bytes', true), ''), '1000000')::bigint;
    held     integer := replank_outbox.locks_held();
    at       integer;
    size     bigint;
    distinct_keys integer;
    lock_id  bigint;
begin
    if n = 0 then
        return '{}';
    end if;
    if coalesce(array_length(keys, 1), 0) <> n or coalesce(array_length(types, 1), 0) <> n
        or coalesce(array_length(payloads, 1), 0) <> n
        or coalesce(array_length(event_ids, 1), n) <> n or coalesce(array_length(sources, 1), n) <> n
        or coalesce(array_length(subjects, 1), n) <> n or coalesce(array_length(headers, 1), n) <> n then
        raise exception 'outbox: the arrays of append_many differ in length (topics has %)', n
            using errcode = 'invalid_parameter_value';
    end if;
    select m.ord into at
      from unnest(topics, keys, types, payloads) with ordinality as m(topic, key, type, value, ord)
     where m.topic is null or m.topic = '' or m.type is null or m.type = '' or m.key = ''
        or (m.key is null and m.value is null)
     limit 1;
    if found then
        raise exception 'outbox: event % of append_many has an empty topic, type or key, or is a tombstone without a key', at
            using errcode = 'invalid_parameter_value', hint = 'pass a null key for an event without order';
    end if;
    select m.ord, m.size into at, size
      from (select u.ord, coalesce(octet_length(u.value), 0) + coalesce(octet_length(u.key), 0)
                 + coalesce(octet_length(u.subject), 0) + coalesce(octet_length(append_many.baggage), 0)
                 + coalesce(octet_length(u.headers::text), 0) as size
              from unnest(keys, payloads, subjects, append_many.headers) with ordinality
                   as u(key, value, subject, headers, ord)) as m
     where m.size > bound
     limit 1;
    if found then
        raise exception 'outbox: event % of append_many has % bytes, over the limit of %', at, size, bound
            using errcode = 'program_limit_exceeded', hint = 'store the payload elsewhere and publish a reference to it';
    end if;
    perform replank_outbox.check_headers(h) from unnest(append_many.headers) as h where h is not null;

    -- Locks in one global order (topics, then keys, each by hash), so that two calls cannot wait for each other.
    select count(*) into distinct_keys
      from (select distinct m.topic, m.key from unnest(topics, keys) as m(topic, key) where m.key is not null) as d;
    if held + distinct_keys > 256 then
        for lock_id in select distinct hashtextextended(m.topic, 7203685041) as h
                         from unnest(topics, keys) as m(topic, key) where m.key is not null order by h loop
            perform pg_advisory_xact_lock(lock_id);
        end loop;
    else
        for lock_id in select distinct hashtextextended(m.topic, 7203685041) as h
                         from unnest(topics, keys) as m(topic, key) where m.key is not null order by h loop
            perform pg_advisory_xact_lock_shared(lock_id);
        end loop;
        for lock_id in select distinct hashtextextended(m.key, hashtextextended(m.topic, 7203685042)) as h
                         from unnest(topics, keys) as m(topic, key) where m.key is not null order by h loop
            perform pg_advisory_xact_lock(lock_id);
        end loop;
        perform set_config('replank_outbox.locks_held', (held + distinct_keys)::text, true);
    end if;

    if event_ids is null then
        select array_agg(replank_outbox.uuid7()) into event_ids from generate_series(1, n);
    end if;
    insert into replank_outbox.event
        (event_id, bucket, topic, key, type, source, subject, value, traceparent, tracestate, baggage, headers)
    select m.event_id, replank_outbox.bucket(m.key), m.topic, m.key, m.type,
           coalesce(m.source, 'postgres:' || current_database()), m.subject, m.value,
           append_many.traceparent, append_many.tracestate, append_many.baggage, m.headers
      from unnest(event_ids, topics, keys, types, sources, subjects, payloads, append_many.headers) with ordinality
           as m(event_id, topic, key, type, source, subject, value, headers, ord)
     order by m.ord;
    return event_ids;
end
$$;

-- For a caller whose own locks put the transactions of a key one after the other, up to their commit: it takes none, and
-- does little more than one insert. Every event has a key, and all have one topic and type.
create or replace function replank_outbox.append_ordered(
    topic       text,
    type        text,
    keys        text[],
    payloads    bytea[],
    traceparent text default null
) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    at   integer;
    size bigint;
    stem text;
begin
    if topic = '' or type = '' or '' = any (keys) or cardinality(keys) is distinct from cardinality(payloads) then
        raise exception 'outbox: topic, type and keys must not be empty, and there is one payload a key (topic "%")', topic
            using errcode = 'invalid_parameter_value';
    -- None is larger than all together.
    elsif pg_column_size(payloads)
        > coalesce(nullif(current_setting('replank_outbox.max_bytes', true), ''), '1000000')::bigint then
        select m.ord, octet_length(m.key) + octet_length(m.value) into at, size
          from unnest(keys, payloads) with ordinality as m(key, value, ord)
         where octet_length(m.key) + octet_length(m.value)
             > coalesce(nullif(current_setting('replank_outbox.max_bytes', true), ''), '1000000')::bigint
         limit 1;
        if found then
            raise exception 'outbox: event % of append_ordered has % bytes, which is over the limit', at, size
                using errcode = 'program_limit_exceeded',
                      hint = 'store the payload elsewhere and publish a reference to it';
        end if;
    end if;

    if cardinality(keys) = 1 then
        insert into replank_outbox.event (event_id, bucket, topic, key, type, source, value, traceparent)
        values (replank_outbox.uuid7(), replank_outbox.bucket(keys[1]), append_ordered.topic, keys[1],
                append_ordered.type, 'postgres:' || current_database(), payloads[1], append_ordered.traceparent);
        return;
    end if;
    -- The ids are one UUIDv7, whose last 32 bits count: to draw each anew costs as much as the index does.
    stem := left(replank_outbox.uuid7()::text, 28);
    insert into replank_outbox.event (event_id, bucket, topic, key, type, source, value, traceparent)
    select (stem || lpad(to_hex(m.ord), 8, '0'))::uuid, replank_outbox.bucket(m.key), append_ordered.topic, m.key,
           append_ordered.type, 'postgres:' || current_database(), m.value, append_ordered.traceparent
      from unnest(keys, payloads) with ordinality as m(key, value, ord);
end
$$;

create or replace function replank_outbox.wake() returns trigger
language plpgsql
as $$
begin
    notify replank_outbox;
    return null;
end
$$;

revoke all on all functions in schema replank_outbox from public;
