"""A comparison of everything: every record with its rows, then every row with its record.

The first walk goes over the key-value store in the order of its key, and finds what is missing, different or stale. The
second goes over the rows of each entity in the order of their primary key, and finds those that no record stands for.
What differs is looked at again (`settle`) before it counts.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TypeAlias

from replank.migrate.comparison.model import ComparisonSettings, Findings, Progress
from replank.migrate.comparison.settle import check
from replank.migrate.comparison.sides import Sides, opened
from replank.migrate.mapping import Mapping
from replank.migrate.throttle import Throttle
from replank.migrate.topics import Direction

Report: TypeAlias = Callable[[Progress, Findings], Awaitable[None]]
"""Called after every chunk with the progress so far and with what is new in it: of the keys that differed at first,
what became of them. Whoever stores both in one transaction can resume a run exactly: what was reported is not reported
again, and what was not will be."""


class Comparison:
    """A comparison of everything between two databases (DSNs) under one mapping.

    ::

        comparison = Comparison(source, target, mapping, report=store)
        result = await comparison.run()          # cancel the task to pause
        result = await comparison.run(stored)    # goes on where the stored progress ends

    ``settings`` is asked before every chunk, so that it may change meanwhile. Failures of a server are raised as they
    come (`replank.connection.POSTGRES_ERRORS`): run again from the last report. Nothing is written to either database.
    """

    def __init__(
        self,
        source: str,
        target: str,
        mapping: Mapping,
        *,
        report: Report,
        direction: Direction = "forward",
        settings: Callable[[], ComparisonSettings] = ComparisonSettings,
        throttle: Throttle | None = None,
    ) -> None:
        self._source = source
        self._target = target
        self._mapping = mapping
        self._report = report
        self._direction = direction
        self._settings = settings
        self._throttle = throttle

    async def run(self, progress: Progress | None = None) -> Progress:
        """Compare everything from ``progress`` on, or from the start; returns the final progress (stage ``done``)."""
        async with opened(self._source, self._target, self._mapping, self._direction) as sides:
            progress = progress or Progress(records_estimated=await sides.estimate())
            while progress.stage != "done":
                started = time.monotonic()
                settings = self._settings()
                step = self._records if progress.stage == "records" else self._rows
                if self._throttle is not None:
                    await self._throttle.admit()
                walked = await step(sides, progress, settings)
                if self._throttle is not None:
                    self._throttle.spent(settings.chunk_rows)
                findings = Findings()
                if len(walked.pending) >= settings.settle_keys or walked.stage == "done":
                    walked, findings = await self._settle(sides, walked, settings)
                progress = walked.model_copy(update={"seconds": round(walked.seconds + time.monotonic() - started, 3)})
                await self._report(progress, findings)
            return progress

    async def _records(self, sides: Sides, progress: Progress, settings: ComparisonSettings) -> Progress:
        keys, values = await sides.chunk(progress.after, rows=settings.chunk_rows, bytes_=settings.chunk_bytes)
        if not keys:
            return progress.model_copy(update={"stage": "rows", "after": None, "relation": None})
        counted = await sides.compare(keys, values)
        records = {
            name: progress.records.get(name, 0) + counted.records.get(name, 0)
            for name in {**progress.records, **counted.records}
        }
        rejected = await sides.rejected(keys) if counted.rejected else ()
        pending = _joined(progress.pending, (*counted.different, *rejected))
        return progress.model_copy(update={"after": keys[-1], "records": records, "pending": pending})

    async def _rows(self, sides: Sides, progress: Progress, settings: ComparisonSettings) -> Progress:
        relations = list(_relations(self._mapping))
        relation = progress.relation or relations[0]
        entity, _, child = relation.partition(".")
        rows = dict(progress.rows)
        if child:
            keys, after = await sides.orphans(entity, child, progress.after, settings.chunk_rows)
        else:
            keys = await sides.roots(entity, progress.after, settings.chunk_rows)
            after = keys[-1] if keys else None
            rows[entity] = rows.get(entity, 0) + len(keys)
        if after is None:
            following = next(islice(relations, relations.index(relation) + 1, None), None)
            stage = "rows" if following else "done"
            return progress.model_copy(update={"stage": stage, "relation": following, "after": None, "rows": rows})
        extra = await sides.without_record(keys)
        pending = _joined(progress.pending, extra)
        return progress.model_copy(update={"relation": relation, "after": after, "rows": rows, "pending": pending})

    async def _settle(
        self, sides: Sides, progress: Progress, settings: ComparisonSettings
    ) -> tuple[Progress, Findings]:
        findings = await check(sides, progress.pending, settings)
        mismatches = dict(progress.mismatches)
        for mismatch in findings.mismatches:
            mismatches[mismatch.kind] = mismatches.get(mismatch.kind, 0) + 1
        told = sum(progress.mismatches.values()) - progress.untold
        to_tell = findings.mismatches[: max(0, settings.details - told)]
        update = {
            "pending": (),
            "mismatches": mismatches,
            "unsettled": progress.unsettled + len(findings.unsettled),
            "untold": progress.untold + len(findings.mismatches) - len(to_tell),
        }
        return progress.model_copy(update=update), replace(findings, mismatches=to_tell)


def _relations(mapping: Mapping) -> Iterator[str]:
    for name, entity in mapping.entities.items():
        yield name
        yield from (f"{name}.{child}" for child in entity.children)


def _joined(pending: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*pending, *more}))
