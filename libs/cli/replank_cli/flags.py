"""``replank flags``: change a feature flag here, and every process knows within a second."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import typer

from replank import flags
from replank.errors import ConfigurationError
from replank.flags import Flag, FlagNotFound, FlagValue
from replank_cli.connection import Dsn, Service, connect, dsn_of
from replank_cli.console import output, print_json, print_table

app = typer.Typer(
    add_completion=False,
    help="Feature flags: change one here, every process knows within a second.",
    no_args_is_help=True,
)

# The database in which flags are changed; the others have copies of it.
_AUTHORITY = "schema"
By: TypeAlias = Annotated[str | None, typer.Option(help="Who changes it; the login name by default.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json")]


@app.command()
def install(dsn: Dsn = None, service: Service = _AUTHORITY) -> None:
    """Make the tables of flags in a database that has an outbox. Safe to repeat."""

    async def run() -> None:
        async with connect(dsn_of(dsn, service)) as conn:
            await flags.install(conn)

    asyncio.run(run())
    output.print("flags are installed")


@app.command("list")
def list_(dsn: Dsn = None, service: Service = _AUTHORITY, as_json: Json = False) -> None:
    """All flags."""

    async def run() -> Sequence[Flag]:
        async with connect(dsn_of(dsn, service)) as conn:
            return await flags.list_flags(conn)

    _print(asyncio.run(run()), as_json=as_json)


@app.command()
def get(name: str, dsn: Dsn = None, service: Service = _AUTHORITY) -> None:
    """One flag, as JSON."""

    async def run() -> Flag:
        async with connect(dsn_of(dsn, service)) as conn:
            found = await flags.get_flag(conn, name)
        if found is None:
            raise FlagNotFound(f"there is no flag {name}", fix="`replank flags list` shows those that there are")
        return found

    print_json(_described(asyncio.run(run())))


@app.command("set")
def set_(
    name: str,
    value: Annotated[str, typer.Argument(help="JSON: true, 25, '\"text\"', '{\"a\": 1}'.")],
    rollout: Annotated[float, typer.Option(min=0, max=100, help="For how many per cent of the targeting keys.")] = 100,
    disabled: Annotated[bool, typer.Option("--disabled", help="Kept, but everyone gets the default.")] = False,
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "",
    by: By = None,
    expected_version: Annotated[int | None, typer.Option(help="Refuse if it was changed since this version.")] = None,
    dsn: Dsn = None,
    service: Service = _AUTHORITY,
) -> None:
    """Set a flag. The change goes out through the outbox."""
    parsed = _parse(value)

    async def run() -> Flag:
        async with connect(dsn_of(dsn, service)) as conn:
            return await flags.set_flag(
                conn,
                name,
                parsed,
                by=by or f"user:{getpass.getuser()}",
                reason=reason,
                enabled=not disabled,
                rollout=rollout,
                expected_version=expected_version,
            )

    changed = asyncio.run(run())
    output.print(f"{changed.name} is {json.dumps(changed.value)} at version {changed.version}", markup=False)


@app.command()
def delete(
    name: str,
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "",
    by: By = None,
    dsn: Dsn = None,
    service: Service = _AUTHORITY,
) -> None:
    """Delete a flag: everyone gets the default. Its history stays."""

    async def run() -> Flag:
        async with connect(dsn_of(dsn, service)) as conn:
            return await flags.delete_flag(conn, name, by=by or f"user:{getpass.getuser()}", reason=reason)

    asyncio.run(run())
    output.print(f"{name} is deleted", markup=False)


@app.command()
def history(
    name: str,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 50,
    dsn: Dsn = None,
    service: Service = _AUTHORITY,
    as_json: Json = False,
) -> None:
    """Who changed a flag, when, to what, and why."""

    async def run() -> Sequence[Flag]:
        async with connect(dsn_of(dsn, service)) as conn:
            return await flags.history(conn, name, limit=limit)

    _print(asyncio.run(run()), as_json=as_json)


def _parse(value: str) -> FlagValue:
    try:
        parsed: FlagValue | None = json.loads(value)
    except ValueError as error:
        raise ConfigurationError(
            f"{value!r} is not JSON: {error}", fix="text is written in quotes, for example '\"blue\"'"
        ) from error
    if parsed is None:
        raise ConfigurationError("a flag has no null", fix="delete it, or set it with --disabled")
    return parsed


def _described(flag: Flag) -> dict[str, object]:
    return {
        "name": flag.name,
        "value": flag.value,
        "enabled": flag.enabled,
        "rollout": flag.rollout,
        "version": flag.version,
        "deleted": flag.deleted,
        "updated_by": flag.updated_by,
        "updated_at": flag.updated_at,
        "reason": flag.reason,
    }


def _print(found: Sequence[Flag], *, as_json: bool) -> None:
    if as_json:
        print_json([_described(flag) for flag in found])
        return
    if not found:
        output.print("no flags")
        return
    print_table(
        ("name", "value", "state", "rollout %", "version", "by", "at", "reason"),
        (
            (
                flag.name,
                json.dumps(flag.value),
                "deleted" if flag.deleted else "on" if flag.enabled else "disabled",
                f"{flag.rollout:g}",
                flag.version,
                flag.updated_by,
                flag.updated_at.isoformat(timespec="seconds"),
                flag.reason,
            )
            for flag in found
        ),
    )
