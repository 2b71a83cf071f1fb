"""A migration as people see it: where it is in its life, how it does, and what it needs to go on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from replank_cli.console import moment
from replank_cli.migrate.views import AT_REST, LIFE, Migration, Next, Progress

_BAR: Final = 30
_AUTHORITY: Final = {
    ("open", "closed"): "to the key-value store",
    ("closed", "open"): "to the tables",
    ("held", "closed"): "held for a moment: they move to the tables",
    ("closed", "held"): "held for a moment: they move back to the key-value store",
}
_STATE_STYLES: Final = {"running": "green", "done": "dim", "waiting": "yellow", "failed": "red"}


def status(migration: Migration) -> RenderableType:
    """All that there is to see of a migration, for a terminal."""
    return Group(_title(migration), life(migration), Text(), _facts(migration), Text(), *ahead(migration))


def life(migration: Migration) -> Text:
    """The phases of the whole life in one line, with the present one marked; what lies off it, at the end."""
    line = Text()
    at = LIFE.index(migration.phase) if migration.phase in LIFE else -1
    for position, phase in enumerate(LIFE):
        if position:
            line.append(" > ", style="dim")
        if position == at:
            line.append(f"[{phase}]", style="bold green")
        else:
            line.append(phase, style="" if position < at else "dim")
    if at < 0:
        line.append(f"   [{migration.phase}]", style="bold yellow")
    if migration.moving_to:
        line.append(f" moving to {migration.moving_to}", style="bold yellow")
    if migration.paused:
        line.append(" paused", style="bold yellow")
    return line


def one_line(migration: Migration) -> str:
    """A migration in a line of a log: what changes while one waits for it."""
    said = [migration.phase]
    if migration.moving_to:
        said.append(f"moving to {migration.moving_to}")
    if migration.paused:
        said.append("paused")
    if (progress := migration.progress) and not progress.done and migration.phase == "backfilling":
        said.append(_counted(progress))
    if migration.problem:
        said.append(f"problem: {migration.problem}")
    if migration.next and (unmet := migration.next.unmet):
        said.append(f"{migration.next.to} needs " + ", ".join(condition.name for condition in unmet))
    return "; ".join(said)


def command_to(following: Next) -> str:
    """The command that leads to the next phase."""
    return "start" if following.to == "capturing" else "advance"


def ahead(migration: Migration) -> list[Text]:
    """What comes next: what it still needs, or how to go there, or that this is the end."""
    following = migration.next
    if migration.moving_to is not None:
        return []
    if following is None:
        end = _END.get(migration.phase)
        return [Text(end, style="dim")] if end else []
    if not following.allowed:
        return [Text.assemble("next: ", (following.to, "bold"), ", which still needs"), *_needed(following)]
    command = f"replank migrate {command_to(following)} {migration.name}"
    return [
        Text.assemble("next: ", (following.to, "bold"), ", as soon as you say so: ", (command, "bold")),
        *_needed(following),
    ]


def _needed(following: Next) -> list[Text]:
    lines: list[Text] = []
    for condition in following.conditions:
        mark, style = ("ok", "green") if condition.met else ("--", "yellow")
        lines.append(Text.assemble((f"  {mark} ", style), (condition.name, "bold"), f": {condition.detail}"))
        if condition.fix and not condition.met:
            lines.append(Text(f"       what to do: {condition.fix}"))
    return lines


def duration(seconds: float) -> str:
    """A time as people say it: 3 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    for size, unit, smaller, smaller_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {smaller_unit}"
    raise AssertionError("unreachable: a minute is the smallest of them")


def percent(value: float) -> str:
    """Per cent, never rounded up to 100: that is only what agrees wholly."""
    return f"{value:g} %" if value in (0.0, 100.0) else f"{min(value, 99.9999):.4f}".rstrip("0").rstrip(".") + " %"


def _title(migration: Migration) -> Text:
    run = f", run {migration.run}" if migration.run > 1 else ""
    table = f" ({migration.table})" if migration.table else ""
    return Text.assemble(
        (migration.name, "bold"),
        f"  {migration.source}{table} -> {migration.target}, owner {migration.owner}{run}  ",
        (migration.id, "dim"),
    )


