"""After dump and restore transaction ids mean nothing: what is retained is published again, and nothing is skipped."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from replank import outbox
from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings
from replank.testing.wait import eventually
from tests.common.outbox.events import put, put_many
from tests.common.outbox.recording import Log

FAST = RelaySettings(lease=1.5, checkpoint=0.05, page_rows=4, chunk_rows=10)


def _program(name: str) -> str:
    """One of Postgres' own programs: Debian keeps the server's off the path."""
    candidates = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(candidates[-1]) if candidates else None)
    assert found, f"{name} is missing: install the Postgres server programs"
    return found


@pytest.fixture(scope="module")
def other_cluster() -> Iterator[str]:
    """The DSN of a second, freshly initialised Postgres."""
    # initdb refuses to run as root, and the postgres account cannot see into root's folders.
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="replank-restore-"))
    if prefix:
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    try:
        _run([*prefix, _program("initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync"])
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        control = [*prefix, _program("pg_ctl"), "-D", str(data), "-w"]
        _run([*control, "-l", str(folder / "log"), "-o", options, "start"])
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder)


def _run(command: list[str]) -> None:
    ran = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd="/")
    assert ran.returncode == 0, f"{command}: {ran.stderr}"


async def _restore(dsn: str, cluster: str, tmp_path: Path) -> str:
    """Dump a database and restore it into another cluster; returns the copy's DSN."""
    name = "restored_" + dsn.rsplit("/", 1)[1]
    conn = await asyncpg.connect(cluster)
    await conn.execute(f'create database "{name}"')
    await conn.close()
    target = f"{cluster.rsplit('/', 1)[0]}/{name}"
    dump = str(tmp_path / "dump")
    await asyncio.to_thread(_run, [_program("pg_dump"), "-Fc", "-f", dump, dsn])
    await asyncio.to_thread(_run, [_program("pg_restore"), "--exit-on-error", "-d", target, dump])
    return target


async def _settled(db: Any) -> bool:
    (shard,) = (await outbox.status(db)).shards
    return shard.depth == 0 and not shard.replaying


async def test_what_is_retained_is_published_again_in_order_and_then_what_is_new(
    db: asyncpg.Pool, postgres_dsn: str, other_cluster: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()
    async with db.acquire() as conn:
        async with Relay(postgres_dsn, "unused:0", FAST, publisher_factory=log.publisher):
            published = await put_many(conn, "t", [f"key-{number % 5}" for number in range(30)])
            await eventually(lambda: log.ids() == published, "the old cluster publishes")
        # Transaction ids of the dump are far ahead of the new cluster's.
        for _ in range(2000):
            await conn.execute("select pg_current_xact_id()")
        waiting = [await put(conn, "t", "key-1") for _ in range(3)]
    copy = await _restore(postgres_dsn, other_cluster, tmp_path)
    log = Log()
    restored = await asyncpg.connect(copy)
    try:
        assert "restored" in {finding.code for finding in await outbox.verify(restored)}
        # Transaction ids that the new cluster is about to reach: they must not bring the dumped rows back then.
        await restored.execute(
            "update replank_outbox.event set xid = ((pg_current_xact_id()::text::bigint + 20 + id)::text)::xid8"
        )
        between = await put(restored, "t", "key-1")
        async with Relay(copy, "unused:0", FAST, publisher_factory=log.publisher):
            await eventually(lambda: _settled(restored), "everything retained is published again")
            assert log.ids() == [*published, *waiting, between]
            new = await put_many(restored, "t", ["key-1", "key-2"])
            await eventually(lambda: log.ids()[34:] == new, "new events are published, once")
            for _ in range(100):
                await restored.execute("select pg_current_xact_id()")
            assert await restored.fetchval("select max(xid) < pg_current_xact_id() from replank_outbox.event")
            last = await put(restored, "t", "key-1")
            await eventually(lambda: log.ids()[36:] == [last], "and only the new one follows")
        # The next relay finds the cluster it knows.
        async with Relay(copy, "unused:0", FAST, publisher_factory=log.publisher) as relay:
            await eventually(lambda: relay.healthy, "it is up")
            last = await put(restored, "t", "key-1")
            await eventually(lambda: log.ids()[37:] == [last], "and goes on")
    finally:
        await restored.close()
    assert caplog.text.count("was restored from another cluster") == 1


async def test_a_replay_that_is_interrupted_goes_on_where_it_stopped(
    db: asyncpg.Pool, postgres_dsn: str, other_cluster: str, tmp_path: Path
) -> None:
    async with db.acquire() as conn:
        ids = await put_many(conn, "t", [f"key-{number}" for number in range(40)])
    copy = await _restore(postgres_dsn, other_cluster, tmp_path)
    restored = await asyncpg.connect(copy)
    log = Log()
    try:
        async with Relay(copy, "unused:0", FAST, publisher_factory=log.publisher):
            await eventually(lambda: len(log.records) >= 4, "it has begun", interval=0.001)
        async with Relay(copy, "unused:0", FAST, publisher_factory=log.publisher):
            await eventually(lambda: _settled(restored), "it is through")
    finally:
        await restored.close()
    assert log.ids() == ids
