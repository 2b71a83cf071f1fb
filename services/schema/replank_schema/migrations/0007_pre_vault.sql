-- The vault: what is known of schemas and documents whose content is in object storage. Two modes, alike and apart: each
-- has a Postgres schema of its own, and at its start the service lets the role of a mode reach that one and no other.
do $vault$
declare
    mode text;
begin
    foreach mode in array array['standard', 'pro'] loop
        execute format('create schema vault_%s', mode);
        -- Static statements, so that they can be read: what they name is found by this path.
        perform set_config('search_path', format('vault_%s', mode), true);

        -- One content, whoever refers to it. The row is there before the object is, and goes after it:
        -- an object without a row is nobody's, a row that says `stored` without an object is a loss.
        create table blob (
            sha256 text primary key check (sha256 ~ '^[0-9a-f]{64}$'),
            size bigint check (size >= 0),
            stored_size bigint check (stored_size >= 0),
            encoding text not null default 'zstd',
            frame_size integer check (frame_size > 0),
            kind text check (kind in ('schema', 'document')),
            field_count integer,
            fields_exact boolean,
            fields text[],
            state text not null check (state in ('arriving', 'stored', 'condemned')),
            touched_at timestamptz not null default clock_timestamp(),
            stored_at timestamptz,
            -- Nothing is known of an object that nobody announced, which is only ever collected.
            check (state = 'condemned' or num_nulls(size, frame_size, kind, field_count, fields_exact, fields) = 0),
            check (state <> 'stored' or num_nulls(stored_size, stored_at) = 0)
        );
        create index blob_untouched on blob (touched_at);

        create table schema (
            id uuid primary key,
            name text collate "C" not null check (length(name) between 1 and 255),
            status text not null default 'active' check (status in ('active', 'deleted')),
            revision integer not null default 1,
            version integer not null default 1,
            kind text not null,
            field_count integer not null,
            size bigint not null,
            sha256 text not null references blob,
            owner text not null,
            description text not null default '',
            tags text[] not null default '{}',
            metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
            -- The names of tags and fields, cut into words; the blob has them as they are.
            words text not null default '',
            search tsvector not null generated always as (
                setweight(to_tsvector('english', translate(name, './_-', '    ')), 'A')
                || setweight(to_tsvector('english', description), 'B')
                || setweight(to_tsvector('english', words), 'C')
            ) stored,
            created_at timestamptz not null default clock_timestamp(),
            created_by text not null,
            updated_at timestamptz not null default clock_timestamp(),
            updated_by text not null,
            deleted_at timestamptz,
            deleted_by text,
            check ((status = 'deleted') = (deleted_at is not null))
        );
        -- A listing reads its page from one of these, whatever the number of schemas.
        create unique index schema_active_name on schema (name) where status = 'active';
        create index schema_by_name on schema (status, name, id);
        create index schema_by_updated on schema (status, updated_at, id);
        create index schema_by_created on schema (status, created_at, id);
        create index schema_by_size on schema (status, size, id);
        create index schema_by_fields on schema (status, field_count, id);
        create index schema_by_owner on schema (owner, status, name, id);
        create index schema_by_tags on schema using gin (tags);
        create index schema_by_metadata on schema using gin (metadata jsonb_path_ops);
        create index schema_by_words on schema using gin (search);
        create index schema_of_blob on schema (sha256);

        create table version (
            schema_id uuid not null references schema,
            version integer not null check (version > 0),
            sha256 text not null references blob,
            note text not null default '',
            backward boolean,
            forward boolean,
            created_at timestamptz not null default clock_timestamp(),
            created_by text not null,
            primary key (schema_id, version)
        );
        create index version_of_blob on version (sha256);

        -- What takes longer than a request may. A process that dies lets its jobs go when the lease ends.
        create table job (
            id uuid primary key,
            kind text not null,
            state text not null default 'queued' check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
            request jsonb not null,
            done bigint not null default 0,
            total bigint,
            -- From where it goes on after a crash, in its kind's own terms.
            position text,
            result jsonb,
            problem text,
            cancel boolean not null default false,
            attempts integer not null default 0,
            trace jsonb not null default '{}',
            leased_until timestamptz,
            created_at timestamptz not null default clock_timestamp(),
            created_by text not null,
            updated_at timestamptz not null default clock_timestamp()
        );
        create index job_open on job (created_at) where state in ('queued', 'running');
        create index job_ended on job (updated_at) where state not in ('queued', 'running');
        create unique index job_alone on job (kind) where state in ('queued', 'running') and kind in ('check', 'repair');

        -- What a consistency check found, until it is mended or was seen to be gone.
        create table finding (
            id uuid primary key,
            kind text not null,
            -- What it is about: a content's digest, a schema's id or the key of an object, as the kind has it.
            thing text not null,
            detail text not null,
            -- Some of the schemas that lose something by it, and how many there are.
            schemas uuid[] not null default '{}',
            affected integer not null default 0,
            state text not null default 'open' check (state in ('open', 'repaired', 'gone')),
            found_at timestamptz not null default clock_timestamp(),
            -- The jobs that opened and closed it.
            found_by uuid not null,
            closed_at timestamptz,
            closed_by uuid,
            remedy text not null
        );
        create unique index finding_open on finding (kind, thing) where state = 'open';
        create index finding_latest on finding (found_at, id);

        -- Who was seen using what is published under a name; it may be seen before the name is published.
        create table consumer (
            name text collate "C" not null,
            consumer text not null,
            events bigint not null,
            first_at timestamptz not null,
            last_at timestamptz not null,
            primary key (name, consumer)
        );
    end loop;
end
$vault$;
