"""Commands that plan a migration and lead it through its life, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from replank.errors import ConfigurationError, ReplankError
from replank_cli.asking import Token, Url, segment
from replank_cli.console import moment, output, print_json, print_table, print_whole
from replank_cli.migrate import follow, show
from replank_cli.migrate.mapping import text_of
from replank_cli.migrate.options import Json, Named, Reason, Timeout, Wait, reason_of
from replank_cli.migrate.service import Schema, schema
from replank_cli.migrate.views import AuditLine, Migration, Summary

_OPEN: Final = (
    "Let the store that takes no writes take them again, unnoticed. By default it goes on refusing them, "
    "so that a writer that was forgotten is told."
)
_DROP: Final = "Drop the tables, too. By default they stay as they are, and nothing writes them any more."


def plan(
    mapping: Annotated[
        Path, typer.Argument(help="The mapping, YAML; its name is the migration's.", show_default=False)
    ],
    source: Annotated[
        str,
        typer.Option(
            help="The database of the key-value store, as the service's settings name it.", show_default=False
        ),
    ],
    target: Annotated[str, typer.Option(help="That of the tables; may be the same.", show_default=False)],
    owner: Annotated[str, typer.Option(help="Who may lead it, e.g. user:ada.", show_default=False)],
    endpoint: Annotated[
        list[str] | None, typer.Option(help="A read of the application that moves by itself. Repeat for each.")
    ] = None,
    same_transaction: Annotated[
        bool, typer.Option("--same-transaction", help="One database: capture writes the tables itself, no Kafka.")
    ] = False,
    capture: Annotated[
        Literal["triggers", "writer"],
        typer.Option(help="What tells of writes: triggers, or a DualWriter in every writer, where none may be."),
    ] = "triggers",
    partitions: Annotated[int, typer.Option(min=1, max=64, help="Of the change topics: so many appliers.")] = 3,
    sample: Annotated[int, typer.Option(min=0, help="Records that are tried before a start. 0: none.")] = 1000,
    max_rejects: Annotated[float, typer.Option(min=0, max=1, help="The share of them that may be rejected.")] = 0.02,
    setting: Annotated[list[str] | None, typer.Option("--set", help="key=value, as `set` takes it. Repeat.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Register a migration. Nothing is touched: `start` begins it, as soon as its checklist is met."""
    body = {
        "owner": owner,
        "mapping": text_of(mapping),
        "source": source,
        "target": target,
        "options": {
            "same_transaction": same_transaction,
            "capture": capture,
            "partitions": partitions,
            "endpoints": endpoint or [],
            "dry_run_sample": sample,
            "dry_run_rejects": max_rejects,
        },
        "settings": dict(_setting(text) for text in setting or ()),
    }
    with schema(url, token) as service:
        answer = service.post("", body)
    _done(answer, as_json=as_json)


