"""``replank dlq``: dead letters, looked at, handled again, or given up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, TypeAlias

import typer

from replank.inbox import dead_letters
from replank.inbox.dead_letters import Plan, Selection
from replank.inbox.store import Found
from replank_cli.connection import Dsn, Service, connect, dsn_of
from replank_cli.console import output, print_json, print_table

app = typer.Typer(
    add_completion=False,
    help="Dead letters: look at them, have them handled again, give them up.",
    no_args_is_help=True,
)

Consumer: TypeAlias = Annotated[str, typer.Option("--consumer", "-c", help="Whose dead letters.")]
Seqs: TypeAlias = Annotated[list[int] | None, typer.Argument(help="Numbers; all that the options leave if none.")]
Topic: TypeAlias = Annotated[str | None, typer.Option(help="Only of this topic.")]
Key: TypeAlias = Annotated[str | None, typer.Option(help="Only of this key.")]
Type: TypeAlias = Annotated[str | None, typer.Option("--type", help="Only of this event type.")]
Reason: TypeAlias = Annotated[str | None, typer.Option("--reason", help="Only of this reason.")]
Since: TypeAlias = Annotated[datetime | None, typer.Option(help="Only those that died at or after this moment.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json")]


@app.command("list")
def list_(
    dsn: Dsn = None,
    service: Service = None,
    consumer: Annotated[str | None, typer.Option("--consumer", "-c", help="Only of this consumer.")] = None,
    topic: Topic = None,
    key: Key = None,
    type_: Type = None,
    reason: Reason = None,
    since: Since = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that were settled since.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 100,
    as_json: Json = False,
) -> None:
    """Dead letters in the order in which they died."""
    states = ("dead", "redriving", "redriven", "discarded") if all_ else ("dead", "redriving")

    async def run() -> Sequence[Found]:
        async with connect(dsn_of(dsn, service)) as conn:
            return await dead_letters.search(
                conn,
                consumer=consumer,
                selection=_selection(None, topic, key, type_, reason, since),
                states=states,
                limit=limit,
            )

    found = asyncio.run(run())
    if as_json:
        print_json([_summary(letter) for letter in found])
    elif found:
        _print(found)
    else:
        output.print("no dead letters")


@app.command()
def show(
    seq: int,
    dsn: Dsn = None,
    service: Service = None,
    values: Annotated[bool, typer.Option("--values", help="Show the payload too. It may hold personal data.")] = False,
) -> None:
    """Everything that is known of one dead letter."""

    async def run() -> Found:
        async with connect(dsn_of(dsn, service)) as conn:
            return await dead_letters.show(conn, seq)

    found = asyncio.run(run())
    print_table(("field", "value"), ((name, value) for name, value in _summary(found).items()))
    if found.stack:
        output.print(found.stack, markup=False, highlight=False)
    if values:
        output.print((found.value or b"").decode(errors="backslashreplace"), markup=False, highlight=False)


@app.command()
def redrive(
    consumer: Consumer,
    seqs: Seqs = None,
    dsn: Dsn = None,
    service: Service = None,
    topic: Topic = None,
    key: Key = None,
    type_: Type = None,
    reason: Reason = None,
    since: Since = None,
    why: Annotated[str, typer.Option(help="Kept in the audit.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would happen.")] = False,
    as_json: Json = False,
) -> None:
    """Have dead letters handled again by the running consumer: same event ids, each key in its order."""

    async def run() -> Plan:
        async with connect(dsn_of(dsn, service)) as conn:
            return await dead_letters.redrive(
                conn,
                consumer=consumer,
                selection=_selection(seqs, topic, key, type_, reason, since),
                dry_run=dry_run,
                reason=why,
            )

    plan = asyncio.run(run())
    if as_json:
        print_json(
            {
                "consumer": plan.consumer,
                "dry_run": plan.dry_run,
                "alive": plan.alive,
                "events": [{**_summary(event), "handler": plan.handlers.get(event.seq)} for event in plan.events],
                "blocked": [_summary(event) for event in plan.blocked],
                "keys_unparked": plan.keys_unparked,
            }
        )
        return
    if not plan.events and not plan.blocked:
        output.print("nothing to redrive")
        return
    print_table(
        ("seq", "type", "key", "handler"),
        ((event.seq, event.type, event.key, plan.handlers.get(event.seq, "none runs")) for event in plan.events),
    )
    verb = "would be" if plan.dry_run else "will be"
    output.print(
        f"{len(plan.events)} events {verb} handled again by {plan.consumer}, {plan.keys_unparked} keys un-parked",
        highlight=False,
    )
    if plan.blocked:
        blocked = ", ".join(str(event.seq) for event in plan.blocked)
        output.print(f"[yellow]held back[/] behind an earlier dead letter of the same key: {blocked}", highlight=False)
    if not plan.alive:
        output.print(f"[yellow]no process of {plan.consumer} runs[/]: they wait until one does", highlight=False)


@app.command()
def discard(
    consumer: Consumer,
    why: Annotated[str, typer.Option(help="Kept in the audit.")],
    seqs: Seqs = None,
    dsn: Dsn = None,
    service: Service = None,
    topic: Topic = None,
    key: Key = None,
    type_: Type = None,
    reason: Reason = None,
    since: Since = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give dead letters up for good. Their rows stay, marked; their keys are un-parked if nothing of them is left."""
    selection = _selection(seqs, topic, key, type_, reason, since)
    if not yes:
        typer.confirm(
            f"discard dead letters of {consumer}: {'; '.join(_terms(selection)) or 'ALL of them'}", abort=True
        )

    async def run() -> list[Found]:
        async with connect(dsn_of(dsn, service)) as conn:
            return await dead_letters.discard(conn, consumer=consumer, selection=selection, reason=why)

    output.print(f"{len(asyncio.run(run()))} dead letters discarded", highlight=False)


