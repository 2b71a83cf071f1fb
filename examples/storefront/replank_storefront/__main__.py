"""``python -m replank_storefront serve | migrate | seed | drive | audit``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg

from replank import serving
from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError
from replank_storefront.settings import StorefrontSettings

if TYPE_CHECKING:
    from replank.service import Service

_PACKAGE: Final = "replank_storefront"
_OF_A_SERVICE: Final = ("serve", "migrate", "describe")


def main() -> None:
    """The command of the shop."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command; returns the process's exit code. What is wrong is said on stderr, in one line."""
    given = _parser().parse_args(arguments)
    try:
        match given.command:
            case "seed":
                return asyncio.run(_seed(given))
            case "drive":
                return asyncio.run(_drive(given))
            case "audit":
                return asyncio.run(_audit(given))
            case "migrate" if given.rest == ["pre"]:
                asyncio.run(_prepare_tables())
    except ReplankError as error:
        print(f"{_PACKAGE}: {error}", file=sys.stderr)
        return 1
    return serving.main(_PACKAGE, StorefrontSettings, _compose, arguments=[given.command, *given.rest])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {_PACKAGE}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("serve", "run the shop"),
        ("migrate", "pre|post: bring its databases up to date"),
        ("describe", "FOLDER: write the OpenAPI and AsyncAPI documents"),
    ):
        commands.add_parser(name, help=text).add_argument("rest", nargs="*")

    seeding = commands.add_parser("seed", help="fill the key-value table of a new shop")
    seeding.add_argument("--records", type=int, default=200_000)
    seeding.add_argument("--seed", type=int, default=1, help="another number, another shop")
    seeding.add_argument("--largest-client-orders", type=int, help="how many orders the largest client has")
    seeding.add_argument("--planted", type=Path, help="write the keys of the dirty records there, as JSON")

    driving = commands.add_parser("drive", help="live traffic that checks every answer")
    driving.add_argument("--url", required=True, help="where the shop answers")
    driving.add_argument("--token-file", type=Path, required=True, help="file with the bearer token")
    driving.add_argument("--workers", type=int, default=8)
    driving.add_argument("--rate", type=float, help="requests per second of all workers together; default: no pause")
    driving.add_argument("--seconds", type=float, help="stop after this long; default: at SIGTERM")
    driving.add_argument("--requests", type=int, help="stop after so many requests")
    driving.add_argument("--seed", type=int, default=1)
    driving.add_argument("--patience", type=float, default=60.0, help="how long one request may be retried, in seconds")
    driving.add_argument("--products", type=int, default=20, help="how many products each worker starts with")
    driving.add_argument("--live", type=float, metavar="SECONDS", help="print the numbers this often, a line each")
    driving.add_argument("--model", type=Path, help="write what must be true at the end there, for `audit`")

    auditing = commands.add_parser("audit", help="hold a store to what `drive` wrote")
    auditing.add_argument("--store", choices=["kv", "tables"], required=True)
    auditing.add_argument("--model", type=Path, action="append", required=True, help="may be repeated")
    return parser


def _compose(settings: StorefrontSettings) -> Service:
    # Not at the top: no other command needs what serving does.
    from replank_storefront.application import compose  # noqa: PLC0415

    return compose(settings)


async def _connect(field: str) -> asyncpg.Connection:
    """A connection to the database that this field of the settings names; nothing else needs to be set."""
    variable = StorefrontSettings.variable(field)
    dsn = os.environ.get(variable)
    if not dsn:
        raise ConfigurationError(f"{variable} is not set", fix="set it to the database's DSN")
    try:
        return await asyncpg.connect(dsn, timeout=10)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise DependencyUnavailable(
            "postgres", f"the database of {variable} cannot be reached: {error}", fix="check that its server is up"
        ) from error


async def _prepare_tables() -> None:
    """What the tables need of their database before a migration makes them."""
    conn = await _connect("tables_dsn")
    try:
        await conn.execute("create extension if not exists pg_trgm")
    except asyncpg.PostgresError as error:
        raise ConfigurationError(
            f"the extension pg_trgm cannot be created: {error}", fix="migrate as the owner of the database"
        ) from error
    finally:
        await conn.close()


async def _seed(given: argparse.Namespace) -> int:
    from replank_storefront.generate import Sizes  # noqa: PLC0415
    from replank_storefront.seed import seed  # noqa: PLC0415

    try:
        sizes = Sizes.of(given.records, largest_client_orders=given.largest_client_orders)
    except ValueError as error:
        raise ConfigurationError(str(error), fix="choose another number of records") from None
    conn = await _connect("dsn")
    try:
        planted = await seed(conn, sizes, given.seed)
    finally:
        await conn.close()
    if given.planted is not None:
        keys = {kind.label: keys for kind, keys in planted.keys.items()}
        given.planted.write_text(json.dumps(keys, indent=1) + "\n")
    print(json.dumps({"records": sizes.total, "planted": planted.counts()}))
    return 0


async def _drive(given: argparse.Namespace) -> int:
    from replank_storefront.drive import Limits, drive_until_signal  # noqa: PLC0415

    limits = Limits(
        workers=given.workers,
        rate=given.rate,
        seconds=given.seconds,
        requests=given.requests,
        patience=given.patience,
        products=given.products,
    )
    result = await drive_until_signal(
        given.url, given.token_file, limits, seed=given.seed, live=given.live, model=given.model
    )
    print(json.dumps(result.as_json()))
    return 0 if result.clean else 1


async def _audit(given: argparse.Namespace) -> int:
    from replank_storefront.audit import audit, read_truth  # noqa: PLC0415

    truth = await read_truth(given.model)
    conn = await _connect("dsn" if given.store == "kv" else "tables_dsn")
    try:
        found = await audit(conn, given.store, truth)
    finally:
        await conn.close()
    print(json.dumps(found.as_json()))
    return 0 if not found.wrong else 1


if __name__ == "__main__":
    main()
