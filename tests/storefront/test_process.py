"""The shop's commands as operators meet them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import asyncpg

from replank.testing import servers
from replank.testing.processes import Process
from replank_storefront.generate import Dirt


def test_seeding_and_migrating_import_nothing_that_only_serving_needs() -> None:
    command = (
        "import replank_storefront.__main__, replank_storefront.seed, sys;"
        " print(*sorted(name.split('.')[0] for name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    imported = set(found.stdout.split())
    assert "asyncpg" in imported
    assert not imported & {"aiokafka", "fastapi", "faststream", "httpx", "minio", "starlette", "structlog", "uvicorn"}


async def test_a_new_shop_is_migrated_and_seeded_once(postgres_server: str, kafka: str, tmp_path: Path) -> None:
    async with servers.database(postgres_server) as kv, servers.database(postgres_server) as tables:
        given = {
            "DSN": kv,
            "TABLES_DSN": tables,
            "KAFKA": kafka,
            "AUTH_ISSUER": "nobody",
            "AUTH_AUDIENCE": "nobody",
            "AUTH_JWKS": "nothing",
        }
        environment = {f"REPLANK_STOREFRONT_{name}": value for name, value in given.items()}

        async def run(*arguments: str) -> tuple[int, str]:
            async with Process("replank_storefront", *arguments, env=environment) as process:
                return await process.exit_code(within=60), process.output

        for phase in ("pre", "pre", "post"):
            code, said = await run("migrate", phase)
            assert code == 0, said
        planted = tmp_path / "planted.json"
        code, said = await run("seed", "--records", "2000", "--planted", str(planted))
        assert code == 0, said
        summary = json.loads(said)
        keys = json.loads(planted.read_text())
        assert summary["planted"] == {kind: len(found) for kind, found in keys.items()}
        assert set(keys) == {kind.label for kind in Dirt}
        code, said = await run("seed", "--records", "2000")
        assert code == 1
        assert "not empty" in said
        conn = await asyncpg.connect(kv)
        everything = [key for found in keys.values() for key in found]
        assert await conn.fetchval("select count(*) from kv_store") == summary["records"] == 2000
        assert await conn.fetchval("select count(*) from kv_store where key = any($1)", everything) == len(everything)
        await conn.close()
        conn = await asyncpg.connect(tables)
        assert await conn.fetchval("select count(*) from pg_extension where extname = 'pg_trgm'") == 1
        await conn.close()
