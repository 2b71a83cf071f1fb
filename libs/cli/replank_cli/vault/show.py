"""The vault's things as people see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replank_cli.console import moment, output, print_table
from replank_cli.vault.views import (
    Compatibility,
    Consumer,
    Difference,
    Finding,
    Isolation,
    Job,
    Pattern,
    Schema,
    Version,
)

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_STYLES: Final = {"done": "green", "running": "yellow", "queued": "yellow", "failed": "red", "cancelled": "red"}
#: Jobs that count bytes; others count things.
_OF_BYTES: Final = frozenset({"upload"})


def size(count: float) -> str:
    """Bytes as people say them: 17 B, 1.2 KiB, 340 MiB."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in _UNITS:
        count /= 1024
        if abs(count) < 1024 or unit == _UNITS[-1]:
            return f"{count:.1f} {unit}" if abs(count) < 100 else f"{count:.0f} {unit}"
    raise AssertionError("unreachable: the last unit returns")


def schemas(found: Sequence[Schema]) -> None:
    """A listing."""
    deleted = any(one.status == "deleted" for one in found)
    columns = ("name", "version", "kind", "fields", "size", "owner", "tags", "deleted" if deleted else "updated")
    print_table(
        columns,
        (
            (
                one.name,
                one.version,
                one.kind,
                f"{one.field_count:,}",
                size(one.size),
                one.owner,
                ", ".join(one.tags),
                moment(one.deleted_at if deleted else one.updated_at),
            )
            for one in found
        ),
    )


