-- The pattern that the vault comes from: a row has everything, its content too. And how a mode gets from it to contents
-- in object storage and back. Both modes again, alike and apart.
do $vault$
declare
    mode text;
begin
    foreach mode in array array['standard', 'pro'] loop
        perform set_config('search_path', format('vault_%s', mode), true);

        -- One row for each version; the current one's says what is known of the schema as a whole.
        create table inline_schema (
            id uuid not null,
            version integer not null check (version > 0),
            is_current boolean not null default true,
            name text collate "C" not null check (length(name) between 1 and 255),
            status text not null default 'active' check (status in ('active', 'deleted')),
            revision integer not null default 1,
            kind text not null check (kind in ('schema', 'document')),
            field_count integer not null,
            fields_exact boolean not null default true,
            size bigint not null,
            sha256 text not null,
            owner text not null,
            description text not null default '',
            tags text[] not null default '{}',
            metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
            note text not null default '',
            backward boolean,
            forward boolean,
            content text not null,
            created_at timestamptz not null default clock_timestamp(),
            created_by text not null,
            updated_at timestamptz not null default clock_timestamp(),
            updated_by text not null,
            deleted_at timestamptz,
            deleted_by text,
            published_at timestamptz not null default clock_timestamp(),
            published_by text not null,
            -- Whoever changes a row, by whatever statement, makes this another: what was exported is deleted only as it
            -- was exported.
            row_version bigint not null default 1,
            primary key (id, version),
            check ((status = 'deleted') = (deleted_at is not null))
        );
        create unique index inline_schema_current on inline_schema (id) where is_current;
        create unique index inline_schema_active_name on inline_schema (name) where is_current and status = 'active';
        create index inline_schema_by_content on inline_schema (sha256);

        create function count_change() returns trigger language plpgsql as $body$
        begin
            new.row_version := old.row_version + 1;
            return new;
        end
        $body$;
        create trigger inline_schema_changed before update on inline_schema
            for each row execute function count_change();

        -- Which pattern takes the writes. No row: nothing was ever written, and the flag may still choose.
        create table pattern (
            one boolean primary key default true check (one),
            phase text not null check (phase in (
                'new', 'planned', 'backfilling', 'verifying', 'new_with_fallback', 'new_only', 'completed', 'archiving',
                'archived', 'rolled_back')),
            -- How often a migration was started, and the job that backfills and verifies in this run.
            run integer not null default 0,
            job_id uuid,
            rows_verified bigint,
            verified_at timestamptz,
            changed_at timestamptz not null default clock_timestamp(),
            changed_by text not null
        );
        -- What is in the vault already was made by the new pattern.
        insert into pattern (phase, changed_by) select 'new', 'system:migration' where exists (select from schema);

        -- Rows that could not be moved, or were found to differ.
        create table pattern_reject (
            schema_id uuid not null,
            version integer not null,
            name text not null,
            step text not null check (step in ('backfill', 'verify')),
            reason text not null,
            found_at timestamptz not null default clock_timestamp(),
            primary key (schema_id, version)
        );

        -- How the reads of this run that were compared came out.
        create table pattern_read (
            endpoint text not null,
            outcome text not null,
            reads bigint not null,
            primary key (endpoint, outcome)
        );

        -- What was given to the archiver: which rows, each as it was.
        create table archive_request (
            id uuid primary key,
            state text not null check (state in ('requested', 'archived', 'withdrawn')),
            rows bigint not null,
            sha256 text not null,
            stored_size bigint not null,
            deleted bigint,
            bucket text,
            object_key text,
            requested_at timestamptz not null default clock_timestamp(),
            requested_by text not null,
            settled_at timestamptz
        );
        create unique index archive_request_open on archive_request ((true)) where state = 'requested';
        create table archive_row (
            request_id uuid not null,
            schema_id uuid not null,
            version integer not null,
            row_version bigint not null,
            primary key (request_id, schema_id, version)
        );
        create unique index job_moving_alone on job ((true))
            where state in ('queued', 'running') and kind in ('migrate', 'archive');
    end loop;
end
$vault$;