def _facts(migration: Migration) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _rows(migration):
        grid.add_row(name, value)
    return grid


def _rows(migration: Migration) -> Iterable[tuple[str, RenderableType]]:
    since = migration.phase_since or migration.planned_at
    yield "since", Text(f"{moment(since)} ({duration((datetime.now(UTC) - since).total_seconds())})")
    if migration.problem:
        yield "problem", Text(migration.problem, style="red")
    if migration.phase in AT_REST:
        return  # nothing is at work, and what the work said last is about a time that is over
    if migration.progress is not None:
        yield "backfill", _backfill(migration.progress)
    yield from _stores(migration)
    yield from _records(migration)
    yield from _reads(migration)
    for position, part in enumerate(migration.work):
        text = Text.assemble(f"{part.name} ", (part.state, _STATE_STYLES.get(part.state, "")))
        if part.detail:
            text.append(f": {part.detail}")
        yield "work" if position == 0 else "", text


def _stores(migration: Migration) -> Iterable[tuple[str, Text]]:
    if migration.authority is not None:
        sides = (migration.authority.source, migration.authority.target)
        written = _AUTHORITY.get(sides, f"source {sides[0]}, target {sides[1]}")
        yield "writes go", Text(written, style="yellow" if "held" in sides else "")
    if migration.lag is not None:
        yield "lag", Text(f"{migration.lag.events:,} changes, {duration(migration.lag.seconds)}")


def _records(migration: Migration) -> Iterable[tuple[str, Text]]:
    if (compared := migration.consistency) is not None:
        told = f"{percent(compared.percent)} of {compared.compared:,} records agree, {compared.different:,} differ"
        at = f", {moment(compared.at)}" if compared.at is not None else ""
        yield "compared", Text(told + at, style="yellow" if compared.different else "green")
    if (rejects := migration.rejects) is not None and (rejects.open or rejects.accepted):
        told = f"{rejects.open:,} open, {rejects.accepted:,} accepted"
        yield "rejects", Text(told, style="yellow" if rejects.open else "")


def _reads(migration: Migration) -> Iterable[tuple[str, Text]]:
    widest = max((len(reads.endpoint) for reads in migration.reads), default=0)
    for position, reads in enumerate(migration.reads):
        shown = Text(f"{reads.endpoint:{widest}}  {reads.mode}, {reads.rollout:g} %")
        yield "reads" if position == 0 else "", shown
    both = migration.compared_reads
    if both.compared or both.errors:
        told = f"{both.compared:,}, {both.mismatched:,} answered otherwise, {both.errors:,} errors"
        yield "compared reads", Text(told, style="yellow" if both.mismatched or both.errors else "")


def _backfill(progress: Progress) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    total = max(progress.total or 0, progress.rows, 1)
    grid.add_row(
        ProgressBar(total=total, completed=total if progress.done else progress.rows, width=_BAR), _counted(progress)
    )
    details = [f"{progress.filled:,} written", f"{progress.kept:,} there already", f"{progress.rejected:,} rejected"]
    if progress.different:
        details.append(f"{progress.different:,} differ")
    if progress.waits_for:
        details.append(f"waits for {progress.waits_for}")
    return Group(grid, Text(", ".join(details)))


def _counted(progress: Progress) -> str:
    if progress.done:
        return f"done: {progress.rows:,} records"
    said = [f"{progress.rows:,} records"]
    if progress.total:
        # The total is an estimate of Postgres's until the end is reached.
        share = min(100.0 * progress.rows / progress.total, 99.9)
        said = [f"{share:.1f} %", f"{progress.rows:,} of about {max(progress.total, progress.rows):,}"]
    if progress.rate:
        said.append(f"{progress.rate:,.0f}/s")
    if progress.eta is not None:
        said.append(f"{duration(progress.eta)} left")
    return ", ".join(said)


_END: Final = {
    "completed": "This is the end of it. `replank migrate rollback` still leads back, by a backfill the other way, "
    "until `replank migrate retire` takes what is left of it out of the databases.",
    "cancelled": "It was cancelled. Plan a new one to try again.",
    "retired": "It was retired: its name is free. `replank migrate audit --evidence` tells how the old store was left.",
}
