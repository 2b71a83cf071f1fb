#!/bin/sh
# A role and databases for each service and example, and one role that only reads. May be repeated: what is there stays,
# its passwords and grants are set again. The native stack does the same in replank_local/provision.py.
set -eu

run() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 "$@"; }

# role NAME VARIABLE: the password is in the variable, not among the arguments, which others can read.
role() {
    run --dbname postgres --set role="$1" <<SQL
\\getenv password $2
select format('create role %I login', :'role')
where not exists (select from pg_roles where rolname = :'role') \\gexec
alter role :"role" password :'password';
SQL
}

# database NAME OWNER: its owner alone may reach it; by default every role may connect to every database.
database() {
    run --dbname postgres --set name="$1" --set owner="$2" <<'SQL'
select format('create database %I owner %I template template0', :'name', :'owner')
where not exists (select from pg_database where datname = :'name') \gexec
revoke connect, temporary on database :"name" from public;
SQL
    # Those that need a superuser or come with the server; one that is not installed (hypopg) is left out.
    run --dbname "$1" <<'SQL'
set client_min_messages = warning;
select format('create extension if not exists %I', name) from pg_available_extensions
where name in ('pg_stat_statements', 'pg_trgm', 'btree_gin', 'hypopg') \gexec
SQL
}

run --dbname postgres --command 'revoke connect, temporary on database postgres, template1 from public'

role replank_schema REPLANK_PASSWORD_SCHEMA
role replank_auth_cache REPLANK_PASSWORD_AUTH_CACHE
role replank_benchmark REPLANK_PASSWORD_BENCHMARK
role replank_archiver REPLANK_PASSWORD_ARCHIVER
role replank_storefront REPLANK_PASSWORD_STOREFRONT
role replank_benchmark_reader REPLANK_PASSWORD_READER
role replank_vault_standard REPLANK_PASSWORD_VAULT_STANDARD
role replank_vault_pro REPLANK_PASSWORD_VAULT_PRO

database replank_schema replank_schema
database replank_auth_cache replank_auth_cache
database replank_benchmark replank_benchmark
database replank_archiver replank_archiver
database replank_storefront_kv replank_storefront
database replank_storefront replank_storefront

run --dbname postgres <<'SQL'
set client_min_messages = warning;
alter role replank_benchmark_reader set default_transaction_read_only = on;
grant pg_read_all_data, pg_monitor to replank_benchmark_reader;
grant connect on database replank_schema, replank_storefront_kv, replank_storefront to replank_benchmark_reader;
-- What they may do there is granted by the database's owner, the service, as it starts.
grant connect on database replank_schema to replank_vault_standard, replank_vault_pro;
-- A migration that is to wait for standbys or for load has to see them.
grant pg_monitor to replank_storefront;
SQL
