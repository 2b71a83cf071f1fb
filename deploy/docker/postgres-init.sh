#!/bin/sh
# Runs once, when the data volume is empty: a role and a database for each service, and one role that only reads.
set -eu

run() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres "$@"; }

# What a service owns it alone may reach; by default every role may connect to every database.
run --dbname postgres --command 'revoke connect, temporary on database postgres, template1 from public'

service() {
    run --dbname postgres --set role="$1" --set password="$2" <<'SQL'
create role :"role" login password :'password';
create database :"role" owner :"role" template template0;
revoke connect, temporary on database :"role" from public;
SQL
    run --dbname "$1" <<'SQL'
create extension if not exists pg_stat_statements;
create extension if not exists pg_trgm;
create extension if not exists btree_gin;
SQL
}

service replank_schema "$REPLANK_PASSWORD_SCHEMA"
service replank_auth_cache "$REPLANK_PASSWORD_AUTH_CACHE"
service replank_benchmark "$REPLANK_PASSWORD_BENCHMARK"
service replank_archiver "$REPLANK_PASSWORD_ARCHIVER"

run --dbname postgres --set password="$REPLANK_PASSWORD_READER" <<'SQL'
create role replank_benchmark_reader login password :'password';
alter role replank_benchmark_reader set default_transaction_read_only = on;
grant pg_read_all_data, pg_monitor to replank_benchmark_reader;
grant connect on database replank_schema to replank_benchmark_reader;
SQL
