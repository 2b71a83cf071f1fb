"""The four services as processes on servers of their own: all of the product, in a folder that ends with the test."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
import httpx

from replank.serving import migrate_database
from replank.testing import eventually
from replank_local import Stack, services
from replank_local.credentials import ADMIN
from replank_local.provision import provision
from replank_local.servers import TEST_SERVERS
from replank_local.services import SERVICES, Service

OWNER: Final = "user:ada"
DRAFT: Final[dict[str, Any]] = {
    "owner": OWNER,
    # Databases that benchmark may read. The table is a real one: schema's own list of plans.
    "source": "schema",
    "target": "schema",
    "mapping": {
        "mapping": 1,
        "name": "storefront_orders",
        "source": {"table": "public.migration", "key": "key", "value": "value"},
        "entities": {
            "order": {
                "key": "order:{id}",
                "table": "orders",
                "columns": {"id": {"key": "id", "type": "text"}},
                "primary_key": ["id"],
                "rest": "rest",
            }
        },
    },
}


class System:
    """What a client and an operator of the running services can do."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def url(self, service: str) -> str:
        """Where a service listens."""
        return self.stack.endpoints.http(service)

    def token(self, subject: str = ADMIN) -> str:
        """A bearer token that the services accept."""
        return self.stack.secrets.token(subject)

    def client(self, service: str, *, token: str | None = None) -> httpx.AsyncClient:
        """A client of one service: with a token of the administrator's, with another one, or (empty) with none."""
        token = self.token() if token is None else token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # Without TLS: reading the system's certificates would take most of a client's time.
        return httpx.AsyncClient(base_url=self.url(service), headers=headers, timeout=20.0, verify=False)

    async def plan(self, draft: Any = DRAFT, *, key: str | None = None, token: str | None = None) -> httpx.Response:
        """Ask schema to plan a migration."""
        async with self.client("schema", token=token) as client:
            return await client.post("/v1/migrations", json=draft, headers={"idempotency-key": key or str(uuid4())})

    async def get(self, service: str, path: str) -> Any:
        """What a service answers; `AssertionError` for anything but 200."""
        async with self.client(service) as client:
            answer = await client.get(path)
        assert answer.status_code == 200, f"{service} answered {answer.status_code} to {path}: {answer.text}"
        return answer.json()

    async def ready(self, migration_id: str, *, within: float = 60.0) -> dict[str, Any]:
        """Wait until a migration is ready, and return it."""

        async def look() -> dict[str, Any]:
            found: dict[str, Any] = await self.get("schema", f"/v1/migrations/{migration_id}")
            assert found["ready"], found["readiness"]
            return found

        return await eventually(look, f"migration {migration_id} is ready", within=within, interval=0.1)

    async def fetch(self, service: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Rows of a service's own database. `AssertionError` when it does not answer, so that it can be asked again."""
        return await fetch(self.stack.endpoints.postgres(database=SERVICES[service].database), statement, *arguments)

    async def written(self) -> tuple[int, int]:
        """How many migrations and how many events of its own, but for those about contracts, schema ever committed."""
        (row,) = await self.fetch(
            "schema",
            "select (select count(*) from migration) as migrations, "
            "(select count(*) from replank_outbox.event where topic <> 'replank.contracts' "
            "and type <> 'replank.schema.version.published.v1') as events",
        )
        return row["migrations"], row["events"]

    def logs(self, service: str) -> str:
        """Everything that a service wrote to its log so far."""
        return self.stack.log(service).read_text()


async def fetch(dsn: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Rows, over a connection of its own. A server that does not answer is an `AssertionError`: ask again."""
    try:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close(timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError) as error:
        raise AssertionError(f"Postgres does not answer: {error!r}") from error


@contextmanager
def stack_folder(logs: Path) -> Iterator[Path]:
    """A folder for a stack, gone afterwards but for the stack's log files, which are moved to ``logs``.

    It is not one of pytest's: those are private, again and again made so by every run of pytest of this user, and the
    account that Postgres runs as has to pass through it.
    """
    root = Path(tempfile.mkdtemp(prefix="replank-"))
    root.chmod(0o711)
    try:
        yield root
    finally:
        if (root / "logs").exists():
            shutil.move(root / "logs", logs)
        shutil.rmtree(root)


@asynccontextmanager
async def running(logs: Path, *examples: Service) -> AsyncIterator[System]:
    """Servers, databases, migrations and services, as ``make up`` makes them, and these of the examples.

    Their logs outlive the context.
    """
    with stack_folder(logs) as root:
        async with Stack(root, servers=TEST_SERVERS, units=services.UNITS) as stack:
            await _bring_up(stack, [*SERVICES.values(), *examples])
            yield System(stack)


async def _bring_up(stack: Stack, programs: Sequence[Service]) -> None:
    names = [program.name for program in programs]
    stack.claim_ports(*names)
    stack.secrets.renew_tokens(names)
    await provision(stack.endpoints, stack.secrets)
    await asyncio.gather(
        *(
            migrate_database(
                stack.endpoints.postgres(role=program.role, database=program.database), program.module, "pre"
            )
            for program in programs
        )
    )
    await stack.start(*names)