def schema(one: Schema) -> RenderableType:
    """All that is known of a schema."""
    status = f", {one.status}" if one.status != "active" else ""
    title = Text.assemble((one.name, "bold"), f"  version {one.version}{status}  ", (one.id, "dim"))
    rows: list[tuple[str, str]] = [
        ("content", f"{one.kind}, {one.field_count:,} fields, {size(one.size)} ({one.size:,} bytes)"),
        ("sha256", one.sha256),
        ("owner", one.owner),
        ("tags", ", ".join(one.tags)),
        ("description", one.description),
        *(
            (f"metadata {name}", value if isinstance(value, str) else str(value))
            for name, value in one.metadata.items()
        ),
        ("created", f"{moment(one.created_at)} by {one.created_by}"),
        ("updated", f"{moment(one.updated_at)} by {one.updated_by} (revision {one.revision})"),
    ]
    if one.deleted_at is not None:
        rows.append(("deleted", f"{moment(one.deleted_at)} by {one.deleted_by}"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value:
            grid.add_row(Text(name), Text(value))
    return Group(title, grid)


def versions(found: Sequence[Version]) -> None:
    """A schema's versions."""
    print_table(
        ("version", "kind", "fields", "size", "compatible", "published", "by", "note"),
        (
            (
                one.version,
                one.kind,
                f"{one.field_count:,}",
                size(one.size),
                compatible(one.backward, one.forward),
                moment(one.created_at),
                one.created_by,
                one.note,
            )
            for one in found
        ),
    )


def compatible(backward: bool | None, forward: bool | None) -> str:
    """What is proven of a version and the one before."""
    if backward is None or forward is None:
        return ""
    return {(True, True): "fully", (True, False): "backward", (False, True): "forward", (False, False): "no"}[
        backward, forward
    ]


def difference(found: Difference) -> None:
    """What differs, and what that means for those who read and write."""
    for sign, style, paths in (
        ("-", "red", found.removed),
        ("+", "green", found.added),
        ("~", "yellow", found.changed),
    ):
        for path in paths:
            output.print(Text(f"{sign} {path or '(the whole)'}", style=style))
    listed = len(found.removed) + len(found.added) + len(found.changed)
    if found.differences > listed:
        output.print(f"… and {found.differences - listed:,} more", highlight=False)
    if not found.differences:
        output.print(f"versions {found.older} and {found.newer} say the same", highlight=False)
    if found.compatibility is None:
        output.print("one of the two is no schema: nothing is said of compatibility", style="dim")
        return
    _verdict(found.compatibility)


def _verdict(found: Compatibility) -> None:
    told = {
        (True, True): ("fully compatible", "green"),
        (True, False): (
            "backward compatible alone: who knows the old one may not read what the new one writes",
            "yellow",
        ),
        (False, True): (
            "forward compatible alone: who knows the new one may not read what the old one wrote",
            "yellow",
        ),
        (False, False): ("not compatible", "red"),
    }[found.backward, found.forward]
    output.print(Text(told[0], style=f"bold {told[1]}"))
    for reason in found.reasons:
        output.print(Text(f"  {reason.direction}: {reason.path or '(the whole)'}: {reason.text}"))


def consumers(found: Sequence[Consumer]) -> None:
    """Who uses a schema."""
    print_table(
        ("consumer", "events", "first seen", "last seen"),
        ((one.consumer, f"{one.events:,}", moment(one.first_at), moment(one.last_at)) for one in found),
    )


def job_line(job: Job) -> str:
    """A job in a line: what changes while one waits for it."""
    said = [f"{job.kind} {job.state}"]
    if job.state in ("running", "queued") and job.total:
        share = min(100.0 * job.done / job.total, 100.0)
        done = f"{size(job.done)} of {size(job.total)}" if job.kind in _OF_BYTES else f"{job.done:,} of {job.total:,}"
        said.append(f"{share:.0f} %, {done}")
    if job.problem:
        said.append(("tried again: " if not job.ended else "") + job.problem)
    if job.state == "done" and job.result:
        said.append(result(job.result))
    return "; ".join(said)


def result(found: Mapping[str, Any]) -> str:
    """What came of a job, in a line."""
    return ", ".join(f"{name.replace('_', ' ')} {_counted(value)}" for name, value in found.items())


def _counted(value: Any) -> str:
    if isinstance(value, Mapping):
        return " + ".join(f"{count} {kind}" for kind, count in value.items() if count) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def job(one: Job) -> RenderableType:
    """A job."""
    by = Text(f"asked for by {one.created_by} at {moment(one.created_at)}", style="dim")
    return Group(Text(job_line(one), style=_STYLES.get(one.state, "")), by)


def findings(found: Sequence[Finding]) -> None:
    """What checks found."""
    print_table(
        ("id", "kind", "thing", "schemas", "state", "found", "what", "what helps"),
        (
            (one.id, one.kind, one.thing, one.affected, one.state, moment(one.found_at), one.detail, one.remedy)
            for one in found
        ),
    )


def isolation(found: Isolation, *, all_: bool) -> None:
    """What was tried, and how it was answered. Without ``all_``, the modes' own accesses only where one failed."""
    shown = [one for one in found.attempts if all_ or one.mode != one.reaches_for or not one.as_it_should_be]
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "with the credentials of", "at", "side", "tried", "answer"):
        grid.add_column(column, overflow="fold")
    for one in shown:
        well, word = one.as_it_should_be, "refused" if one.refused else "allowed"
        grid.add_row(
            Text("ok" if well else "NO", style="green" if well else "bold red"),
            *map(Text, (one.mode, one.reaches_for, one.side, one.what)),
            Text(f"{word} ({one.answer})", style="" if well else "bold red"),
        )
    output.print(grid)
    own = "all work" if found.done == found.own else f"{found.own - found.done} do not work"
    output.print(
        Text(
            f"{found.crossing} cross accesses tried, {found.refused} refused; {found.own} own accesses, {own}",
            style="bold green" if found.isolated else "bold red",
        )
    )


def lines(texts: Iterable[str]) -> None:
    """Lines as they are."""
    for text in texts:
        output.print(text, markup=False, highlight=False)


def pattern(found: Pattern) -> RenderableType:
    """In which pattern a mode is, and how far on its way."""
    rows = [
        (
            "phase",
            found.phase + (f", since {moment(found.changed_at)} by {found.changed_by}" if found.changed_at else ""),
        ),
        ("flag", "USE_OPTIMIZED_SCHEMAS is " + ("on" if found.optimized else "off") + " for this mode"),
        ("old rows", f"{found.old_rows:,}"),
    ]
    if found.rows_verified is not None:
        rows.append(("verified", f"{found.rows_verified:,} rows at {moment(found.verified_at)}"))
    if found.job is not None:
        rows.append(("job", f"{job_line(found.job)} ({found.job.id})"))
    for endpoint, outcomes in found.reads.items():
        rows.append((f"{endpoint} reads", ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())))
    if (archive := found.archive) is not None:
        deleted = f", {archive.deleted:,} deleted here" if archive.deleted is not None else ""
        at = f", kept as {archive.bucket}/{archive.object_key}" if archive.object_key else ""
        rows.append(("archive", f"{archive.state}: {archive.rows:,} rows{deleted}{at}"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    for one in found.rejects:
        grid.add_row(Text("rejected", style="red"), Text(f"{one.name} version {one.version}, {one.step}: {one.reason}"))
    if found.rejected > len(found.rejects):
        grid.add_row("", Text(f"… and {found.rejected - len(found.rejects):,} more"))
    return grid
