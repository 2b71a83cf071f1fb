"""Commands that compare the two stores, show where they differ, and mend that."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.text import Text

from replank.errors import ReplankError
from replank_cli.asking import Refused, Token, Url
from replank_cli.console import errors, moment, output, print_json, print_table
from replank_cli.following import poll, screen
from replank_cli.migrate import show
from replank_cli.migrate.follow import LOOK
from replank_cli.migrate.options import Json, Named, Timeout, Wait
from replank_cli.migrate.service import Schema, schema
from replank_cli.migrate.views import Comparison, Migration, Mismatch, Repair

_ENDED: Final = ("done", "cancelled")
_GOES_ON: Final = "the comparison goes on"
_STILL_ASKED: Final = "it is still asked for"
#: A repair starts when the migration's worker gets to it, and takes as long as its keys take.
_REPAIR_WITHIN: Final = 300.0


def compare(
    migration: Named,
    wait: Wait = False,
    timeout: Timeout = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Compare every record with its rows, and every row with its record. Exit status 1 if any differ (--wait).

    One that runs already is followed, not started again. Changes that are on their way are looked at again before they
    count.
    """
    with schema(url, token) as service:
        found = service.migration(migration)
        answer = _asked(service, found)
        if wait:
            answer = _followed(service, found, answer, timeout)
    comparison = Comparison.model_validate(answer)
    if as_json:
        print_json(answer)
    elif comparison.state in _ENDED:
        _print(comparison, found)
    else:
        output.print(
            f"comparison {comparison.id} is {comparison.state}; --wait follows it, and "
            f"`replank migrate status {found.name}` shows what it found",
            markup=False,
            highlight=False,
        )
    if wait and (comparison.state != "done" or comparison.different):
        raise typer.Exit(1)


def mismatches(
    migration: Named,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are gone.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000)] = 100,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Records whose rows are otherwise: which fields, since when, and the trace of whoever wrote them."""
    with schema(url, token) as service:
        found = service.migration(migration)
        items = service.pages(f"/{found.id}/mismatches", limit=limit, resolved="true" if all_ else None)
    if as_json:
        print_json(items)
        return
    if not items:
        output.print("no mismatches")
        return
    print_table(
        ("key", "entity", "kind", "fields", "first seen", "gone", "trace"),
        (
            (
                one.key,
                one.entity,
                one.kind,
                ", ".join(one.fields),
                moment(one.first_seen),
                moment(one.resolved_at),
                one.trace_id,
            )
            for one in map(Mismatch.model_validate, items)
        ),
    )


def repair(
    migration: Named,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY…]", help="None: all open mismatches.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Have the store that follows hold what the one that is written holds. Asks first, with what would be done."""
    with schema(url, token) as service:
        found = service.migration(migration)
        if not dry_run and not yes:
            would = _repaired(service, found, keys, dry_run=True)
            _print_repair(Repair.model_validate(would), found)
            if not would["keys"]:
                return
            # Those that were shown, not those that have come to it meanwhile.
            keys = would["keys"]
            typer.confirm("do it?", abort=True, err=True)
        answer = _repaired(service, found, keys, dry_run=dry_run)
    if as_json:
        print_json(answer)
        return
    _print_repair(Repair.model_validate(answer), found)
    if answer["actions"] and not dry_run:
        output.print(f"`replank migrate compare {found.name} --wait` sees whether all agrees now", markup=False)


def _asked(service: Schema, migration: Migration) -> Any:
    try:
        return service.post(f"/{migration.id}/comparisons", {})
    except Refused as refused:
        if refused.slug != "comparison-under-way":
            raise
    (newest,) = service.pages(f"/{migration.id}/comparisons", limit=1)
    errors.print("one is under way already: this one", highlight=False)
    return newest


def _followed(service: Schema, migration: Migration, answer: Any, timeout: float | None) -> Any:
    path = f"/{migration.id}/comparisons/{answer['id']}"
    try:
        with screen() as on:
            for seen in poll(lambda: service.get(path), on, timeout=timeout, left=_GOES_ON, look=LOOK):
                line = _line(Comparison.model_validate(seen))
                on.show(Text(line), line)
                if seen["state"] in _ENDED:
                    return seen
    except KeyboardInterrupt:
        errors.print(f"left to itself: {_GOES_ON}", highlight=False)
        raise typer.Exit(1) from None
    raise AssertionError("unreachable: polling has no end")


def _repaired(service: Schema, migration: Migration, keys: list[str] | None, *, dry_run: bool) -> Any:
    answer = service.post(f"/{migration.id}/repair", {"dry_run": dry_run, **({"keys": keys} if keys else {})})
    path = f"/{migration.id}/repairs/{answer['id']}"
    with screen() as on:
        for seen in poll(lambda: service.get(path), on, timeout=_REPAIR_WITHIN, left=_STILL_ASKED, look=LOOK):
            if seen["actions"] is not None:
                return seen
            on.show(Text("asked; the migration's worker has not come to it yet"), "asked")
    raise AssertionError("unreachable: polling has no end")


def _line(comparison: Comparison) -> str:
    said = [f"comparison {comparison.state}"]
    if comparison.stage and comparison.state == "running":
        done = sum(comparison.records.values())
        of = f" of about {comparison.records_estimated:,}" if comparison.records_estimated else ""
        looked = f"{done:,}{of} records" if comparison.stage == "records" else f"{sum(comparison.rows.values()):,} rows"
        said.append(f"looked at {looked}")
    if comparison.compared:
        said.append(f"{comparison.different:,} differ")
    return ", ".join(said)


def _print(comparison: Comparison, migration: Migration) -> None:
    entities = sorted(comparison.records.keys() | comparison.rows.keys())
    print_table(
        ("entity", "records", "rows"),
        ((name, f"{comparison.records.get(name, 0):,}", f"{comparison.rows.get(name, 0):,}") for name in entities),
    )
    found = {kind: count for kind, count in sorted(comparison.mismatches.items()) if count}
    rejected = found.pop("rejected", 0)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.items())
    share = f"{show.percent(comparison.percent)} agree" if comparison.percent is not None else "nothing was compared"
    output.print(f"{comparison.state}: {comparison.compared:,} compared, {share}", highlight=False)
    if kinds:
        output.print(f"{kinds}; `replank migrate mismatches {migration.name}` shows them", highlight=False)
    if rejected:
        shown = f"`replank migrate rejects list {migration.name}` shows them"
        output.print(f"{rejected:,} are rejected, and were not compared; {shown}", highlight=False)
    if comparison.unsettled:
        output.print(f"{comparison.unsettled:,} kept changing, and are neither equal nor different", highlight=False)


def _print_repair(repair: Repair, migration: Migration) -> None:
    if repair.actions is None:
        raise ReplankError("the repair was not done", fix=f"`replank migrate status {migration.name}` tells why")
    if not repair.actions:
        output.print("nothing to repair")
        return
    print_table(("key", "would be" if repair.dry_run else "was"), ((one.key, _DONE[one.op]) for one in repair.actions))


_DONE: Final = {"upsert": "written again", "delete": "removed"}
