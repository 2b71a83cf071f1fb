"""Commands about a mapping alone: propose one, check it, show what it compiles to. None of them changes anything."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from pydantic import ValidationError

from replank.errors import ConfigurationError, ReplankError
from replank.migrate.compile import Compiled
from replank.migrate.compile import compile as compiled
from replank.migrate.infer import Proposal
from replank.migrate.infer import infer as propose
from replank.migrate.mapping import InvalidMapping, Mapping, Source, load
from replank_cli.connection import Dsn, Service, connect, dsn_of
from replank_cli.console import errors, print_json, print_table
from replank_cli.migrate import checking
from replank_cli.migrate import sample as samples

File: TypeAlias = Annotated[Path, typer.Argument(help="The mapping, YAML.", show_default=False)]


class Part(StrEnum):
    """A part of what a mapping compiles to."""

    TABLES = "tables"
    FUNCTIONS = "functions"
    INDEXES = "indexes"
    CONSTRAINTS = "constraints"
    DROP = "drop"


def infer(
    dsn: Dsn = None,
    service: Service = None,
    table: Annotated[str, typer.Option(help="The key-value table, with its schema if need be.")] = "kv_store",
    key: Annotated[str, typer.Option(help="Its text column that is the primary key.")] = "key",
    value: Annotated[str, typer.Option(help="Its jsonb column.")] = "value",
    sample: Annotated[int, typer.Option(min=1, max=1_000_000, help="So many records are read.")] = 20_000,
    name: Annotated[str, typer.Option(help="What the migration shall be called.")] = "migration",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new file for it; without, it is printed.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Propose a mapping from a sample of the store: entities, tables, types, references, and what is dirty.

    Reads only. Of a large table random pages are read; half of the sample is taken in turn from each kind of key, so
    that a kind of which there is little is met. The proposal is exact: what would be lost is in comments, for you to
    decide. Read it, correct it, then `check` it.
    """
    if out is not None and out.exists() and not force:
        raise ConfigurationError(f"{out} is there already", fix="name another file, or give --force")
    store = _source(table, key, value)
    rows = asyncio.run(_sampled(dsn_of(dsn, service), store, sample))
    # Decimals stay as they are written: a float would have more or fewer of them.
    records = ((found, json.loads(text, parse_float=Decimal)) for found, text in rows)
    try:
        proposal = propose(records, name=name, source=store)
    except ValueError as error:
        raise ReplankError(f"nothing can be proposed: {error}", fix="see that the table holds JSON objects") from error
    if out is None:
        typer.echo(proposal.text)
    else:
        out.write_text(proposal.text, encoding="utf-8")
    _tell(proposal, out)


def _source(table: str, key: str, value: str) -> Source:
    try:
        return Source(table=table, key=key, value=value)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigurationError(
            f"--{fault['loc'][0]}: {fault['msg'].removeprefix('Value error, ')}", fix="name it as Postgres does"
        ) from error


async def _sampled(dsn: str, store: Source, wanted: int) -> list[tuple[str, str]]:
    async with connect(dsn) as conn:
        return await samples.read(conn, store, wanted)


def _tell(proposal: Proposal, out: Path | None) -> None:
    entities = len(proposal.mapping.entities)
    where = f", written to {out}" if out is not None else ""
    # Beside the proposal itself, which may be going into a file.
    errors.print(f"{entities} entities in {proposal.records:,} records{where}", markup=False, highlight=False)
    if proposal.findings:
        print_table(
            ("entity", "field", "look at", "records", "of"),
            ((one.entity, one.path, one.what, one.records, one.of) for one in proposal.findings),
            console=errors,
        )


def sql(
    mapping: File,
    only: Annotated[Part | None, typer.Option(help="Only this part.", show_default=False)] = None,
) -> None:
    """Print the SQL that a mapping compiles to, in the order in which a migration runs it.

    It is the only place where a conversion is written: backfill, capture, comparison and the way back all use it.
    """
    found = compiled(_mapping_in(mapping))
    wanted = [only] if only is not None else [part for part in Part if part is not Part.DROP]
    # Not through Rich: it is for psql and diff, and long.
    typer.echo("\n\n".join(_sql_of(found, part) for part in wanted))


def check(
    mapping: File,
    source: Annotated[str | None, typer.Option(help="DSN of the key-value store.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="DSN of the tables' database.", show_default=False)] = None,
    sample: Annotated[int, typer.Option(min=1, max=100_000, help="So many records are tried, with both DSNs.")] = 1000,
    max_rejects: Annotated[float, typer.Option(min=0, max=1, help="The share of them that may be rejected.")] = 0.02,
    same_transaction: Annotated[bool, typer.Option("--same-transaction", help="As it will be planned.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Say whether a mapping can be carried out. Exit status 1 if it cannot.

    With DSNs: whether both databases can be what it takes them for (tables, privileges, primary key); and a sample of
    the store goes there and back through the very functions that will move it, in a transaction of the target's that is
    rolled back. exact: it comes back as it was. lenient: but for what the mapping lets be lost. rejected: it cannot be
    converted, and will be in the tables only once it is mended. Nothing stays in either database.
    """
    read = _mapping_in(mapping)
    found = asyncio.run(checking.check(read, source, target, sample=sample, same_transaction=same_transaction))
    if as_json:
        print_json(checking.as_json(found))
    else:
        checking.show(found)
    if not found.passed(max_rejects):
        raise typer.Exit(1)


def _sql_of(found: Compiled, part: Part) -> str:
    match part:
        case Part.TABLES:
            return _section("tables, made by start", [table.create for table in found.tables])
        case Part.FUNCTIONS:
            return _section("functions in the migration's own schema, made by start", [found.functions])
        case Part.INDEXES:
            return _section(
                "indexes, built before the reads move; outside of a transaction",
                [index.create for index in found.indexes],
            )
        case Part.CONSTRAINTS:
            steps = [step for one in found.constraints for step in (one.add, one.validate, *one.finish)]
            return _section("constraints, added and validated before completion", steps)
        case Part.DROP:
            return _section("what takes it all away", [*(table.drop for table in reversed(found.tables)), found.drop])


def _section(title: str, statements: list[str]) -> str:
    shown = [statement.strip().removesuffix(";") + ";" for statement in statements]
    return "\n\n".join([f"-- {title}", *(shown or ["-- none"])])


def text_of(path: Path) -> str:
    """What is in a file. Raises `ConfigurationError` for one that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}", fix="give the path of a mapping") from error


def _mapping_in(path: Path) -> Mapping:
    try:
        return load(text_of(path))
    except InvalidMapping as error:
        raise ReplankError(
            "\n".join([f"{path} is refused", *(f"  {fault}" for fault in error.faults)]), fix=error.fix
        ) from error
