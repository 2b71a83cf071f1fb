"""A mapping held against the databases that it is for: what is in the way, and what becomes of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import asyncpg

from replank.connection import Connection
from replank.errors import ReplankError
from replank.migrate import ddl, preconditions
from replank.migrate.compile import Compiled
from replank.migrate.compile import compile as compiled
from replank.migrate.dryrun import DryRun, dry_run
from replank.migrate.mapping import Mapping
from replank.outbox import Finding
from replank_cli.connection import connect
from replank_cli.console import output, print_table
from replank_cli.migrate import sample as samples

# What the start itself puts into a database where it may.
_MADE_BY_THE_START: Final = frozenset({"no_outbox", "no_target"})


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found. ``source``, ``target`` and ``rehearsal`` are ``None`` where nobody looked."""

    sql: Compiled
    source: Sequence[Finding] | None
    target: Sequence[Finding] | None
    rehearsal: DryRun | None

    def passed(self, max_rejects: float) -> bool:
        """Whether a start with this limit of rejects, as a share of the sample, would find nothing in its way."""
        tried = self.rehearsal
        well = tried is None or (not tried.broken and tried.rejected_share <= max_rejects)
        return well and not self.source and not self.target


async def check(
    mapping: Mapping, source: str | None, target: str | None, *, sample: int, same_transaction: bool
) -> Checked:
    """Look at the databases whose DSNs are given; with both, try a sample. Changes nothing."""
    sql = compiled(mapping)
    rows: list[tuple[str, str]] | None = None
    of_source: list[Finding] | None = None
    of_target: list[Finding] | None = None
    rehearsal: DryRun | None = None
    if source is not None:
        async with connect(source) as conn:
            found = await preconditions.of_source(conn, mapping, same_transaction=same_transaction)
            of_source = [one for one in found if one.severity == "error" and one.code not in _MADE_BY_THE_START]
            # Of a table that is not as the mapping has it nothing can be read by the mapping.
            if target is not None and not of_source:
                rows = await samples.read(conn, mapping.source, sample)
    if target is not None:
        async with connect(target) as conn:
            of_target = await _of_target(conn, sql)
            if rows is not None:
                rehearsal = await _rehearse(conn, mapping, rows)
    return Checked(sql, of_source, of_target, rehearsal)


async def _of_target(conn: Connection, sql: Compiled) -> list[Finding]:
    try:
        await ddl.check(conn, sql)
    except ddl.TargetRefused as refused:
        return [Finding("error", "target", refused.message, refused.fix)]
    return []


async def _rehearse(conn: Connection, mapping: Mapping, rows: list[tuple[str, str]]) -> DryRun:
    try:
        return await dry_run(conn, mapping, rows)
    except asyncpg.InsufficientPrivilegeError as error:
        raise ReplankError(
            f"the sample cannot be tried on the target: {error}",
            fix="grant the role CREATE on the database, which a migration needs, too",
        ) from error


def as_json(checked: Checked) -> dict[str, Any]:
    """What was found, for programs."""
    return {
        "name": checked.sql.mapping.name,
        "tables": [table.name for table in checked.sql.tables],
        "source": None if checked.source is None else [asdict(finding) for finding in checked.source],
        "target": None if checked.target is None else [asdict(finding) for finding in checked.target],
        "dry_run": None if checked.rehearsal is None else asdict(checked.rehearsal),
    }


def show(checked: Checked) -> None:
    """What was found, for people."""
    sql, mapping = checked.sql, checked.sql.mapping
    counts = f"{len(mapping.entities)} entities, {len(sql.tables)} tables, {len(sql.indexes)} indexes"
    output.print(f"mapping  {mapping.name} is valid: {counts}", markup=False, highlight=False)
    _show_side("source", checked.source, f"{mapping.source.table} can be captured")
    _show_side("target", checked.target, "the tables are absent or empty, and may be made")
    if checked.rehearsal is not None:
        _show_rehearsal(checked.rehearsal)
    elif checked.source is None or checked.target is None:
        output.print("--source and --target try it on a sample of the store", style="dim")


def _show_side(side: str, findings: Sequence[Finding] | None, well: str) -> None:
    if findings is None:
        return
    if not findings:
        output.print(f"{side}   {well}", markup=False, highlight=False)
    for finding in findings:
        output.print(f"{side}   {finding.code}: {finding.message}", markup=False, highlight=False, style="red")
        output.print(f"           what to do: {finding.fix}", markup=False, highlight=False)


def _show_rehearsal(tried: DryRun) -> None:
    if not tried.records:
        output.print("sample   the store is empty")
        return
    counts = {"exact": tried.exact, "lenient": tried.lenient, "rejected": tried.rejected, "ignored": tried.ignored}
    told = ", ".join(
        f"{count:,} {what} ({100 * count / tried.records:.3g} %)" for what, count in counts.items() if count
    )
    output.print(f"sample   {tried.records:,} records there and back: {told}", highlight=False)
    print_table(("entity", "records"), tried.entities.items())
    if tried.rejects:
        output.print()
        print_table(
            ("rejected", "entity", "field", "reason", "for example"),
            (
                (group.records, group.entity or "(none)", group.path, group.reason, ", ".join(group.keys))
                for group in tried.rejects
            ),
        )
    if tried.broken:
        output.print(
            f"{len(tried.broken)} records came back otherwise, which no mapping allows: do not use it, and report it; "
            f"for example {', '.join(tried.broken[:5])}",
            style="bold red",
            markup=False,
            highlight=False,
        )
