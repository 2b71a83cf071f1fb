"""A program that appends or relays events does not pay for telemetry that it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("opentelemetry.sdk", "structlog", "httpx", "urllib3", "aiokafka", "fastapi", "prometheus_client")


@pytest.mark.parametrize(
    ("module", "may"),
    [
        ("replank.telemetry", set()),
        ("replank.telemetry.semconv", set()),
        ("replank.telemetry.context", set()),
        ("replank.telemetry.template", set()),
        ("replank.telemetry.metrics", {"prometheus_client"}),
        ("replank.telemetry.jaeger", {"httpx"}),
    ],
)
def test_a_part_imports_only_what_it_needs(module: str, may: set[str]) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == may
