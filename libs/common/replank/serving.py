"""The command line that every service has: ``python -m <package> [serve | migrate pre|post | describe FOLDER]``."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg

from replank import declaration, flags, inbox, outbox
from replank.connection import Connection
from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError
from replank.postgres import MigrationReport, idempotency, migrate
from replank.postgres.migrations import Phase
from replank.settings import EventServiceSettings

# Web framework, Kafka clients and OpenTelemetry's SDK are imported by the commands that need them: with them a
# migration takes three times as long, nearly all of it imports.
if TYPE_CHECKING:
    from replank.service import Service

Settings = TypeVar("Settings", bound=EventServiceSettings)

# Enough to put a service together that is only described: it opens nothing.
_NOWHERE: Final[dict[str, Any]] = {
    "dsn": "postgresql://nowhere/none",
    "kafka": "nowhere:9092",
    "auth_issuer": "none",
    "auth_audience": "none",
    "auth_jwks": "none",
    "authz_url": "http://nowhere",
    "service_token_file": "none",
    "s3_url": "http://nowhere",
    "s3_access_key": "none",
    "s3_secret_key": "none",
    "s3_bucket": "none",
}


def main(
    package: str,
    settings: type[Settings],
    compose: Callable[[Settings], Service],
    *,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a service's command; returns the process's exit code. What is wrong is said on stderr, in one line."""
    parser = argparse.ArgumentParser(prog=f"python -m {package}")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="run the service (the default)")
    migrating = commands.add_parser("migrate", help="bring the service's database up to date")
    migrating.add_argument("phase", choices=["pre", "post"], help="before new code starts, or after old code is gone")
    describing = commands.add_parser("describe", help="write the OpenAPI and AsyncAPI documents")
    describing.add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    try:
        match given.command:
            case "migrate":
                report = asyncio.run(migrate_database(settings.load().dsn.get_secret_value(), package, given.phase))
                print(f"{package}: applied {len(report.applied)} of phase {given.phase}, {len(report.waiting)} to come")
            case "describe":
                _describe(described(settings, compose), given.folder)
            case _:
                serve(compose(settings.load()))
    except ReplankError as error:
        print(f"{package}: {error}", file=sys.stderr)
        return 1
    return 0


def serve(service: Service) -> None:
    """Run a service until SIGTERM or SIGINT. Blocks."""
    from replank.http import run  # noqa: PLC0415
    from replank.telemetry.setup import TelemetrySettings, setup  # noqa: PLC0415

    settings = service.settings
    telemetry = setup(
        TelemetrySettings(
            service_name=service.name,
            otlp_endpoint=settings.otlp_endpoint,
            sample_ratio=settings.trace_sample,
            log_level=settings.log_level,
            service_version=version("replank"),
            environment=settings.environment,
        )
    )
    try:
        run(
            service.app(),
            host=settings.http_host,
            port=settings.http_port,
            shutdown_timeout=settings.shutdown_timeout,
        )
    finally:
        telemetry.shutdown()


async def prepare(conn: Connection) -> None:
    """Install or upgrade what the library keeps in a service's database.

    That is outbox, inbox, flags, idempotency keys, and which contracts were declared.
    """
    await outbox.install(conn)
    await inbox.install(conn)
    await flags.install(conn)
    await idempotency.install(conn)
    await declaration.install(conn)


async def migrate_database(dsn: str, package: str, phase: Phase) -> MigrationReport:
    """Run one phase of a service's migrations; before the ``pre`` phase also `prepare`.

    Raises `DependencyUnavailable`, `ConfigurationError` and `replank.postgres.MigrationError`.
    """
    if phase == "pre":
        try:
            conn = await asyncpg.connect(dsn, timeout=10)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DependencyUnavailable(
                "postgres", f"the database cannot be reached: {error}", fix="check that its server is up, and the DSN"
            ) from error
        try:
            await prepare(conn)
        except asyncpg.PostgresError as error:
            raise ConfigurationError(
                f"the outbox, the inbox and the flags cannot be installed: {error}",
                fix="migrate as the owner of the database; if a lock was not to be had, try again",
            ) from error
        finally:
            await conn.close()
    return await migrate(dsn, package, phase)


def described(settings: type[Settings], compose: Callable[[Settings], Service]) -> dict[Path, dict[str, Any]]:
    """The documents of a service, by where they belong below ``docs/reference``. Asks no server and no environment."""
    service = compose(settings.model_validate({**_NOWHERE, **settings.elsewhere}))
    about = importlib.import_module(service.package).__doc__ or ""
    name = f"{service.name}.json"
    return {
        Path("asyncapi", name): service.asyncapi(about.strip()),
        Path("openapi", name): service.app().openapi(),
    }


def _describe(found: Mapping[Path, dict[str, Any]], folder: Path) -> None:
    from replank.contracts import documents  # noqa: PLC0415

    # The AsyncAPI document comes first, and is refused if it would break its readers.
    for path, document in found.items():
        documents.write(document, folder / path)
