"""What must be so before a migration may go on, judged from evidence. Pure: whoever calls has gathered it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from replank_schema.migration.model import (
    Compared,
    Condition,
    Leave,
    Mode,
    Phase,
    Readiness,
    Route,
    Settings,
    Standing,
    State,
    Tables,
)
from replank_schema.migration.report import ComparedReads, Facts, Report

#: A report of the work that is older than this (seconds) says nothing about now.
FRESH: Final = 10.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that conditions are judged by. ``report_age`` is in seconds, ``None`` where no work reports."""

    readiness: Sequence[Readiness] = ()
    settings: Settings = field(default_factory=Settings)
    unknown_databases: Sequence[str] = ()
    same_name: UUID | None = None
    """Another migration of the same name whose parts are in the databases."""
    facts: Facts = field(default_factory=Facts)
    report: Report = field(default_factory=Report)
    report_age: float | None = None
    phase_since: datetime | None = None
    routes: Sequence[Route] = ()
    comparison: Compared | None = None
    """Of everything, begun since it mattered and ended."""
    same_transaction: bool = False

    @property
    def compared_reads(self) -> ComparedReads:
        """Since the shadow reads began."""
        return self.report.reads.since(self.facts.reads_before)

    @property
    def works(self) -> bool:
        """Whether somebody does the work now, so that its report is about now."""
        return self.report_age is not None and self.report_age < FRESH


def conditions(to: Phase, evidence: Evidence) -> list[Condition]:
    """What must be so before a migration may enter a phase by itself or by being asked, met or not.

    What only the databases themselves can say at the moment of a start is not among them (`preflight`).
    """
    judge = _OF.get(to)
    return judge(evidence) if judge is not None else []


def before_retiring(evidence: Evidence, standing: Standing, tables: Tables, leave: Leave) -> list[Condition]:
    """What must be so before a migration that has ended is taken out of the databases for good.

    ``tables`` is what became of the tables where it was taken back. That each store is what it is taken for, the
    databases themselves say (`preflight`).
    """
    found = [_databases(evidence)]
    if standing.phase is Phase.COMPLETED:
        silent = evidence.facts.reverse_removed
        detail = "nothing flows back any more" if silent else "the tables still tell of their changes"
        ours = leave is not Leave.DROPPED
        told = f"the key-value table is left {leave}" if ours else "the key-value table is the application's, not ours"
        return [
            *found,
            Condition("silent", silent, detail, "wait; `work` tells how far it is"),
            Condition(
                "leave", ours, told, "retire it without dropping, and drop the table yourself when nobody asks it"
            ),
        ]
    kept = tables is Tables.KEEP
    detail = "tables were kept, closed" if kept else "its tables were dropped, and everything else with them"
    return [*found, _name_free(evidence), Condition("left", kept, detail, "nothing: its name is free as it is")]


def _before_capturing(evidence: Evidence) -> list[Condition]:
    return [
        *(_checked(line) for line in evidence.readiness),
        _databases(evidence),
        _name_free(evidence),
    ]


def _databases(evidence: Evidence) -> Condition:
    unknown = evidence.unknown_databases
    return Condition(
        "databases",
        not unknown,
        f"not configured: {', '.join(unknown)}" if unknown else "configured",
        "name them in REPLANK_SCHEMA_DATABASES, or plan with names that are there",
    )


def _name_free(evidence: Evidence) -> Condition:
    return Condition(
        "name_free",
        evidence.same_name is None,
        f"migration {evidence.same_name} of the same name is under way" if evidence.same_name else "nobody's",
        "let the other one end, or give this one another name",
    )


def _checked(line: Readiness) -> Condition:
    return Condition(
        line.item, line.state is State.MET, line.detail or str(line.state), _CHECKLIST_FIX.get(line.item, "")
    )


_CHECKLIST_FIX: Final[Mapping[str, str]] = {
    "access": "grant the owner the relation owner on the migration, in auth-cache",
    "baseline": "let benchmark record a baseline of the source: name the source among its targets",
    "archive": "let archiver keep the plan: see whether it runs",
}


def _before_backfilling(evidence: Evidence) -> list[Condition]:
    found = [
        Condition(
            "installed",
            evidence.facts.installed,
            "capture and tables are there" if evidence.facts.installed else "capture and tables are not all there yet",
            "wait; `work` tells how far it is, and what it meets",
        )
    ]
    return [*found, *_captured(evidence)]


def _captured(evidence: Evidence) -> list[Condition]:
    """That what is written goes on to the other store: nothing to say of triggers that do it themselves."""
    if evidence.same_transaction:
        return []
    lag = evidence.report.lag if evidence.works else None
    return [
        Condition(
            "applying",
            lag is not None,
            f"{lag.events} changes behind" if lag is not None else "nobody has reported the applier's lag lately",
            "see that a schema service runs and reaches Kafka and both databases",
        )
    ]


def _before_verifying(evidence: Evidence) -> list[Condition]:
    backfill = evidence.facts.backfill
    return [
        Condition(
            "backfill_done",
            backfill is not None,
            f"{backfill.rows} records read, {backfill.rejected} rejected" if backfill else "it is not done",
            "wait; `progress` tells when it will be",
        )
    ]


def _before_shadow_reads(evidence: Evidence) -> list[Condition]:
    least = evidence.settings.min_consistency
    comparison = evidence.comparison
    return [
        _compared(comparison),
        Condition(
            "consistency",
            comparison is not None and comparison.percent >= least,
            f"{comparison.percent:.4g} per cent agree, {least:g} are asked for" if comparison else "nothing compared",
            "look at the mismatches and repair them, then compare again",
        ),
        _indexes(evidence),
    ]


