"""The costs of the vault that do not depend on how fast the machine is, held against `bench/baseline.json`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import bench
from bench import postgres
from bench.vault.counters import costs

BASELINE = json.loads((Path(bench.__file__).parent / "baseline.json").read_text())["vault"]


async def test_a_request_costs_no_more_than_the_baseline(
    postgres_server: str, s3_server: tuple[str, str, str], kafka: str
) -> None:
    async with postgres.server(postgres_server) as server:
        found = await costs(server, s3_server, kafka)
    measured = {f"{kind}_{what}": count for kind, cost in found.items() for what, count in asdict(cost).items()}
    assert measured.keys() == BASELINE.keys()
    over = {name: value for name, value in measured.items() if value > BASELINE[name]}
    assert not over, f"over the baseline {BASELINE}: {over}"
