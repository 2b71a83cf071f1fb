#!/bin/sh
# A role and a database for each service, and one role that only reads. May be repeated: what is there stays, its
# passwords and grants are set again. The native stack does the same in replank_local/provision.py.
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

# What a service owns it alone may reach; by default every role may connect to every database.
service() {
    role "$1" "$2"
    run --dbname postgres --set role="$1" <<'SQL'
select format('create database %I owner %I template template0', :'role', :'role')
where not exists (select from pg_database where datname = :'role') \gexec
revoke connect, temporary on database :"role" from public;
SQL
    # Those that need a superuser or come with the server; one that is not installed (hypopg) is left out.
    run --dbname "$1" <<'SQL'
set client_min_messages = warning;
select format('create extension if not exists %I', name) from pg_available_extensions
where name in ('pg_stat_statements', 'pg_trgm', 'btree_gin', 'hypopg') \gexec
SQL
}

run --dbname postgres --command 'revoke connect, temporary on database postgres, template1 from public'

service replank_schema REPLANK_PASSWORD_SCHEMA
service replank_auth_cache REPLANK_PASSWORD_AUTH_CACHE
service replank_benchmark REPLANK_PASSWORD_BENCHMARK
service replank_archiver REPLANK_PASSWORD_ARCHIVER

role replank_benchmark_reader REPLANK_PASSWORD_READER
run --dbname postgres <<'SQL'
set client_min_messages = warning;
alter role replank_benchmark_reader set default_transaction_read_only = on;
grant pg_read_all_data, pg_monitor to replank_benchmark_reader;
grant connect on database replank_schema to replank_benchmark_reader;
SQL
