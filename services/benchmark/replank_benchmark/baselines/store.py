"""All SQL about baselines in the service's own database, on the caller's connection."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Final
from uuid import UUID

from replank.connection import Connection
from replank.contracts.schema import Source
from replank_benchmark.baselines.model import Baseline, Capture, RelationFigures

_INSERT: Final = """
    insert into baseline (
        id, migration_id, target, source, status, reason, rows_estimated, bytes_total, plan_cost, relations, explain,
        recorded_at
    )
    values ($1, $2, $3, $4::jsonb, $5, $6, $7, $8, $9, $10::jsonb, $11::jsonb, $12)
"""
# Ids are UUIDv7: the highest is the latest.
_LATEST: Final = """
    select id, migration_id, source, reason, relations, explain, recorded_at
    from baseline where migration_id = $1 order by id desc limit 1
"""


async def insert(conn: Connection, baseline: Baseline) -> None:
    capture = baseline.capture
    await conn.execute(
        _INSERT,
        baseline.id,
        baseline.migration_id,
        baseline.source.target,
        baseline.source.model_dump_json(exclude_none=True),
        baseline.status,
        baseline.reason,
        capture.rows_estimated if capture else None,
        capture.bytes_total if capture else None,
        capture.plan_cost if capture else None,
        json.dumps([asdict(relation) for relation in capture.relations]) if capture else None,
        json.dumps(capture.explain) if capture else None,
        baseline.recorded_at,
    )


async def latest(conn: Connection, migration_id: UUID) -> Baseline | None:
    """The migration's newest baseline."""
    row = await conn.fetchrow(_LATEST, migration_id)
    if row is None:
        return None
    capture = None
    if row["explain"] is not None:
        relations = [RelationFigures(**relation) for relation in json.loads(row["relations"])]
        capture = Capture(explain=json.loads(row["explain"]), relations=relations)
    return Baseline(
        id=row["id"],
        migration_id=row["migration_id"],
        source=Source.model_validate_json(row["source"]),
        capture=capture,
        reason=row["reason"],
        recorded_at=row["recorded_at"],
    )