def start(
    migration: Named,
    reason: Reason = None,
    wait: Wait = False,
    timeout: Timeout = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Begin: tables and capture are set up, and from then on every write is carried to the tables.

    The service first looks into both databases and converts a sample there and back; whatever is in the way is
    refused before anything is touched. With --wait: waits for the checklist first.
    """
    why = reason_of(reason)
    with schema(url, token) as service:
        found = service.migration(migration)
        if wait:
            found = _wait_until_allowed(service, found, "start", timeout)
        answer = service.post(f"/{found.id}/start", {"reason": why, "expected": found.phase})
    _done(answer, as_json=as_json)


def advance(
    migration: Named,
    rollout: Annotated[
        float, typer.Option(min=0, max=100, help="For how many per cent of the keys the reads of the next phase move.")
    ] = 100,
    reason: Reason = None,
    wait: Wait = False,
    timeout: Timeout = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Go on to the next phase. Refused, with what is missing and what to do for it, until all its conditions are met.

    With --wait: waits until they are met, asks, and follows it until it is there. Never goes more than one phase.
    """
    why = reason_of(reason)
    with schema(url, token) as service:
        found = service.migration(migration)
        if wait:
            found = _wait_until_allowed(service, found, "advance", timeout)
        body = {"reason": why, "expected": found.phase, "rollout": rollout}
        answer = service.post(f"/{found.id}/advance", body)
        if wait:
            answer = _wait_until_there(service, answer, timeout)
    _done(answer, as_json=as_json)


def pause(migration: Named, reason: Reason = None, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Stop what weighs on the databases: backfill, comparison, index builds. Writes go on being carried over."""
    _command(migration, "pause", {"reason": reason_of(reason)}, url, token, as_json=as_json)


def resume(
    migration: Named, reason: Reason = None, url: Url = None, token: Token = None, as_json: Json = False
) -> None:
    """Go on after `pause`, from where it stopped."""
    _command(migration, "resume", {"reason": reason_of(reason)}, url, token, as_json=as_json)


def rollback(
    migration: Named,
    to: Annotated[
        str | None,
        typer.Option(
            help="verifying, shadow_reads or new_with_fallback: back to there, the tables go on being written. "
            "Without: all the way, nothing of it stays at work.",
            show_default=False,
        ),
    ] = None,
    drop_tables: Annotated[bool, typer.Option("--drop-tables", help=_DROP)] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before tables are dropped.")] = False,
    reason: Reason = None,
    wait: Wait = False,
    timeout: Timeout = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Go back, from any phase, without losing a write. Reads leave the tables within a second."""
    why = reason_of(reason)
    _ask_before_dropping(migration, drop_tables and not yes)
    body = {"reason": why, "to": to, "tables": _tables(drop_tables)}
    _command(migration, "rollback", body, url, token, as_json=as_json, wait=wait, timeout=timeout)


def cancel(
    migration: Named,
    drop_tables: Annotated[bool, typer.Option("--drop-tables", help=_DROP)] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before tables are dropped.")] = False,
    reason: Reason = None,
    wait: Wait = False,
    timeout: Timeout = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Go all the way back from any phase, without losing a write, and end it for good: its name is free again."""
    why = reason_of(reason)
    _ask_before_dropping(migration, drop_tables and not yes)
    body = {"reason": why, "tables": _tables(drop_tables)}
    _command(migration, "cancel", body, url, token, as_json=as_json, wait=wait, timeout=timeout)


def retire(
    migration: Named,
    open_: Annotated[bool, typer.Option("--open", help=_OPEN)] = False,
    drop_tables: Annotated[
        bool, typer.Option("--drop-tables", help="Of one that was taken back: drop the tables that were kept.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for its name first.")] = False,
    reason: Reason = None,
    wait: Wait = False,
    timeout: Timeout = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """End it for good, once it is completed, rolled back or cancelled. There is no way back.

    Its schemas and functions are taken out of both databases, its topics out of Kafka, and its name is free. The
    records of the key-value table stay where they are, and nobody can write to them any more; the application's routers
    go on working.
    """
    if open_ and drop_tables:
        raise ConfigurationError("--open and --drop-tables do not go together", fix="give one of them")
    why = reason_of(reason)
    with schema(url, token) as service:
        found = service.migration(migration)
        if not yes:
            typed = typer.prompt(
                f"this cannot be taken back; type {found.name} to retire it", default="", show_default=False, err=True
            )
            if typed != found.name:
                raise typer.Abort
        leave = "open" if open_ else "dropped" if drop_tables else "closed"
        answer = service.post(f"/{found.id}/retire", {"reason": why, "leave": leave, "expected": found.phase})
        if wait:
            answer = _wait_until_there(service, answer, timeout)
    _done(answer, as_json=as_json)


def status(
    migration: Named,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until Ctrl-C or its end.")] = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Where it is, how it does, and what the next phase still needs."""
    if watch and as_json:
        raise ConfigurationError("--watch and --json do not go together", fix="ask again and again with --json")
    with schema(url, token) as service:
        found = service.migration(migration)
        if as_json:
            print_json(service.get(f"/{found.id}"))
        elif watch:
            follow.watch(service, found)
        else:
            print_whole(show.status(found))


def list_(
    name: Annotated[str | None, typer.Option(help="Only those of this name.", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 50,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """All migrations, the newest first."""
    with schema(url, token) as service:
        items = service.pages("", limit=limit, name=name)
    if as_json:
        print_json(items)
        return
    found = [Summary.model_validate(item) for item in items]
    if not found:
        output.print("no migrations")
        return
    print_table(
        ("name", "phase", "since", "from", "to", "owner", "id"),
        (
            (
                one.name,
                one.phase
                + (f", moving to {one.moving_to}" if one.moving_to else "")
                + (", paused" if one.paused else ""),
                moment(one.phase_since or one.planned_at),
                one.source,
                one.target,
                one.owner,
                one.id,
            )
            for one in found
        ),
    )


def set_(
    migration: Named,
    setting: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="none as value: no limit.")],
    reason: Reason = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Turn knobs while it runs; they take effect within a second.

    rows_per_second, chunk_rows, max_lag_seconds, max_active and throttle_query (a query of yours on the target that
    must return true) hold the backfill back. auto_until=PHASE advances by itself as soon as the conditions are met, up
    to that phase. min_consistency, min_compared_reads, max_read_mismatches and max_apply_lag say when the next phase is
    allowed. hold_seconds: how long writers may be held while the writes move.
    """
    changed = dict(_setting(text) for text in setting)
    why = reason_of(reason)
    with schema(url, token) as service:
        found = service.migration(migration)
        if unknown := sorted(changed.keys() - found.settings.keys()):
            raise ConfigurationError(
                f"there is no setting {', '.join(unknown)}", fix=f"there are {', '.join(found.settings)}"
            )
        answer = service.put(f"/{found.id}/settings", {"settings": changed, "reason": why})
    if as_json:
        print_json(answer)
        return
    after = Migration.model_validate(answer).settings
    for name in changed:
        output.print(
            f"{name}: {_written(found.settings[name])} -> {_written(after[name])}", markup=False, highlight=False
        )


def reads(
    migration: Named,
    endpoint: Annotated[str | None, typer.Argument(help="One that was planned; none: show them all.")] = None,
    mode: Annotated[str | None, typer.Argument(help="kv, compare, new_with_fallback or new.")] = None,
    rollout: Annotated[float, typer.Option(min=0, max=100, help="For how many per cent of the keys.")] = 100,
    reason: Reason = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Which store answers which reads; with an endpoint and a mode: change that, everywhere within a second.

    kv: the key-value store. compare: the same, and the tables are asked and compared in the background.
    new_with_fallback: the tables, and the key-value store where they fail. new: the tables. No further than the phase
    allows; back is always possible.
    """
    if (endpoint is None) is not (mode is None):
        raise ConfigurationError("an endpoint needs a mode", fix="give kv, compare, new_with_fallback or new after it")
    with schema(url, token) as service:
        found = service.migration(migration)
        if endpoint is None:
            answer = service.get(f"/{found.id}")
        else:
            body = {"mode": mode, "rollout": rollout, "reason": reason_of(reason)}
            answer = service.put(f"/{found.id}/reads/{segment(endpoint)}", body)
    after = Migration.model_validate(answer)
    if as_json:
        print_json(answer["reads"])
    elif after.reads:
        print_table(
            ("endpoint", "mode", "rollout %"), ((one.endpoint, one.mode, f"{one.rollout:g}") for one in after.reads)
        )
    else:
        output.print("the plan names no endpoints")


def audit(
    migration: Named,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 50,
    evidence: Annotated[bool, typer.Option("--evidence", help="Show on what evidence, too.")] = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Who did what, when, why, and on what evidence; the newest first."""
    with schema(url, token) as service:
        items = service.pages(f"/{service.migration(migration).id}/audit", limit=limit)
    if as_json:
        print_json(items)
        return
    lines = [AuditLine.model_validate(item) for item in items]
    columns = ("at", "who", "did", "from", "to", "reason", *(("evidence",) if evidence else ()))
    print_table(
        columns,
        (
            (
                moment(line.at),
                line.who,
                line.action,
                line.from_,
                line.to if line.to != line.from_ else "",
                line.reason,
                *((json.dumps(line.evidence, ensure_ascii=False),) if evidence else ()),
            )
            for line in lines
        ),
    )


def _command(
    named: str,
    command: str,
    body: dict[str, Any],
    url: str | None,
    token: str | None,
    *,
    as_json: bool,
    wait: bool = False,
    timeout: float | None = None,
) -> None:
    with schema(url, token) as service:
        answer = service.post(f"/{service.migration(named).id}/{command}", body)
        if wait:
            answer = _wait_until_there(service, answer, timeout)
    _done(answer, as_json=as_json)


def _wait_until_allowed(service: Schema, migration: Migration, command: str, timeout: float | None) -> Migration:
    """Wait until the next phase may be asked for. Where that is not what the command is for, the service says so."""
    begun = migration.phase

    def settled(seen: Migration) -> bool:
        return seen.phase != begun or seen.next is None or seen.next.allowed

    if settled(migration) or migration.next is None or show.command_to(migration.next) != command:
        return migration
    left = f"nothing was asked of it yet, and what it does in {begun} goes on"
    seen = follow.until(service, migration, settled, timeout=timeout, left=left)
    if seen.phase != begun:
        raise ReplankError(
            f"{seen.name} went from {begun} to {seen.phase} meanwhile; nothing was asked of it",
            fix="look at it again (`replank migrate status`), and decide on where it is now",
        )
    return seen


def _wait_until_there(service: Schema, answer: Any, timeout: float | None) -> Any:
    """Wait until a migration has got to where it is moving. Raises `ReplankError` if it gave up on the way."""
    migration = Migration.model_validate(answer)
    goal = migration.moving_to
    if goal is None:
        return answer
    seen = follow.until(
        service,
        migration,
        lambda one: one.moving_to != goal,
        timeout=timeout,
        left=f"it goes on to {goal} by itself; `replank migrate status {migration.name}` shows it",
    )
    if seen.phase != goal:
        raise ReplankError(
            f"{seen.name} did not get to {goal}: it is in {seen.phase}" + (f": {seen.problem}" if seen.problem else ""),
            fix=f"`replank migrate status {seen.name}` and `replank migrate audit {seen.name}` tell why",
        )
    return service.get(f"/{seen.id}")


def _done(answer: Any, *, as_json: bool) -> None:
    """Say where a migration is after a command, and what comes next."""
    if as_json:
        print_json(answer)
        return
    after = Migration.model_validate(answer)
    output.print(f"{after.name} ({after.id})", markup=False, highlight=False)
    output.print(show.life(after))
    if after.moving_to:
        output.print(
            f"it is on its way to {after.moving_to}; `replank migrate status {after.name} --watch` shows it get there",
            markup=False,
            highlight=False,
        )
        return
    for line in show.ahead(after):
        output.print(line)


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigurationError(f"{text!r} is not key=value", fix="for example rows_per_second=20000")
    if value in ("", "none", "null"):
        return name, None
    try:
        return name, json.loads(value)
    except ValueError:
        # A phase or a query: a text, which nobody wants to put into two kinds of quotes.
        return name, value


def _written(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _tables(drop: bool) -> str:
    return "drop" if drop else "keep"


def _ask_before_dropping(named: str, ask: bool) -> None:
    if ask:
        typer.confirm(f"drop the tables that {named} fills, with everything in them?", abort=True, err=True)
