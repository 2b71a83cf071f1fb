"""The programs of a stack, services and examples: what each owns, and the environment it is started with."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from replank_local.credentials import ADMIN, AUDIENCE, ISSUER, Secrets
from replank_local.endpoints import S3_ACCESS_KEY, Endpoints
from replank_local.places import CHECKOUT
from replank_local.ports import HOST
from replank_local.unit import Command, Place, Unit, http_ok

READER: Final = "replank_benchmark_reader"
"""The role by which the benchmark service reads its targets: it may look, and change nothing."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service, or an example that runs like one. Everything it owns is named after it."""

    name: str
    port: int
    """The port it has when that is free."""
    databases: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Its databases, by the setting that names each. Without a word there is one, named after it: ``DSN``."""
    has_bucket: bool = True
    """Whether it reaches the object store as the store's administrator, with a bucket named after it."""

    def __post_init__(self) -> None:
        if not self.databases:
            object.__setattr__(self, "databases", {"DSN": self.module})

    @property
    def _identifier(self) -> str:
        return self.name.replace("-", "_")

    @property
    def module(self) -> str:
        return f"replank_{self._identifier}"

    @property
    def database(self) -> str:
        """The database with its outbox, which its migrations are for."""
        return self.databases["DSN"]

    @property
    def role(self) -> str:
        return self.module

    @property
    def prefix(self) -> str:
        """What the names of its environment variables begin with."""
        return f"REPLANK_{self._identifier.upper()}"

    @property
    def bucket(self) -> str:
        return f"replank-{self.name}"

    @property
    def folder(self) -> Path | None:
        """Where its code is; None when it is not installed in this environment."""
        found = importlib.util.find_spec(self.module)
        return Path(found.origin).parent if found is not None and found.origin is not None else None

    @property
    def has_post_migrations(self) -> bool:
        """Whether any migration waits until the service's new code runs. Asking the service takes seconds."""
        return self.folder is not None and any((self.folder / "migrations").glob("*_post_*.sql"))


SERVICES: Final[dict[str, Service]] = {
    service.name: service
    for service in (
        # Its vault has accounts and buckets of its own: one that reached everything would undo that.
        Service("schema", 28101, has_bucket=False),
        Service("auth-cache", 28102),
        Service("benchmark", 28103),
        Service("archiver", 28104),
    )
}
"""The product."""

STOREFRONT: Final = Service(
    "storefront", 28201, databases={"DSN": "replank_storefront_kv", "TABLES_DSN": "replank_storefront"}
)
EXAMPLES: Final[dict[str, Service]] = {STOREFRONT.name: STOREFRONT}
"""Programs of somebody who uses the product: they get what a service gets, but for cache and objects."""

PROGRAMS: Final[dict[str, Service]] = SERVICES | EXAMPLES
"""Everything that the stack runs beside its servers."""

MOVABLE: Final[dict[str, str]] = {
    "storefront-kv": STOREFRONT.databases["DSN"],
    "storefront": STOREFRONT.databases["TABLES_DSN"],
}
"""The databases of the storefront, by the name under which a migration calls each its source or target."""


@dataclass(frozen=True, slots=True)
class Vault:
    """What one mode of the schema service's vault has of its own, so that a mistake in it cannot reach the other."""

    mode: str

    @property
    def role(self) -> str:
        """Its role in the schema service's database."""
        return f"replank_vault_{self.mode}"

    @property
    def access_key(self) -> str:
        """Its account at the object store."""
        return f"vault-{self.mode}"

    @property
    def secret(self) -> str:
        """The name of the account's secret key among the stack's passwords."""
        return f"s3-{self.access_key}"

    @property
    def bucket(self) -> str:
        """The bucket that the account owns."""
        return f"replank-vault-{self.mode}"


VAULTS: Final = (Vault("standard"), Vault("pro"))

READABLE: Final[dict[str, str]] = {"schema": SERVICES["schema"].database, **MOVABLE}
"""The databases that the benchmark service measures, by the name it knows each under."""

