"""Settings of a service, read from the environment alone.

A service subclasses `ServiceSettings`, gives its prefix, adds its own fields, and loads once at its start::

    class ArchiverSettings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="REPLANK_ARCHIVER_")
        batch_rows: int = 10_000

    settings = ArchiverSettings.load()

Nested fields are joined by two underscores: ``REPLANK_ARCHIVER_POOLS__READ_HEAVY__MAX_SIZE=8``.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from replank.errors import ConfigurationError
from replank.inbox.settings import InboxSettings
from replank.outbox.settings import RelaySettings
from replank.postgres.pools import PoolsSettings

_log = logging.getLogger(__name__)

_NESTED: Final = "__"
# What a container platform adds for a service of the same name, and what `make env` exports for clients.
_NOT_OURS: Final = re.compile(r"URL|PORT(_\d+_TCP.*)?|SERVICE_(HOST|PORT.*)")
_BROKER: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):\d{1,5}")


def _postgres_url(value: SecretStr) -> SecretStr:
    if urlsplit(value.get_secret_value()).scheme not in {"postgresql", "postgres"}:
        raise ValueError("is not a postgresql:// URL")
    return value


def _valkey_url(value: SecretStr) -> SecretStr:
    if urlsplit(value.get_secret_value()).scheme not in {"redis", "rediss", "valkey", "valkeys", "unix"}:
        raise ValueError("is not a redis:// or valkey:// URL")
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("is not an http:// or https:// URL")
    if parts.username or parts.password:
        raise ValueError("carries a user or a password; give credentials in their own variable")
    return value.rstrip("/")


def _brokers(value: str) -> str:
    for broker in value.split(","):
        if not _BROKER.fullmatch(broker.strip()):
            raise ValueError("is not a list of host:port, separated by commas")
    return value


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
ValkeyUrl = Annotated[SecretStr, AfterValidator(_valkey_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Brokers = Annotated[str, AfterValidator(_brokers)]


class ServiceSettings(BaseSettings):
    """What every service is told. A subclass sets ``env_prefix``; secrets never appear in ``repr`` or errors."""

    model_config = SettingsConfigDict(
        env_nested_delimiter=_NESTED,
        nested_model_default_partial_update=True,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
    )

    elsewhere: ClassVar[Mapping[str, Any]] = {}
    """What a service needs beside what all need, as it is given where it is only described."""

    dsn: PostgresUrl
    replica_dsn: PostgresUrl | None = None
    pools: PoolsSettings = PoolsSettings()
    kafka: Brokers
    """Bootstrap servers."""

    otlp_endpoint: HttpUrl | None = None
    """Base URL of an OTLP/HTTP collector; without one nothing is exported."""
    trace_sample: float = Field(default=1.0, ge=0.0, le=1.0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    environment: str = "local"

    http_host: str = "127.0.0.1"
    http_port: int = Field(default=0, ge=0, le=65535)
    """0 takes any free port."""
    http_metrics_open: bool = True
    """Whether ``/metrics`` answers without a token."""
    http_max_body: int = Field(default=1024 * 1024, ge=1024)
    """Largest request body in bytes."""
    shutdown_timeout: float = Field(default=20.0, gt=0, le=3600)
    """How long requests in flight may take to finish after SIGTERM, in seconds."""

    auth_issuer: str = Field(min_length=1)
    auth_audience: str = Field(min_length=1)
    auth_jwks: str = Field(min_length=1)
    """JSON Web Key Set that bearer tokens are checked against: a file's path or an http(s) URL."""
    authz_url: HttpUrl | None = None
    """Where auth-cache answers."""
    service_token_file: Path | None = None
    """File with the bearer token that this service calls others with; read again when it changes."""

    valkey_url: ValkeyUrl | None = None
    s3_url: HttpUrl | None = None
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    s3_bucket: str | None = None

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment; what is ``given`` by name goes before it.

        Raises `ConfigurationError` that names every variable at fault and what is wrong with it, never its value.
        Variables with the prefix that mean nothing are logged: most are misspelt.
        """
        try:
            settings = cls(**given)
        except ValidationError as error:
            faults = [
                f"{cls.variable(*fault['loc'])} {_what_is_wrong(fault['type'], fault['msg'])}"
                for fault in error.errors(include_url=False, include_context=False, include_input=False)
            ]
            raise ConfigurationError("; ".join(faults), fix="set these environment variables and start again") from None
        except SettingsError as error:
            field = re.search(r'field "(\w+)"', str(error))
            name = cls.variable(field[1]) if field else f"a variable that starts with {cls._prefix()}"
            raise ConfigurationError(f"{name} is not valid JSON") from None
        for name in cls.unknown_variables():
            known = difflib.get_close_matches(name, [cls.variable(field) for field in cls.model_fields], n=1)
            _log.warning("%s means nothing%s", name, f"; did you mean {known[0]}?" if known else "")
        return settings

    @classmethod
    def variable(cls, *path: str | int) -> str:
        """The environment variable of a field: ``variable("pools", "read_heavy", "max_size")``."""
        return cls._prefix() + _NESTED.join(str(part) for part in path).upper()

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """Variables of the environment that start with this service's prefix and belong to no field."""
        known = {name.upper() for name in cls.model_fields}
        prefix = cls._prefix()
        return sorted(
            name
            for name in os.environ
            if name.upper().startswith(prefix)
            and name.upper()[len(prefix) :].split(_NESTED)[0] not in known
            and not _NOT_OURS.fullmatch(name.upper()[len(prefix) :])
        )

    @classmethod
    def _prefix(cls) -> str:
        return cls.model_config.get("env_prefix", "").upper()


class EventServiceSettings(ServiceSettings):
    """What a service with an outbox and an inbox is told."""

    run_relay: bool = True
    """Whether this process publishes the service's events. Otherwise another one must: ``replank relay run``."""
    relay: RelaySettings = RelaySettings()
    inbox: InboxSettings = InboxSettings(usage_interval=timedelta(minutes=1))


def _what_is_wrong(kind: str, message: str) -> str:
    if kind == "missing":
        return "is not set"
    if kind == "extra_forbidden":
        return "means nothing"
    return message.removeprefix("Value error, ").replace("Input should be", "should be", 1)
