"""Postgres for services: named pools by workload, and plain-SQL migrations in two phases."""

from replank.postgres.migrations import Migration, MigrationError, MigrationReport, migrate, pending
from replank.postgres.pools import Pool, PoolExhausted, Pools, PoolSettings, PoolsSettings

__all__ = [
    "Migration",
    "MigrationError",
    "MigrationReport",
    "Pool",
    "PoolExhausted",
    "PoolSettings",
    "Pools",
    "PoolsSettings",
    "migrate",
    "pending",
]
