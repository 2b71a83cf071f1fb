"""Every Prometheus metric of Replank, one constant each: nothing else constructs one.

Add yours to its section. Labels are the fields of a ``NamedTuple``; keep them few and bounded (a topic, a shard, an
outcome; never an id, a key or an error's text). ``python -m replank.telemetry.metrics`` prints the reference page
``docs/reference/metrics.md``.

Imports prometheus_client alone, so that the relay can be metered without the rest of the telemetry.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from replank.telemetry.registry import LONG_SECONDS, SECONDS, Counter, Gauge, Histogram, as_markdown


class Reason(NamedTuple):
    """Why something was not done, as one of a few fixed words."""

    reason: str


# --- telemetry ---

SPANS_EXPORTED: Final = Counter("replank_telemetry_exported_spans_total", "Spans that the collector accepted.")
SPANS_DROPPED: Final = Counter(
    "replank_telemetry_dropped_spans_total",
    "Finished spans that no collector got: `queue_full` (it is too slow, or does not answer), `refused` (it answered "
    "with an error), `shutdown` (no time left), `malformed` (they cannot be encoded).",
    labels=Reason,
)
SPANS_QUEUED: Final = Gauge("replank_telemetry_queued_spans", "Finished spans that wait to be exported.")

# --- outbox ---


class Shard(NamedTuple):
    """A shard of an outbox."""

    shard: str


class ShardFailure(NamedTuple):
    """What failed: `kafka`, `postgres`, `rejected` (Kafka refuses an event), `bug`."""

    shard: str
    kind: str


OUTBOX_PUBLISHED: Final = Counter(
    "replank_outbox_published_events_total", "Events that Kafka acknowledged.", labels=Shard
)
OUTBOX_BYTES: Final = Counter(
    "replank_outbox_published_bytes_total", "Payload that Kafka acknowledged.", labels=Shard, unit="bytes"
)
OUTBOX_PAGES: Final = Counter("replank_outbox_published_pages_total", "Pages that Kafka acknowledged.", labels=Shard)
OUTBOX_POLLS: Final = Counter("replank_outbox_polls_total", "Times that the relay looked for events.", labels=Shard)
OUTBOX_STATEMENTS: Final = Counter(
    "replank_outbox_statements_total", "Statements of the relay: polls, fetches, cursor moves.", labels=Shard
)
OUTBOX_LAG: Final = Gauge(
    "replank_outbox_lag_seconds",
    "Age of the oldest event of the last page when it was acknowledged.",
    labels=Shard,
    unit="seconds",
)
OUTBOX_DEPTH: Final = Gauge(
    "replank_outbox_depth_events", "Committed events that are not published; counting stops at 100,000.", labels=Shard
)
OUTBOX_STUCK: Final = Gauge(
    "replank_outbox_stuck_shards", "1 while the shard stands still because Kafka refuses an event.", labels=Shard
)
OUTBOX_FAILURES: Final = Counter(
    "replank_outbox_failures_total", "Times that the relay had to start a shard over.", labels=ShardFailure
)
OUTBOX_LEASES: Final = Counter(
    "replank_outbox_lease_changes_total", "Leases `taken`, `released` and `lost` by this relay.", labels=Reason
)
OUTBOX_RESTORES: Final = Counter(
    "replank_outbox_restores_total", "Times that a database turned out to come from another cluster's dump."
)
OUTBOX_MAINTENANCE_FAILURES: Final = Counter(
    "replank_outbox_maintenance_failures_total", "Failed runs of partition maintenance; it is tried every minute."
)

# --- inbox ---


class InboxEvent(NamedTuple):
    """An event of a consumer, and how it ended: `done`, `duplicate`, `skipped` (no handler for its type) or `dead`."""

    consumer: str
    topic: str
    type: str
    outcome: str


class InboxType(NamedTuple):
    """Events of one type that a consumer handles."""

    consumer: str
    topic: str
    type: str


class InboxReason(NamedTuple):
    """Dead letters of a consumer, by the public reason (`replank.inbox.Reason`)."""

    consumer: str
    topic: str
    reason: str


class InboxTopic(NamedTuple):
    """One subscription of a consumer."""

    consumer: str
    topic: str


INBOX_EVENTS: Final = Counter(
    "replank_inbox_events_total",
    "Events that were settled: `done`, `duplicate`, `skipped` (no handler for the type, which is then empty), `dead`.",
    labels=InboxEvent,
)
INBOX_HANDLER_SECONDS: Final = Histogram(
    "replank_inbox_handler_seconds",
    "One call of a handler, for one event or one batch, without inbox row and commit.",
    labels=InboxType,
    buckets=SECONDS,
    unit="seconds",
)
INBOX_RETRIES: Final = Counter(
    "replank_inbox_retries_total", "Attempts that ended in a pause and another attempt.", labels=InboxTopic
)
INBOX_DEAD_LETTERS: Final = Counter(
    "replank_inbox_dead_letters_total", "Events that became dead letters, by reason.", labels=InboxReason
)
INBOX_REDRIVES: Final = Counter(
    "replank_inbox_redrives_total", "Redrives by how they ended: `done`, `retry`, or the reason.", labels=InboxReason
)
INBOX_PARKED_KEYS: Final = Gauge(
    "replank_inbox_parked_keys", "Keys whose events follow an earlier one into the dead letters.", labels=InboxTopic
)
INBOX_LAG: Final = Gauge(
    "replank_inbox_lag_records", "Records in this process's partitions that are not settled.", labels=InboxTopic
)
INBOX_LIMIT_TRIPS: Final = Counter(
    "replank_inbox_limit_trips_total", "Times that a subscription stopped at its dead-letter limit.", labels=InboxTopic
)
INBOX_STOPPED: Final = Gauge(
    "replank_inbox_stopped", "1 while a subscription stands still at its dead-letter limit.", labels=InboxTopic
)

# --- postgres ---


class PoolTarget(NamedTuple):
    """A connection pool, and where it really goes: `primary` or `replica`."""

    pool: str
    target: str


class PoolFailure(NamedTuple):
    """Why a pool gave no connection: `exhausted` or `unavailable`."""

    pool: str
    target: str
    reason: str


POSTGRES_POOL_IN_USE: Final = Gauge(
    "replank_postgres_pool_in_use_connections", "Connections handed out and not returned.", labels=PoolTarget
)
POSTGRES_POOL_MAX: Final = Gauge(
    "replank_postgres_pool_max_connections", "Connections that the pool may have.", labels=PoolTarget
)
POSTGRES_POOL_UTILISATION: Final = Gauge(
    "replank_postgres_pool_utilisation_ratio", "Connections in use of those allowed.", labels=PoolTarget, unit="ratio"
)
POSTGRES_POOL_WAITING: Final = Gauge(
    "replank_postgres_pool_waiting_tasks", "Tasks that wait for a connection.", labels=PoolTarget
)
POSTGRES_POOL_ACQUIRE: Final = Histogram(
    "replank_postgres_pool_acquire_seconds",
    "Wait for a connection, connecting included.",
    labels=PoolTarget,
    buckets=SECONDS,
    unit="seconds",
)
POSTGRES_POOL_FAILURES: Final = Counter(
    "replank_postgres_pool_failures_total", "Requests for a connection that got none, or lost it.", labels=PoolFailure
)

# --- http and authorization ---


class HttpRequest(NamedTuple):
    """A finished request. The route is its pattern; `unmatched` where there is none."""

    method: str
    route: str
    status: str


class Outcome(NamedTuple):
    """How something ended, as one of a few fixed words."""

    outcome: str


HTTP_REQUEST: Final = Histogram(
    "replank_http_request_seconds",
    "From the request's arrival to the end of its answer.",
    labels=HttpRequest,
    buckets=SECONDS,
    unit="seconds",
)
HTTP_IDEMPOTENT: Final = Counter(
    "replank_http_idempotent_requests_total",
    "Requests with an idempotency key: `executed`, `replayed`, `conflict` (same key, another request), `in_progress`.",
    labels=Outcome,
)
AUTHZ_CHECK: Final = Histogram(
    "replank_authz_check_seconds",
    "Authorization checks: `allowed`, `denied`, `unavailable`.",
    labels=Outcome,
    buckets=SECONDS,
    unit="seconds",
)


class AnswerSource(NamedTuple):
    """Where auth-cache found an answer: `cache` or `postgres`."""

    source: str


AUTHZ_ANSWERS: Final = Counter(
    "replank_authz_answers_total", "Checks that auth-cache answered, by where it found the answer.", labels=AnswerSource
)

# --- cache ---


class CacheOperation(NamedTuple):
    """An operation on one named cache, and how it ended: `hit`, `miss`, `ok`, `unavailable`."""

    cache: str
    operation: str
    outcome: str


CACHE_OPERATION: Final = Histogram(
    "replank_cache_operation_seconds",
    "Round trips to the cache server.",
    labels=CacheOperation,
    buckets=SECONDS,
    unit="seconds",
)

# --- objects ---


class BucketDirection(NamedTuple):
    """A bucket, and ``in`` (read from it) or ``out`` (written to it)."""

    bucket: str
    direction: str


class BucketOperation(NamedTuple):
    """A bucket, and what was done: put, get, stat, delete, list, ensure_bucket."""

    bucket: str
    operation: str


class BucketError(NamedTuple):
    """A bucket, what was done, and the class of the error it ended with."""

    bucket: str
    operation: str
    error: str


class BucketName(NamedTuple):
    bucket: str


OBJECTS_BYTES: Final = Counter(
    "replank_objects_transferred_bytes_total",
    "Bytes of objects that were read from the store (`in`) and acknowledged by it (`out`).",
    labels=BucketDirection,
    unit="bytes",
)
OBJECTS_SECONDS: Final = Histogram(
    "replank_objects_operation_seconds",
    "Time that an operation on the object store took; of a get, until its reader closed it.",
    labels=BucketOperation,
    buckets=SECONDS,
    unit="seconds",
)
OBJECTS_ERRORS: Final = Counter(
    "replank_objects_errors_total",
    "Operations on the object store that ended with an error, by its class; `caller`: cancelled, or the caller's own.",
    labels=BucketError,
)
OBJECTS_RETRIES: Final = Counter(
    "replank_objects_retries_total", "Requests that were repeated because the store did not answer.", labels=BucketName
)

# --- flags ---


class Result(NamedTuple):
    """What became of something, as one of a few fixed words."""

    result: str


FLAGS_RECORDS: Final = Counter(
    "replank_flags_records_total",
    "Records that the flag provider read: `applied`, `outdated` (known already), `foreign` (of another type), "
    "`malformed` (no flag; passed over).",
    labels=Result,
)
FLAGS_PROPAGATION_SECONDS: Final = Histogram(
    "replank_flags_propagation_seconds",
    "Time from a change of a flag in its database until it held in this process.",
    buckets=LONG_SECONDS,
    unit="seconds",
)
FLAGS_KNOWN: Final = Gauge("replank_flags_known", "Flags that this process knows.")
FLAGS_STALE: Final = Gauge("replank_flags_stale", "1 while flags may be out of date, because Kafka does not answer.")
FLAGS_COPY_FAILURES: Final = Counter(
    "replank_flags_copy_failures_total", "Times that the local copy of the flags could not be saved."
)


# --- comparison of a migration ---


class MigrationName(NamedTuple):
    """A migration, by its name."""

    migration: str


class ConsistencyOver(NamedTuple):
    """A migration, and what was compared: `comparison` (everything, the last time) or `samples` (the last minutes)."""

    migration: str
    over: str


MIGRATE_CONSISTENCY: Final = Gauge(
    "replank_migrate_consistency_percent", "Compared records that agree in both stores.", labels=ConsistencyOver
)
MIGRATE_MISMATCHES: Final = Gauge(
    "replank_migrate_open_mismatches", "Records known to differ in the two stores.", labels=MigrationName
)
MIGRATE_PROBLEM: Final = Gauge(
    "replank_migrate_problem",
    "1 while the work that this process does for a migration meets a problem, which its status tells.",
    labels=MigrationName,
)
MIGRATE_SAMPLED: Final = Counter(
    "replank_migrate_sampled_records_total", "Records that samples compared.", labels=MigrationName
)


class MigrationDirection(NamedTuple):
    """Which way changes go: `forward` from the key-value store, `reverse` from the tables."""

    migration: str
    direction: str


class AppliedChange(NamedTuple):
    """What became of a change: `applied`, `stale`, `superseded`, `rejected`, `ignored`; `foreign`: it is none."""

    migration: str
    direction: str
    outcome: str


MIGRATE_APPLIED: Final = Counter(
    "replank_migrate_changes_total", "Captured changes that the applier dealt with.", labels=AppliedChange
)
MIGRATE_LAG: Final = Gauge(
    "replank_migrate_lag_changes", "Changes in Kafka that are not applied.", labels=MigrationDirection
)
MIGRATE_LAG_SECONDS: Final = Gauge(
    "replank_migrate_lag_seconds",
    "Age of the last applied change while others wait, else 0.",
    labels=MigrationDirection,
    unit="seconds",
)
MIGRATE_BACKFILLED: Final = Gauge(
    "replank_migrate_backfilled_records", "Records that the backfill has dealt with.", labels=MigrationName
)


class MigratedRead(NamedTuple):
    """An endpoint of an application whose data is being moved, and the store that was asked: `kv` or `tables`."""

    migration: str
    endpoint: str
    store: str


class ComparedRead(NamedTuple):
    """An endpoint, and how the comparison of a read ended."""

    migration: str
    endpoint: str
    outcome: str


class ReadFallback(NamedTuple):
    """An endpoint, and why another store answered than the one whose turn it was."""

    migration: str
    endpoint: str
    reason: str


class RoutedWrite(NamedTuple):
    """The store that took a write, and whether it was the `first` that was asked."""

    migration: str
    store: str
    outcome: str


MIGRATE_READ_SECONDS: Final = Histogram(
    "replank_migrate_read_seconds",
    "Reads by the store that was asked, those for comparison included.",
    labels=MigratedRead,
    buckets=SECONDS,
    unit="seconds",
)
MIGRATE_COMPARED: Final = Counter(
    "replank_migrate_compared_reads_total",
    "Compared reads: `match`, `late` (alike at a later look), `mismatch`, `unsettled` (changes too often, or the "
    "tables are too far behind, to tell), `error`, `dropped` (too many at once).",
    labels=ComparedRead,
)
MIGRATE_FALLBACKS: Final = Counter(
    "replank_migrate_read_fallbacks_total",
    "Reads that another store answered: `error`, `timeout`, `missing`, `token` (it lacked the caller's own writes).",
    labels=ReadFallback,
)
MIGRATE_WRITES: Final = Counter(
    "replank_migrate_writes_total",
    "Writes by the store: taken at the `first` attempt, `redirected` (taken after a refusal), or `refused` for good.",
    labels=RoutedWrite,
)


class VaultFinding(NamedTuple):
    """A mode of the vault, and a kind of inconsistency (docs/reference/vault-consistency.md)."""

    mode: str
    kind: str


VAULT_FINDINGS: Final = Gauge(
    "replank_vault_open_findings", "What checks found inconsistent and is so still.", labels=VaultFinding
)


class VaultJob(NamedTuple):
    """A mode of the vault, a kind of job, and what came of it."""

    mode: str
    kind: str
    outcome: str


VAULT_JOBS: Final = Counter(
    "replank_vault_jobs_total",
    "Jobs of the vault that ended (`done`, `failed`, `cancelled`), that wait to be tried `again`, or that went on "
    "`elsewhere`, because this process was taken for dead.",
    labels=VaultJob,
)


class VaultMode(NamedTuple):
    """A mode of the vault."""

    mode: str


class VaultBytes(NamedTuple):
    """A mode of the vault, and what is counted: the contents themselves (`content`), or their objects (`stored`)."""

    mode: str
    of: str


VAULT_CONTENTS: Final = Gauge("replank_vault_contents", "Contents in the object store.", labels=VaultMode)
VAULT_BYTES: Final = Gauge(
    "replank_vault_bytes", "Bytes of the contents, and of their compressed objects.", labels=VaultBytes, unit="bytes"
)


if __name__ == "__main__":
    print(as_markdown(), end="")
