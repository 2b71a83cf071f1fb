"""Debezium: the Postgres connector and its outbox event router in Kafka Connect, standalone.

Tuned for this load, as `docs/reference/benchmarks.md` says: with its default poll interval of 500 ms every event would
be half a second late, and beating that would be a win over a default setting.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import asyncpg
from uuid_utils.compat import uuid7

from bench.outbox.subjects import Append, Target
from bench.outbox.workload import EVENT_TYPE, SOURCE, OrderPlaced, Row
from bench.procs import Command, ProcessFailed

_POM: Final = Path(__file__).parents[2] / "debezium" / "pom.xml"
_HEAP: Final = "-Xmx1g"


def subject(name: str) -> Debezium:
    return Debezium(name)


class Debezium:
    """Reads the write-ahead log, so it polls no table; the service inserts into a table that it never cleans here."""

    ordered = True
    traces = False
    event_tables = ("public", "outbox")

    def __init__(self, name: str) -> None:
        self.name = name
        self._work = tempfile.TemporaryDirectory(prefix="bench-debezium-")

    async def prepare(self, target: Target) -> None:
        await asyncio.to_thread(installed)
        connection = await asyncpg.connect(target.dsn)
        try:
            await connection.execute(_SCHEMA)
            # Its backlog is what the slot holds back, so the slot must be older than the events.
            await connection.execute("select pg_create_logical_replication_slot($1, 'pgoutput')", _slot(target))
        finally:
            await connection.close()

    def append(self, target: Target) -> Append:
        async def append(connection: asyncpg.Connection, rows: Sequence[Row]) -> None:
            await connection.execute(
                _INSERT,
                [str(uuid7()) for _ in rows],
                target.topic,
                [row.key for row in rows],
                EVENT_TYPE,
                SOURCE,
                [row.traceparent for row in rows],
                [OrderPlaced.of(row).to_value() for row in rows],
            )

        return append

    def relay(self, target: Target) -> Command:
        folder = Path(tempfile.mkdtemp(dir=self._work.name))
        worker, connector = folder / "worker.properties", folder / "connector.properties"
        worker.write_text(_properties(_worker(target, folder)))
        connector.write_text(_properties(_connector(target)))
        return Command(
            name=self.name,
            args=(
                "java",
                _HEAP,
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                "-Dorg.slf4j.simpleLogger.log.io.debezium.pipeline.ChangeEventSourceCoordinator=info",
                "-cp",
                f"{installed()}/*",
                "org.apache.kafka.connect.cli.ConnectStandalone",
                str(worker),
                str(connector),
            ),
            ready="Starting streaming",
        )


def installed() -> Path:
    """The folder with the jars: filled by Maven when it is not there yet, one a version, kept for the next run.

    Raises `ProcessFailed` when Maven cannot fetch them.
    """
    versions = dict(re.findall(r"<(debezium|connect|slf4j)\.version>([^<]+)<", _POM.read_text()))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replank"
    folder = cache / "-".join(["debezium", *(versions[part] for part in ("debezium", "connect", "slf4j"))])
    if folder.is_dir():
        return folder
    print("debezium: fetching the connector and Kafka Connect with Maven (once a version) …", file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        jars = Path(scratch) / "jars"
        fetched = subprocess.run(
            ["mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={jars}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if fetched.returncode != 0:
            raise ProcessFailed(f"Maven could not fetch what {_POM} asks for:\n{fetched.stdout[-2_000:]}")
        jars.rename(folder)
    return folder


def _slot(target: Target) -> str:
    # Slots belong to the server: the name of the database tells those of two runs apart.
    return f"bench_{_parameters(target.dsn)['database']}"


def _parameters(dsn: str) -> dict[str, str]:
    parts = urlsplit(dsn)
    return {
        "host": parts.hostname or "127.0.0.1",
        "port": str(parts.port or 5432),
        "user": unquote(parts.username or "postgres"),
        "password": unquote(parts.password or ""),
        "database": parts.path.lstrip("/"),
    }


def _worker(target: Target, folder: Path) -> dict[str, str]:
    return {
        "bootstrap.servers": target.kafka,
        "listeners": f"http://127.0.0.1:{_free_port()}",
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
        "header.converter": "org.apache.kafka.connect.storage.StringConverter",
        "offset.storage.file.filename": str(folder / "offsets"),
        "plugin.discovery": "only_scan",
        "producer.acks": "all",
    }


def _connector(target: Target) -> dict[str, str]:
    database = _parameters(target.dsn)
    return {
        "name": "outbox",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "database.hostname": database["host"],
        "database.port": database["port"],
        "database.user": database["user"],
        "database.password": database["password"],
        "database.dbname": database["database"],
        "topic.prefix": "bench",
        "plugin.name": "pgoutput",
        "slot.name": _slot(target),
        "publication.name": "bench_outbox",
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "table.include.list": "public.outbox",
        "tombstones.on.delete": "false",
        "poll.interval.ms": "10",
        "max.batch.size": "8192",
        "max.queue.size": "32768",
        "transforms": "outbox",
        "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
        "transforms.outbox.table.field.event.key": "aggregateid",
        "transforms.outbox.route.topic.replacement": "${routedByValue}",
        "transforms.outbox.table.fields.additional.placement": (
            "type:header:ce_type,source:header:ce_source,traceparent:header:traceparent"
        ),
    }


def _properties(settings: dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_SCHEMA = """
create table outbox (
    id uuid primary key,
    aggregatetype text not null,
    aggregateid text not null,
    type text not null,
    source text not null,
    traceparent text,
    payload bytea
);
create publication bench_outbox for table outbox with (publish = 'insert');
"""

_INSERT = """
insert into outbox (id, aggregatetype, aggregateid, type, source, traceparent, payload)
select id, $2, aggregateid, $4, $5, traceparent, payload
  from unnest($1::uuid[], $3::text[], $6::text[], $7::bytea[]) as row (id, aggregateid, traceparent, payload)
"""