def _selection(
    seqs: list[int] | None,
    topic: str | None,
    key: str | None,
    type_: str | None,
    reason: str | None,
    since: datetime | None,
) -> Selection:
    return Selection(
        seqs=seqs or None,
        topic=topic,
        key=key,
        type=type_,
        reason=reason,
        since=since.astimezone() if since else None,
    )


def _terms(selection: Selection) -> list[str]:
    given = {
        "numbers": selection.seqs,
        "topic": selection.topic,
        "key": selection.key,
        "type": selection.type,
        "reason": selection.reason,
        "since": selection.since,
    }
    return [f"{name} {value}" for name, value in given.items() if value is not None]


def _summary(letter: Found) -> dict[str, object]:
    traceparent = (letter.traceparent or "").split("-")
    return {
        "seq": letter.seq,
        "state": letter.state,
        "consumer": letter.consumer,
        "reason": letter.reason,
        "detail": letter.detail,
        "attempts": letter.attempts,
        "type": letter.type,
        "key": letter.key,
        "event_id": letter.event_id,
        "record": f"{letter.topic}/{letter.partition}@{letter.offset}",
        "source": letter.source,
        "bytes": letter.size,
        "headers": json.dumps({name: raw.decode(errors="backslashreplace") for name, raw in letter.headers}),
        "died_at": letter.created_at,
        "trace_id": traceparent[1] if len(traceparent) == 4 else None,
    }


def _print(letters: Sequence[Found]) -> None:
    print_table(
        ("seq", "state", "consumer", "reason", "attempts", "type", "key", "record", "died at"),
        (
            (
                letter.seq,
                letter.state,
                letter.consumer,
                letter.reason,
                letter.attempts,
                letter.type,
                letter.key,
                f"{letter.topic}/{letter.partition}@{letter.offset}",
                letter.created_at.isoformat(timespec="seconds"),
            )
            for letter in letters
        ),
    )
