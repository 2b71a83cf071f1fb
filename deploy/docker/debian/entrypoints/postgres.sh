#!/bin/sh
# As the official image: on an empty volume make a cluster and run /docker-entrypoint-initdb.d, then serve.
set -eu
PATH=/usr/lib/postgresql/15/bin:$PATH
export PGDATA=/var/lib/postgresql/data/cluster
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    install -d -o postgres -g postgres -m 700 "$PGDATA"
    secret=$(mktemp)
    printf '%s' "$POSTGRES_PASSWORD" >"$secret"
    chown postgres "$secret"
    as_postgres initdb --username=postgres --pwfile="$secret" --auth-local=trust --auth-host=scram-sha-256 >/dev/null
    rm "$secret"
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    shift_first=$1; shift
    as_postgres pg_ctl --wait --silent -o "-c listen_addresses='' $*" start
    for script in /docker-entrypoint-initdb.d/*.sh; do
        as_postgres sh "$script"
    done
    as_postgres pg_ctl --wait --silent --mode=fast stop
    set -- "$shift_first" "$@"
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups "$@" -c listen_addresses='*'
