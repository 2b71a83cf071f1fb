"""``replank outbox``: put an outbox into any database, check it, see what it is doing."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated
from uuid import UUID

import typer

from replank import outbox
from replank_cli.connection import Dsn, Service, connect, dsn_of
from replank_cli.console import output, print_json, print_table

app = typer.Typer(add_completion=False, help="An outbox in any database: install, check, look.", no_args_is_help=True)


@app.command()
def install(
    dsn: Dsn = None,
    service: Service = None,
    shards: Annotated[int, typer.Option(min=1, max=64, help="Fixed by the first install.")] = 1,
    notify: Annotated[
        bool, typer.Option(help="Wake relays by NOTIFY. It serialises commits; polling does not.")
    ] = False,
    partition_hours: Annotated[int, typer.Option(min=1, help="How much time one partition of the table holds.")] = 24,
    partitions_ahead: Annotated[int, typer.Option(min=1, max=366)] = 3,
    grant: Annotated[list[str] | None, typer.Option(help="A role that may append, and nothing else.")] = None,
) -> None:
    """Install the outbox, or upgrade the one that is there. Safe to repeat."""

    async def run() -> None:
        async with connect(dsn_of(dsn, service)) as conn:
            version = await outbox.install(
                conn,
                shards=shards,
                notify=notify,
                partition_interval=timedelta(hours=partition_hours),
                partitions_ahead=partitions_ahead,
            )
            for role in grant or ():
                await outbox.grant_append(conn, role)
        output.print(f"outbox version {version} is installed")

    asyncio.run(run())


@app.command()
def verify(dsn: Dsn = None, service: Service = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Say what is wrong with an outbox. Exit status 1 if anything is an error."""

    async def run() -> list[outbox.Finding]:
        async with connect(dsn_of(dsn, service)) as conn:
            return await outbox.verify(conn)

    findings = asyncio.run(run())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    elif findings:
        print_table(
            ("severity", "code", "what", "what to do"),
            ((finding.severity, finding.code, finding.message, finding.fix) for finding in findings),
        )
    else:
        output.print("the outbox is in order")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
def status(dsn: Dsn = None, service: Service = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """How much waits, for how long, who publishes it, and what is stuck."""

    async def run() -> outbox.Status:
        async with connect(dsn_of(dsn, service)) as conn:
            return await outbox.status(conn)

    found = asyncio.run(run())
    if as_json:
        print_json(asdict(found))
        return
    waiting = f"{'at least ' if found.depth_capped else ''}{found.depth}"
    oldest = f", the oldest for {found.oldest_age}" if found.oldest_age else ""
    output.print(f"{waiting} events wait{oldest}; {found.quarantined} in quarantine", highlight=False)
    print_table(
        ("shard", "depth", "relay", "lease until", "token", "stuck at"),
        (
            (
                shard.shard,
                shard.depth,
                shard.owner or "nobody",
                shard.lease_until,
                shard.token,
                f"{shard.stuck_event_id}: {shard.stuck_reason}" if shard.stuck_event_id else None,
            )
            for shard in found.shards
        ),
    )
    print_table(
        ("partition", "from", "to", "bytes"),
        (
            (partition.name, partition.lower, partition.upper or "open", partition.bytes)
            for partition in found.partitions
        ),
    )


@app.command()
def quarantine(
    event_id: Annotated[UUID, typer.Argument(help="The event that a shard is stuck at; see `status`.")],
    reason: Annotated[str, typer.Option(help="Kept beside the event.")],
    dsn: Dsn = None,
    service: Service = None,
) -> None:
    """Take the event that a shard is stuck at out of its way. It is kept, unpublished."""

    async def run() -> None:
        async with connect(dsn_of(dsn, service)) as conn:
            await outbox.quarantine(conn, event_id, reason)

    asyncio.run(run())
    output.print(f"{event_id} is in quarantine; the relay goes on with its next attempt")
