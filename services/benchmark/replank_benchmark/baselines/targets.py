"""Reading figures from a target database. Nothing here can change it: read-only, one statement at a time, bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import asyncpg
from pydantic import SecretStr

from replank.contracts.schema import Source
from replank_benchmark.baselines.model import CannotCapture, Capture, RelationFigures, TargetUnavailable

# Names come back quoted by the server that knows the relation: what is put into a statement was never typed by anyone.
_FIND: Final = """
    select format('%I.%I', n.nspname, c.relname) as quoted,
           c.relkind in ('r', 'p', 'v', 'm', 'f') as readable,
           has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as permitted
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = $1 and c.relname = $2
"""
# reltuples is -1 for what was never analysed. A foreign table has no size here: 0.
_FIGURES: Final = """
    select n.nspname as schema, c.relname as name,
           greatest(c.reltuples, 0)::bigint as rows_estimated,
           coalesce(pg_total_relation_size(c.oid), 0) as bytes_total,
           s.seq_scan as sequential_scans, s.idx_scan as index_scans
    from unnest($1::text[], $2::text[]) as wanted (schema, name)
    join pg_namespace n on n.nspname = wanted.schema
    join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
    left join pg_stat_all_tables s on s.relid = c.oid
    order by 1, 2
"""
_EXPLAIN: Final = "explain (verbose, format json) "

# What says something about the source, whatever the state of the server.
_REFUSED: Final = (
    asyncpg.SyntaxOrAccessError,
    asyncpg.DataError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.ReadOnlySQLTransactionError,
)
_MISCONFIGURED: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
)


class Targets:
    """The databases that baselines are captured on, by name; each DSN should be of a role that can only read.

    ``timeout`` (seconds) bounds the capture of one source as a whole.
    """

    def __init__(self, dsns: Mapping[str, SecretStr], *, timeout: float) -> None:
        self._dsns = dsns
        self._timeout = timeout

    async def capture(self, source: Source) -> Capture:
        """Measure a source. Raises `CannotCapture`, and `TargetUnavailable` where a retry may help."""
        dsn = self._dsns.get(source.target)
        if dsn is None:
            raise CannotCapture(
                f"target {source.target!r} is not known", fix="add it to the setting TARGETS of the benchmark service"
            )
        try:
            async with asyncio.timeout(self._timeout):
                return await self._capture(source, dsn)
        except TimeoutError as error:
            raise TargetUnavailable(
                f"target {source.target!r} does not answer, or not within {self._timeout:g} s",
                fix="look whether it is up, or raise TARGET_TIMEOUT",
            ) from error

    async def _capture(self, source: Source, dsn: SecretStr) -> Capture:
        conn = await self._connect(source.target, dsn)
        try:
            async with conn.transaction(readonly=True, isolation="repeatable_read"):
                return await _measure(conn, source)
        except _REFUSED as error:
            raise CannotCapture(f"target {source.target!r} refuses the source: {error}") from error
        except asyncpg.InterfaceError as error:
            # asyncpg's word both for a connection that broke and for a query that wants arguments.
            if conn.is_closed():
                raise TargetUnavailable(f"target {source.target!r} went away while it was read") from error
            raise CannotCapture(f"target {source.target!r} refuses the source: {error.args[0]}") from error
        except (asyncpg.PostgresError, ConnectionError) as error:
            raise TargetUnavailable(f"target {source.target!r} failed while it was read: {error}") from error
        finally:
            conn.terminate()

    async def _connect(self, name: str, dsn: SecretStr) -> asyncpg.Connection:
        milliseconds = str(round(self._timeout * 1000))
        try:
            return await asyncpg.connect(
                dsn.get_secret_value(),
                timeout=self._timeout,
                server_settings={
                    "application_name": "replank-benchmark",
                    "default_transaction_read_only": "on",
                    "statement_timeout": milliseconds,
                    "lock_timeout": milliseconds,
                },
            )
        except _MISCONFIGURED as error:
            raise CannotCapture(
                f"target {name!r} does not let us in: {error}", fix="correct its DSN in the setting TARGETS"
            ) from error
        except TimeoutError:
            raise  # said by the caller
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise TargetUnavailable(f"target {name!r} does not answer: {error}") from error


async def _measure(conn: asyncpg.Connection, source: Source) -> Capture:
    query = await _whole_table(conn, source) if source.query is None else _whole_query(source.query)
    # asyncpg prepares it, so the server takes exactly one statement, and without `analyze` it runs none.
    explain: dict[str, Any] = json.loads(await conn.fetchval(_EXPLAIN + query))[0]
    names = sorted(set(_relations(explain["Plan"])))
    rows = await conn.fetch(_FIGURES, [schema for schema, _ in names], [name for _, name in names])
    return Capture(explain=explain, relations=[RelationFigures(**row) for row in rows])


async def _whole_table(conn: asyncpg.Connection, source: Source) -> str:
    given = source.table or ""
    schema, _, name = given.rpartition(".")
    row = await conn.fetchrow(_FIND, schema or "public", name)
    if row is None or not row["readable"]:
        raise CannotCapture(f"target {source.target!r} has no table or view {given!r}")
    if not row["permitted"]:
        raise CannotCapture(
            f"target {source.target!r} does not let us read {given!r}",
            fix="grant select on it to the role of the target's DSN",
        )
    return f"select * from {row['quoted']}"  # noqa: S608 - the server quoted it


def _whole_query(query: str) -> str:
    # As a sub-select it cannot be anything but a query; the line break ends a comment that the query may end in.
    return f"select * from ({query}\n) as source"  # noqa: S608 - explained, never run, by a role that can only read


def _relations(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "Relation Name" in node:
        yield node["Schema"], node["Relation Name"]
    for child in node.get("Plans", ()):
        yield from _relations(child)