_FIRST_TUPLES: Final = [
    {"user": ADMIN, "relation": "plan", "object": "system:replank"},
    *(
        {"user": ADMIN, "relation": relation, "object": f"vault:{vault.mode}"}
        for vault in VAULTS
        for relation in ("view", "publish", "admin")
    ),
    # It fetches what the vault gives away.
    *({"user": "service:archiver", "relation": "view", "object": f"vault:{vault.mode}"} for vault in VAULTS),
]


def dsns(service: Service, endpoints: Endpoints) -> dict[str, str]:
    """The databases of a program, by the setting that names each, as their owner reaches them."""
    return {
        setting: endpoints.postgres(role=service.role, database=name) for setting, name in service.databases.items()
    }


def environment(service: Service, endpoints: Endpoints, secrets: Secrets) -> dict[str, str]:
    """The variables that a program is configured by, without anything of the caller's own environment."""
    settings = {
        **dsns(service, endpoints),
        "KAFKA": endpoints.kafka,
        "OTLP_ENDPOINT": endpoints.otlp,
        # A shop under load traces one request in a hundred; one that comes with a sampled trace is always traced.
        "TRACE_SAMPLE": "0.01" if service.name in EXAMPLES else "1.0",
        "HTTP_HOST": HOST,
        "HTTP_PORT": str(endpoints.ports[service.name]),
        "AUTH_ISSUER": ISSUER,
        "AUTH_AUDIENCE": AUDIENCE,
        "AUTH_JWKS": str(secrets.jwks),
        "AUTHZ_URL": endpoints.http("auth-cache"),
        "SERVICE_TOKEN_FILE": str(secrets.token_file(service.name)),
    }
    if service.name in SERVICES:
        settings |= {"VALKEY_URL": endpoints.valkey("authorization"), "S3_URL": endpoints.s3}
    if service.name in SERVICES and service.has_bucket:
        settings |= {
            "S3_ACCESS_KEY": S3_ACCESS_KEY,
            "S3_SECRET_KEY": endpoints.s3_secret_key,
            "S3_BUCKET": service.bucket,
        }
    if service.name == "schema":
        # As their owner: the service makes tables, triggers and functions there.
        movable = {name: endpoints.postgres(role=STOREFRONT.role, database=made) for name, made in MOVABLE.items()}
        settings["DATABASES"] = json.dumps(movable)
        settings["VAULT"] = json.dumps({vault.mode: _vault(vault, service, endpoints, secrets) for vault in VAULTS})
    if service.name == "archiver":
        settings["SCHEMA_URL"] = endpoints.http("schema")
    if service.name == "auth-cache":
        # Nobody may do anything before somebody may: the administrator of this stack is the first.
        settings["BOOTSTRAP_TUPLES"] = json.dumps(_FIRST_TUPLES)
    if service.name == "benchmark":
        targets = {name: endpoints.postgres(role=READER, database=made) for name, made in READABLE.items()}
        settings["TARGETS"] = json.dumps(targets)
    return {f"{service.prefix}_{name}": value for name, value in settings.items()}


def _vault(vault: Vault, schema: Service, endpoints: Endpoints, secrets: Secrets) -> dict[str, str]:
    return {
        "dsn": endpoints.postgres(role=vault.role, database=schema.database),
        "s3_access_key": vault.access_key,
        "s3_secret_key": secrets.password(vault.secret),
        "s3_bucket": vault.bucket,
    }


def shell_file(variables: Mapping[str, str]) -> str:
    """The variables as lines that a shell can source."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def unit(service: Service) -> Unit:
    """The process of a program."""

    async def prepare(place: Place) -> Command:
        return Command(
            argv=[sys.executable, "-m", service.module, "serve"],
            cwd=CHECKOUT,
            environment=environment(service, place.endpoints, place.secrets),
        )

    async def ready(place: Place) -> bool:
        return await http_ok(place.ports[service.name], "/readyz")

    return Unit(name=service.name, ports={service.name: service.port}, prepare=prepare, ready=ready)


UNITS: Final = tuple(unit(program) for program in PROGRAMS.values())
