"""The service as operators meet it."""

from __future__ import annotations

import subprocess
import sys


def test_migrating_imports_nothing_that_only_serving_needs() -> None:
    command = "import replank_archiver.__main__, sys; print(*sorted(name.split('.')[0] for name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    imported = set(found.stdout.split())
    assert "asyncpg" in imported
    assert not imported & {"aiokafka", "fastapi", "faststream", "httpx", "minio", "starlette", "structlog", "uvicorn"}