def _before_fallback(evidence: Evidence) -> list[Condition]:
    reads, settings = evidence.compared_reads, evidence.settings
    return [
        Condition(
            "compared_reads",
            reads.compared >= settings.min_compared_reads,
            f"{reads.compared} of {settings.min_compared_reads} reads compared",
            "let the application read through its ReadRouter, or lower min_compared_reads",
        ),
        Condition(
            "read_mismatches",
            reads.mismatched + reads.errors <= settings.max_read_mismatches,
            f"{reads.mismatched} mismatches and {reads.errors} errors, {settings.max_read_mismatches} are borne",
            "find out why the tables answer otherwise, then go back to verifying and come again",
        ),
    ]


def _before_new_only(evidence: Evidence) -> list[Condition]:
    comparison, report = evidence.comparison, evidence.report
    # A count from before the backfill was done would let records go that nobody has settled.
    rejects = report.rejects if evidence.works and report.seen_in == evidence.phase_since else None
    return [
        _compared(comparison),
        Condition(
            "all_alike",
            comparison is not None and comparison.different == comparison.unsettled == 0,
            f"{comparison.different} records differ, {comparison.unsettled} did not settle"
            if comparison
            else "nothing compared",
            "repair the mismatches, then compare again",
        ),
        Condition(
            "rejects_settled",
            rejects is not None and rejects.open == 0,
            f"{rejects.open} rejected records are neither mended nor accepted" if rejects else "nobody counted them",
            "mend the records and retry, or accept by name that they are lost",
        ),
        _references_hold(evidence),
        _reads_moved(evidence, Mode.NEW_WITH_FALLBACK, Mode.NEW),
        *_kept_up(evidence),
    ]


def _references_hold(evidence: Evidence) -> Condition:
    """Constraints are validated after the writes have moved: then nobody can mend a record where it came from."""
    violated = evidence.report.violated if evidence.works else None
    if violated:
        detail = "; ".join(found.told for found in violated)
        fix = "mend these records in the key-value store, or delete them: what is written there flows over by itself"
    else:
        looked = violated is not None
        detail = "every reference leads to a row" if looked else "nobody has looked through the rows yet"
        fix = "wait until they are looked through; paused, it has to be resumed"
    return Condition("references_hold", violated == (), detail, fix)


def _reads_moved(evidence: Evidence, *modes: Mode) -> Condition:
    behind = [route.endpoint for route in evidence.routes if route.mode not in modes or route.rollout < 100]
    return Condition(
        "reads_moved",
        not behind,
        f"not yet wholly on the tables: {', '.join(behind)}" if behind else "all endpoints read the tables",
        f"set these endpoints to {modes[0]} at 100 per cent",
    )


def _before_completed(evidence: Evidence) -> list[Condition]:
    return [
        _indexes(evidence),
        _constraints(evidence),
        # From then on the key-value store hears of nothing: no read may ask it, nor fall back to it.
        _reads_moved(evidence, Mode.NEW),
        *_kept_up(evidence),
    ]


def _indexes(evidence: Evidence) -> Condition:
    unindexed = evidence.report.unindexed if evidence.works else ()
    if evidence.facts.indexes or not unindexed:
        return _built("indexes", evidence.facts.indexes, evidence)
    fix = (
        "mend or delete these records in the key-value store: the index is tried again by itself; "
        "where they are right, plan anew with a mapping without it"
    )
    return Condition("indexes", False, "; ".join(found.told for found in unindexed), fix)


def _constraints(evidence: Evidence) -> Condition:
    violated = evidence.report.violated if evidence.works else None
    if evidence.facts.constraints or not violated:
        return _built("constraints", evidence.facts.constraints, evidence)
    detail = "; ".join(found.told for found in violated)
    fix = "mend or delete these rows in the tables, which take the writes now: validation is tried again by itself"
    return Condition("constraints", False, detail, fix)


def _compared(comparison: Compared | None) -> Condition:
    return Condition(
        "compared",
        comparison is not None,
        f"{comparison.compared} records compared" if comparison else "not everything was compared since",
        "wait for the comparison, or ask for one",
    )


def _built(name: str, done: bool, evidence: Evidence) -> Condition:
    failed = [part.detail for part in evidence.report.parts if part.name == name and part.state == "failed"]
    if done or not failed or not evidence.works:
        detail = "built and valid" if done else "not all built and valid"
        return Condition(name, done, detail, "wait; `work` tells how far it is")
    return Condition(name, False, failed[0], "take what it names out of the way: it is tried again by itself")


def _kept_up(evidence: Evidence) -> list[Condition]:
    if evidence.same_transaction:
        return []
    lag, most = evidence.report.lag if evidence.works else None, evidence.settings.max_apply_lag
    return [
        Condition(
            "lag",
            lag is not None and lag.seconds < most,
            f"{lag.seconds:.2f} s behind, {most:g} are borne" if lag else "nobody has reported the lag lately",
            "wait until the applier has caught up; if it does not, slow the writers or add partitions",
        )
    ]


_OF: Final[Mapping[Phase, Callable[[Evidence], list[Condition]]]] = {
    Phase.CAPTURING: _before_capturing,
    Phase.BACKFILLING: _before_backfilling,
    Phase.VERIFYING: _before_verifying,
    Phase.SHADOW_READS: _before_shadow_reads,
    Phase.NEW_WITH_FALLBACK: _before_fallback,
    Phase.NEW_ONLY: _before_new_only,
    Phase.COMPLETED: _before_completed,
}
