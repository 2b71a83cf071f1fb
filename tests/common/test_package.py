"""The library alone: its wheel, in an environment and a program that know nothing of this repository."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord

import replank

_COMMON = Path(replank.__file__).parents[1]
_REPOSITORY = _COMMON.parents[1]
_LIGHT = {"replank", "asyncpg", "opentelemetry-api", "pydantic", "uuid-utils"}
_HEAVY = {"aiokafka", "fastapi", "faststream", "httpx", "minio", "opentelemetry-sdk", "prometheus-client", "structlog"}

_APPEND = """
import asyncio, sys
from uuid import UUID

import asyncpg
from replank import Event, outbox

class OrderPaid(Event, type="shop.order.paid.v1", topic=sys.argv[2]):
    order_id: UUID

async def main():
    conn = await asyncpg.connect(sys.argv[1])
    await outbox.install(conn)
    await conn.execute("create table orders (id uuid primary key, state text)")
    async with conn.transaction():
        order = await conn.fetchval("insert into orders values (gen_random_uuid(), 'paid') returning id")
        print(await outbox.append(conn, OrderPaid(order_id=order), key=order))
    await conn.close()

asyncio.run(main())
"""
_PUBLISH = """
import asyncio, signal, sys
from replank.outbox.relay import Relay

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await Relay(sys.argv[1], sys.argv[2]).run(stop)

asyncio.run(main())
"""


async def _run(*command: str | Path, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await process.communicate()
    assert process.returncode == 0, f"{command}:\n{error.decode()}"
    return out.decode()


async def _next_record(kafka: str, topic: str) -> ConsumerRecord:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    try:
        return await asyncio.wait_for(consumer.getone(), 30)
    finally:
        await consumer.stop()


@pytest.mark.timeout(300)
async def test_the_wheel_alone_is_light_and_its_relay_extra_publishes(
    tmp_path: Path, postgres_dsn: str, kafka: str, topic: str
) -> None:
    uv = Path(sys.executable).with_name("uv")
    # The versions that this repository is tested with; the hashes are of no use to a constraint.
    lock = (_REPOSITORY / "requirements.lock").read_text()
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("".join(f"{pin}\n" for pin in re.findall(r"^[a-z0-9][\w.-]*==[\w.]+", lock, re.MULTILINE)))
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir")
    await _run(*build, tmp_path, _COMMON, cwd=tmp_path)
    wheel = tmp_path / f"replank-{version('replank')}-py3-none-any.whl"
    await _run(uv, "venv", "--quiet", "--python", sys.executable, "alone", cwd=tmp_path)
    python = tmp_path / "alone" / "bin" / "python"
    install = (uv, "pip", "install", "--quiet", "--python", python, "--constraint", constraints)

    await _run(*install, wheel, cwd=tmp_path)
    listed = await _run(uv, "pip", "list", "--quiet", "--python", python, "--format", "json", cwd=tmp_path)
    installed = {package["name"] for package in json.loads(listed)}
    assert installed >= _LIGHT
    assert not installed & _HEAVY
    event_id = (await _run(python, "-I", "-c", _APPEND, postgres_dsn, topic, cwd=tmp_path)).strip()

    await _run(*install, f"replank[relay] @ {wheel.as_uri()}", cwd=tmp_path)
    relay = await asyncio.create_subprocess_exec(python, "-I", "-c", _PUBLISH, postgres_dsn, kafka, cwd=tmp_path)
    try:
        record = await _next_record(kafka, topic)
    finally:
        relay.terminate()
        assert await asyncio.wait_for(relay.wait(), 30) == 0
    headers = dict(record.headers)
    assert headers["ce_id"].decode() == event_id
    assert headers["ce_type"] == b"shop.order.paid.v1"
    assert record.value == b'{"order_id":"%s"}' % record.key
