"""The phases of a migration: whatever is asked, in whatever order, only what is allowed happens."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replank.migrate.ddl import Violation
from replank.migrate.tables import Constraint
from replank_schema.migration import machine, violations
from replank_schema.migration.conditions import Evidence, before_retiring, conditions
from replank_schema.migration.machine import WAYPOINTS, Command, TransitionRefused
from replank_schema.migration.model import (
    FORWARD,
    OVER,
    Compared,
    Item,
    Leave,
    Mode,
    Phase,
    Readiness,
    Route,
    Settings,
    Standing,
    State,
    Tables,
    unmet,
)
from replank_schema.migration.parts import CARRIERS, PAUSABLE, Part, needed
from replank_schema.migration.report import (
    BackfillDone,
    ComparedReads,
    Facts,
    Lag,
    PartReport,
    Rejects,
    Report,
    Violated,
)

#: Written out by hand, as the documentation shows it: from where one may get to where in one step.
ALLOWED: Final[dict[Phase, set[Phase]]] = {
    Phase.PLANNED: {Phase.CAPTURING, Phase.CANCELLED},
    Phase.CAPTURING: {Phase.BACKFILLING, Phase.ROLLING_BACK},
    Phase.BACKFILLING: {Phase.VERIFYING, Phase.ROLLING_BACK},
    Phase.VERIFYING: {Phase.SHADOW_READS, Phase.ROLLING_BACK},
    Phase.SHADOW_READS: {Phase.NEW_WITH_FALLBACK, Phase.ROLLING_BACK},
    Phase.NEW_WITH_FALLBACK: {Phase.NEW_ONLY, Phase.ROLLING_BACK},
    Phase.NEW_ONLY: {Phase.COMPLETED, Phase.ROLLING_BACK},
    Phase.COMPLETED: {Phase.ROLLING_BACK, Phase.RETIRING},
    Phase.ROLLING_BACK: {*WAYPOINTS, Phase.ROLLED_BACK, Phase.CANCELLED},
    Phase.ROLLED_BACK: {Phase.CAPTURING, Phase.RETIRING},
    Phase.CANCELLED: {Phase.RETIRING},
    Phase.RETIRING: {Phase.RETIRED},
    Phase.RETIRED: set(),
}
NOW: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

steps = st.one_of(
    st.tuples(st.sampled_from(list(Command)), st.none() | st.sampled_from(list(Phase))),
    st.sampled_from([("arrive", None), ("give up", None)]),
)


def taken(standing: Standing, step: tuple[str, Phase | None]) -> Standing:
    name, to = step
    match name:
        case "arrive":
            return machine.arrive(standing)
        case "give up":
            return machine.give_up(standing)
        case _:
            command = Command(name)
            return machine.ask(standing, command, to=to if command is Command.ROLLBACK else None)


def attempted(standing: Standing, step: tuple[str, Phase | None]) -> Standing | TransitionRefused:
    try:
        return taken(standing, step)
    except TransitionRefused as refusal:
        return refusal


@given(st.lists(steps, max_size=60))
def test_random_asks_lead_only_along_the_arrows_and_every_refusal_says_why_and_what_to_do(
    asked: list[tuple[str, Phase | None]],
) -> None:
    standing = Standing()
    for step in asked:
        after = attempted(standing, step)
        if isinstance(after, TransitionRefused):
            assert after.conditions
            assert all(not condition.met and condition.name and condition.detail for condition in after.conditions)
            assert step[0] in ("arrive", "give up") or after.fix
            continue
        assert after.phase is standing.phase or after.phase in ALLOWED[standing.phase], (standing, step, after)
        assert (after.phase in (Phase.ROLLING_BACK, Phase.RETIRING)) <= (after.moving_to is not None)
        if after.moving_to is not None:
            assert after.moving_to in ALLOWED[after.phase]
        assert not after.paused or after.phase in FORWARD[1:-1]
        assert after.run - standing.run == (step[0] == Command.START)
        standing = after


@pytest.mark.parametrize("phase", FORWARD)
def test_every_phase_can_be_cancelled(phase: Phase) -> None:
    after = machine.ask(Standing(phase), Command.CANCEL)
    assert after.phase is Phase.CANCELLED or machine.arrive(after).phase is Phase.CANCELLED


@given(st.lists(steps, max_size=40))
def test_from_everywhere_but_a_retirement_there_is_a_way_back_to_where_nothing_is_left(
    asked: list[tuple[str, Phase | None]],
) -> None:
    standing = Standing()
    for step in asked:
        after = attempted(standing, step)
        standing = after if isinstance(after, Standing) else standing
    if standing.phase in (Phase.PLANNED, Phase.CANCELLED, Phase.ROLLED_BACK, *OVER):
        return
    if standing.phase is not Phase.ROLLING_BACK or standing.moving_to in WAYPOINTS:
        standing = machine.ask(standing, Command.ROLLBACK)
    assert machine.arrive(standing).phase in (Phase.ROLLED_BACK, Phase.CANCELLED)


def reported(**fields: object) -> Report:
    known = Report(
        lag=Lag(events=0, seconds=0.0),
        rejects=Rejects(open=0, accepted=0),
        violated=(),
        reads=ComparedReads(compared=1000),
    )
    return known.model_copy(update=fields)


DANGLING = Violated(
    constraint="orders_client_id_fkey",
    table="orders",
    columns=("client_id",),
    refers_to="clients",
    rows=2,
    counted_all=True,
    keys=("order:1", "order:2"),
)


def met() -> Evidence:
    """Everything is as well as it can be."""
    return Evidence(
        readiness=[Readiness(item, State.MET, None, uuid4(), NOW) for item in Item],
        settings=Settings(),
        facts=Facts(
            installed=True,
            backfill=BackfillDone(rows=10, filled=10, rejected=0, seconds=1.0),
            compare_since=NOW,
            indexes=True,
            constraints=True,
        ),
        report=reported(),
        report_age=0.5,
        comparison=Compared(10, 0, 0, 100.0, NOW),
        routes=[Route("orders.list", Mode.NEW, 100.0)],
    )


def changed(**fields: object) -> Evidence:
    return replace(met(), **fields)  # type: ignore[arg-type]


def reads(**counted: int) -> Evidence:
    return changed(report=reported(reads=ComparedReads(**counted)))


@pytest.mark.parametrize("phase", FORWARD[1:])
def test_a_migration_of_which_all_is_well_may_go_all_the_way(phase: Phase) -> None:
    assert unmet(conditions(phase, met())) == []


@pytest.mark.parametrize(
    ("phase", "evidence", "named"),
    [
        (Phase.CAPTURING, changed(readiness=[Readiness(Item.ACCESS, State.MISSING, "gone", None, NOW)]), {"access"}),
        (Phase.CAPTURING, changed(unknown_databases=["shop"]), {"databases"}),
        (Phase.CAPTURING, changed(same_name=uuid4()), {"name_free"}),
        (Phase.BACKFILLING, changed(facts=Facts()), {"installed"}),
        (Phase.BACKFILLING, changed(report_age=60.0), {"applying"}),
        (Phase.VERIFYING, changed(facts=Facts(installed=True)), {"backfill_done"}),
        (Phase.SHADOW_READS, changed(comparison=None), {"compared", "consistency"}),
        (Phase.SHADOW_READS, changed(comparison=Compared(1000, 2, 0, 99.8, NOW)), {"consistency"}),
        (Phase.SHADOW_READS, changed(facts=Facts()), {"indexes"}),
        (Phase.NEW_WITH_FALLBACK, changed(report=reported(reads=ComparedReads(compared=999))), {"compared_reads"}),
        (
            Phase.NEW_WITH_FALLBACK,
            changed(report=reported(reads=ComparedReads(compared=5000, mismatched=1))),
            {"read_mismatches"},
        ),
        (
            Phase.NEW_WITH_FALLBACK,
            changed(report=reported(reads=ComparedReads(compared=5000, errors=1))),
            {"read_mismatches"},
        ),
        (Phase.NEW_ONLY, changed(comparison=Compared(1000, 1, 0, 99.9, NOW)), {"all_alike"}),
        (Phase.NEW_ONLY, changed(comparison=Compared(1000, 0, 1, 100.0, NOW)), {"all_alike"}),
        (Phase.NEW_ONLY, changed(routes=[Route("a", Mode.COMPARE, 100.0)]), {"reads_moved"}),
        (Phase.NEW_ONLY, changed(routes=[Route("a", Mode.NEW_WITH_FALLBACK, 99.0)]), {"reads_moved"}),
        (Phase.NEW_ONLY, changed(report_age=None), {"rejects_settled", "references_hold", "lag"}),
        (Phase.NEW_ONLY, changed(phase_since=NOW), {"rejects_settled"}),
        (Phase.NEW_ONLY, changed(report=reported(violated=None)), {"references_hold"}),
        (Phase.NEW_ONLY, changed(report=reported(violated=(DANGLING,))), {"references_hold"}),
        (
            Phase.NEW_ONLY,
            changed(report=reported(lag=Lag(events=9, seconds=1.5), rejects=Rejects(open=1, accepted=3))),
            {"rejects_settled", "lag"},
        ),
        (Phase.COMPLETED, changed(facts=Facts(indexes=True)), {"constraints"}),
        (Phase.COMPLETED, changed(routes=[Route("a", Mode.NEW_WITH_FALLBACK, 100.0)]), {"reads_moved"}),
    ],
)
def test_what_is_not_met_is_named_with_what_to_do(phase: Phase, evidence: Evidence, named: set[str]) -> None:
    failed = unmet(conditions(phase, evidence))
    assert {condition.name for condition in failed} == named
    assert all(condition.detail and condition.fix for condition in failed)


def test_rows_that_refer_to_nothing_are_told_by_constraint_with_where_to_mend_them() -> None:
    told = "2 rows of orders whose client_id is in no row of clients (orders_client_id_fkey), such as order:1, order:2"
    before = changed(report=reported(violated=(DANGLING,)))
    (condition,) = unmet(conditions(Phase.NEW_ONLY, before))
    assert condition.detail == told
    assert "in the key-value store" in condition.fix
    after = replace(before, facts=Facts(indexes=True))
    (condition,) = unmet(conditions(Phase.COMPLETED, after))
    assert condition.detail == told
    assert "in the tables" in condition.fix, "the key-value store takes no writes any more"


def test_a_unique_index_that_rows_are_in_the_way_of_is_told_with_where_to_mend_them() -> None:
    alike = DANGLING.model_copy(update={"constraint": "orders_once", "refers_to": None, "alike": True})
    failing = replace(met(), facts=Facts(), report=reported(unindexed=(alike,)))
    (condition,) = [one for one in unmet(conditions(Phase.SHADOW_READS, failing)) if one.name == "indexes"]
    told = "2 rows of orders that share their client_id with others (orders_once), such as order:1, order:2"
    assert condition.detail == told
    assert "in the key-value store" in condition.fix


def test_a_part_that_fails_is_told_in_the_condition_that_waits_for_it() -> None:
    part = PartReport(name="indexes", state="failed", detail="the index i of t cannot be built", since=NOW)
    failing = replace(met(), facts=Facts(), report=reported(parts=(part,)))
    (condition,) = [one for one in unmet(conditions(Phase.SHADOW_READS, failing)) if one.name == "indexes"]
    assert condition.detail == part.detail


@pytest.mark.parametrize(
    ("phase", "evidence", "tables", "leave", "named"),
    [
        (Phase.COMPLETED, changed(facts=Facts(reverse_removed=True)), Tables.KEEP, Leave.CLOSED, set()),
        (Phase.COMPLETED, changed(facts=Facts(reverse_removed=True)), Tables.KEEP, Leave.OPEN, set()),
        (Phase.COMPLETED, changed(facts=Facts(reverse_removed=True)), Tables.KEEP, Leave.DROPPED, {"leave"}),
        (Phase.COMPLETED, changed(facts=Facts()), Tables.KEEP, Leave.CLOSED, {"silent"}),
        (Phase.ROLLED_BACK, met(), Tables.KEEP, Leave.DROPPED, set()),
        (Phase.CANCELLED, met(), Tables.DROP, Leave.CLOSED, {"left"}),
        (Phase.ROLLED_BACK, changed(same_name=uuid4()), Tables.KEEP, Leave.CLOSED, {"name_free"}),
        (Phase.ROLLED_BACK, changed(unknown_databases=["shop"]), Tables.KEEP, Leave.CLOSED, {"databases"}),
    ],
)
def test_what_keeps_a_migration_from_being_retired_is_named_with_what_to_do(
    phase: Phase, evidence: Evidence, tables: Tables, leave: Leave, named: set[str]
) -> None:
    failed = unmet(before_retiring(evidence, Standing(phase, run=1), tables, leave))
    assert {condition.name for condition in failed} == named
    assert all(condition.detail and condition.fix for condition in failed)


def constraint_of(keys: tuple[str, ...]) -> Violation:
    return Violation(Constraint("fkey", "orders", "foreign key", ("client_id",), "", "", (), (), ""), keys)


@pytest.mark.parametrize(
    ("before", "now", "rows"),
    [
        (None, (), []),
        (None, ("a",), None),
        ((), ("a",), []),
        (("a",), ("b",), []),
        (("a",), ("a", "b"), [1]),
        (("a",), ("b",) * 1000, [1000]),
        (("a",) * 1000, ("b",), [1]),
    ],
)
def test_a_reference_is_missing_only_if_it_still_is_when_looked_for_again(
    before: tuple[str, ...] | None, now: tuple[str, ...], rows: list[int] | None
) -> None:
    known = None if before is None else [constraint_of(before)] if before else []
    found = violations.lasting(known, [constraint_of(now)] if now else [])
    assert (None if found is None else [violated.rows for violated in found]) == rows


standings = st.sampled_from(list(ALLOWED)).map(
    lambda phase: Standing(
        phase, {Phase.ROLLING_BACK: Phase.ROLLED_BACK, Phase.RETIRING: Phase.RETIRED}.get(phase), run=1
    )
)


@given(standings, st.builds(Facts, installed=st.booleans(), indexes=st.booleans()), st.booleans())
def test_a_pause_stops_what_costs_and_nothing_that_carries_writes(
    standing: Standing, facts: Facts, same_transaction: bool
) -> None:
    running = needed(standing, facts, same_transaction=same_transaction)
    paused = needed(replace(standing, paused=True), facts, same_transaction=same_transaction)
    assert paused & CARRIERS == running & CARRIERS
    assert not paused & PAUSABLE
    assert not (same_transaction and running & CARRIERS)
    assert (Part.OBSERVER in running) == bool(running)
