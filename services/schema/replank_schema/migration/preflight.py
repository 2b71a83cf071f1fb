"""What only the databases themselves can say about a start or an end, at that moment. Nothing of it stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from replank.connection import Connection
from replank.errors import DependencyUnavailable
from replank.migrate import authority, ddl, preconditions, retired
from replank.migrate import compile as compiler
from replank.migrate.dryrun import DryRun, dry_run
from replank.migrate.mapping import InvalidMapping, Mapping
from replank.migrate.sql import identifier, relation
from replank.outbox import Finding
from replank_schema.migration import plans
from replank_schema.migration.databases import Databases
from replank_schema.migration.model import Condition, Leave, Migration, Phase, Plan, Tables, unmet

# What the start itself mends, in a database where it may.
_MADE_BY_THE_START: Final = frozenset({"no_outbox", "no_target"})

_ESTIMATE: Final = "select greatest(reltuples, 0)::float8 from pg_class where oid = to_regclass($1)"
# Whole pages by chance: cheap whatever the size, and as mixed as the pages are.
_SAMPLE: Final = "select {key}, {value}::text from {table} tablesample system ($1) limit $2"
# More than is wanted, since pages differ in how much is on them.
_MORE: Final = 2.0
_REASONS_SHOWN: Final = 5
_UNREADABLE_FIX: Final = "run the version that planned it, or cancel it and plan anew"
_KEPT_FIX: Final = "drop the tables that the rollback has kept, and grant what is missing"


async def check(databases: Databases, migration: Migration, plan: Plan) -> list[Condition]:
    """Whether source and target can be what the mapping takes them for: a condition for everything that was looked at.

    Raises `DependencyUnavailable` for a database that does not answer.
    """
    if {migration.source, migration.target} - databases.names:
        return []  # a condition of its own names them
    try:
        mapping = plans.from_json(plan.mapping)
    except InvalidMapping as error:
        return [_unreadable(error)]
    same_transaction, triggers = plan.options.same_transaction, plan.options.capture == "triggers"
    found: list[Condition] = []
    if same_transaction:
        one = databases.dsn(migration.source) == databases.dsn(migration.target)
        detail = "source and target are one database" if one else "source and target are two databases"
        found.append(Condition("one_database", one, detail, "plan without same_transaction"))
    async with databases.connect(migration.source) as source:
        findings = await preconditions.of_source(source, mapping, same_transaction=same_transaction, triggers=triggers)
        found += _of(findings, "source", f"{mapping.source.table} can be captured")
        wanted = plan.options.dry_run_sample if not unmet(found) else 0
        sample = await _sample(source, mapping, wanted) if wanted else []
    async with databases.connect(migration.target) as target:
        tables = await _of_tables(target, migration, mapping)
        found.append(tables)
        if tables.met and wanted:
            found.append(_judged(await dry_run(target, mapping, sample), plan.options.dry_run_rejects))
    return found


async def of_kept_tables(databases: Databases, migration: Migration, plan: Plan) -> list[Condition]:
    """What a start would say of the tables that a rollback has kept; nothing about any other migration."""
    if not _keeps_tables(migration) or migration.target not in databases.names:
        return []
    try:
        async with databases.connect(migration.target) as target:
            return [await _of_tables(target, migration, plans.from_json(plan.mapping))]
    except InvalidMapping as error:
        return [_unreadable(error)]
    except DependencyUnavailable as error:
        return [Condition("target", False, error.message, error.fix)]


async def of_retirement(databases: Databases, migration: Migration, leave: Leave) -> list[Condition]:
    """Whether each store is what a retirement takes it for, and may be left as asked.

    Raises `DependencyUnavailable` for a database that does not answer.
    """
    if {migration.source, migration.target} - databases.names:
        return []
    completed = migration.standing.phase is Phase.COMPLETED
    closed = migration.source if completed else migration.target
    async with databases.connect(migration.source) as source, databases.connect(migration.target) as target:
        says = {
            "source": await _writes(source, migration.name, "source") if completed else None,
            "target": await _writes(target, migration.name, "target"),
        }
        taken_for = {"source": "closed", "target": "open"} if completed else {"source": None, "target": "closed"}
        wrong = [
            f"the {side} is {found}" for side, found in says.items() if found is not None and found != taken_for[side]
        ]
        detail = "the tables take the writes" if completed else "the tables take no writes"
        contradiction = "compare the two stores, then set the authority by hand (docs/architecture/migration.md)"
        found = [Condition("authority", not wrong, ", ".join(wrong) or detail, contradiction)]
        if leave is Leave.CLOSED:
            findings = await retired.check(source if completed else target)
            found += _of(findings, "guard", f"{closed} can go on refusing writes")
    return found


async def _writes(conn: Connection, name: str, side: authority.Side) -> authority.Writes | None:
    """What a side says of itself; nothing where somebody has removed it by hand, which is where this leads anyway."""
    try:
        return await authority.state(conn, name, side)
    except authority.NoAuthority:
        return None


def _unreadable(error: InvalidMapping) -> Condition:
    return Condition("mapping", False, error.message, _UNREADABLE_FIX)


async def _of_tables(target: Connection, migration: Migration, mapping: Mapping) -> Condition:
    try:
        await ddl.check(target, compiler.compile(mapping), anew=True)
    except ddl.TargetRefused as refused:
        return Condition("target", False, refused.message, _KEPT_FIX if _keeps_tables(migration) else refused.fix)
    return Condition("target", True, "the tables are absent or empty, and may be made")


def _keeps_tables(migration: Migration) -> bool:
    return migration.standing.phase is Phase.ROLLED_BACK and migration.tables is Tables.KEEP


async def _sample(source: Connection, mapping: Mapping, size: int) -> list[tuple[str, str]]:
    table = relation(mapping.source.table)
    # Never analyzed, it is taken whole, up to the limit.
    estimate = await source.fetchval(_ESTIMATE, table) or 0.0
    percent = min(100.0, 100.0 * _MORE * size / estimate) if estimate else 100.0
    names = {"key": identifier(mapping.source.key), "value": identifier(mapping.source.value), "table": table}
    return [(key, value) for key, value in await source.fetch(_SAMPLE.format_map(names), percent, size)]


def _judged(run: DryRun, most: float) -> Condition:
    """A dry run as a condition. Reasons name fields and kinds, never what a record holds."""
    reasons = "; ".join(
        f"{group.records} of {group.entity or 'no entity'}: {group.path}: {group.reason}"
        for group in run.rejects[:_REASONS_SHOWN]
    )
    if run.broken:
        detail = f"{len(run.broken)} of {run.records} records do not come back as they were, such as {run.broken[0]}"
        return Condition("dry_run", False, detail, "report this mapping: that is a fault of the compiler")
    detail = f"{run.rejected} of {run.records} records would be rejected, a share of {most:g} is borne"
    return Condition(
        "dry_run",
        run.rejected_share <= most,
        f"{detail}: {reasons}" if reasons else detail,
        "mend the mapping or the records, or plan with a higher dry_run_rejects",
    )


def _of(findings: Sequence[Finding], side: str, well: str) -> list[Condition]:
    wrong = [
        Condition(f"{side}_{finding.code}", False, finding.message, finding.fix)
        for finding in findings
        if finding.severity == "error" and finding.code not in _MADE_BY_THE_START
    ]
    return wrong or [Condition(side, True, well)]
