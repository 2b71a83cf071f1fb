"""Whether the modes of the vault are apart: every way from one to the other is tried, with the real credentials.

A refusal counts only as what it is called by who refuses (SQLSTATE 42501, S3's ``AccessDenied``): a wrong password or a
missing bucket also stops everybody, and proves nothing. For the same reason each mode must succeed with what is its
own. Nothing is left behind: what is tried in a database changes no row and is rolled back, what is put into a bucket is
deleted, and a policy or ACL is never well-formed enough to be taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal
from uuid import uuid4
from xml.etree import ElementTree as ET

import asyncpg

from replank.connection import POSTGRES_ERRORS, Connection
from replank.contracts.schema import VaultMode
from replank.errors import DependencyUnavailable
from replank.objects.signed import Answer, SignedRequests
from replank_schema.vault.model import MODES
from replank_schema.vault.settings import VaultModeSettings

_log = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 10.0
_DONE: Final = "done"
_DENIED: Final = asyncpg.InsufficientPrivilegeError.sqlstate
_NOT_FOUND: Final = asyncpg.UndefinedTableError.sqlstate
# A row without values breaks constraints, but only after the right to insert it was found.
_CONSTRAINTS: Final = "23"
# The answer to a HEAD has no body, so only its status tells.
_REFUSED: Final = frozenset({"AccessDenied", "HTTP 403"})
_PREFIX: Final = ".replank-isolation"

Side = Literal["database", "object store"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing that was tried with the credentials of a mode."""

    mode: VaultMode
    """Whose credentials."""
    reaches_for: str
    """Whose thing: a mode's, ``service`` for the rest of the service's database, ``store`` for the store itself."""
    side: Side
    what: str
    refused: bool
    answer: str
    """SQLSTATE or S3's code; ``done`` for a success."""

    @property
    def control(self) -> bool:
        """Whether it is the mode's own, so that it has to succeed."""
        return self.reaches_for == self.mode

    @property
    def as_it_should_be(self) -> bool:
        """Whether the other's was refused, and one's own was done."""
        return self.answer == _DONE if self.control else self.refused


# Everything that one may try to do with a table, as statements that change nothing even where they are allowed. For
# each it is enough to have the right on any column, but for updates, which name theirs.
_TABLES: Final = """
    select n.nspname as namespace, c.relname as name,
           array[format('select from %1$I.%2$I where false', n.nspname, c.relname)] as "select",
           array[format('insert into %1$I.%2$I default values', n.nspname, c.relname)] as "insert",
           array[format('delete from %1$I.%2$I where false', n.nspname, c.relname)] as "delete",
           array[format('truncate %1$I.%2$I', n.nspname, c.relname)] as "truncate",
           array[format('set local search_path = %1$I; select from %2$I where false', n.nspname, c.relname)]
               as "select by search_path",
           (select coalesce(array_agg(format('update %1$I.%2$I set %3$I = null where false',
                                             n.nspname, c.relname, attname)), '{}')
              from pg_attribute
             where attrelid = c.oid and attnum > 0 and not attisdropped and attgenerated = '' and attidentity = ''
           ) as "update"
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'v', 'm', 'f')
       and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'
       -- What comes with an extension is nobody's of ours: who may see it is the operator's business, and
       -- pg_stat_statements shows nobody the statements of another role.
       and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype = 'e')
     order by 1, 2
"""
# What one may try without a table: whose it is, and statements.
_STATEMENTS: Final = """
    select whose, format('create table %I.replank_isolation ()', namespace) as create_table,
           format('set local role %I', role) as set_role,
           format('set local session authorization %I', role) as set_session
      from unnest($1::text[], $2::text[], $3::text[]) other (whose, namespace, role)
"""
_OWNER: Final = "select pg_get_userbyid(nspowner) from pg_namespace where nspname = $1"
_APPEND: Final = "select replank_outbox.append('replank.isolation', 'probe', 'replank.isolation.probe.v1', '{}'::bytea)"
# Where a lock is waited for, the right to take it is there already, and whoever holds it shall not wait behind us.
_CAREFULLY: Final = "set local lock_timeout = '1s'; set local statement_timeout = '10s'"


async def verify_isolation(
    owner: Connection, modes: Mapping[VaultMode, VaultModeSettings], *, s3_url: str
) -> Sequence[Attempt]:
    """Try every way from each mode to every other, to the service's own tables and to the store itself.

    ``owner`` is a connection of the database's owner, by which all tables are known. All is well when every attempt is
    `as_it_should_be`. Takes a quarter of a second for two modes. Raises `DependencyUnavailable` without an answer.
    """
    tables = await owner.fetch(_TABLES)
    everybody = [*modes, "service"]
    namespaces = [*(_namespace(mode) for mode in modes), "public"]
    roles = [*(settings.role for settings in modes.values()), await owner.fetchval(_OWNER, namespaces[0])]
    others = await owner.fetch(_STATEMENTS, everybody, namespaces, roles)
    attempts: list[Attempt] = []
    for mode, settings in modes.items():
        attempts += await _try_database(mode, settings, tables, others)
    return attempts + await asyncio.to_thread(_try_store, modes, s3_url)


def _namespace(mode: str) -> str:
    return f"vault_{mode}"


# --- the database ---


async def _try_database(
    mode: VaultMode, settings: VaultModeSettings, tables: Sequence[asyncpg.Record], others: Sequence[asyncpg.Record]
) -> list[Attempt]:
    try:
        conn = await asyncpg.connect(settings.dsn.get_secret_value(), timeout=_CONNECT_SECONDS)
    except asyncpg.PostgresError as error:
        return [Attempt(mode, mode, "database", "connect", refused=True, answer=error.sqlstate or "")]
    except POSTGRES_ERRORS as error:
        raise _away(error) from error
    attempts = [Attempt(mode, mode, "database", "connect", refused=False, answer=_DONE)]
    try:
        attempts.append(await _try(conn, mode, mode, "append an event", [_APPEND]))
        whose = {_namespace(other): other for other in MODES}
        for table in tables:
            thing: str = whose.get(table["namespace"], "service")
            for what, texts in _on_table(table, thing, own=thing == mode):
                attempt = await _try(conn, mode, thing, what, texts)
                # A partition of the outbox may have been dropped since the tables were listed.
                if not (thing == "service" and attempt.answer == _NOT_FOUND):
                    attempts.append(attempt)
        for other in others:
            if other["whose"] != mode:
                attempts += [
                    await _try(conn, mode, other["whose"], what.replace("_", " "), [other[what]])
                    for what in ("create_table", "set_role", "set_session")
                ]
    except POSTGRES_ERRORS as error:
        raise _away(error) from error
    finally:
        conn.terminate()
    return attempts


def _on_table(table: asyncpg.Record, whose: str, *, own: bool) -> Iterator[tuple[str, Sequence[str]]]:
    if whose == "service":
        yield f"select: {table['namespace']}.{table['name']}", table["select"]
        return
    for verb in ("select", "insert", "update", "delete", "select by search_path", *(() if own else ("truncate",))):
        if statements := table[verb]:
            yield f"{verb}: {table['name']}", statements


async def _try(conn: Connection, mode: VaultMode, whose: str, what: str, statements: Sequence[str]) -> Attempt:
    """Try statements of one meaning, at least one; what counts is the first that is not refused."""
    answer = ""
    for statement in statements:
        answer = await _answer(conn, statement)
        if answer not in {_DENIED, _NOT_FOUND}:
            break
    if answer.startswith(_CONSTRAINTS):
        answer = _DONE
    # Where a schema may not be used, its tables are not to be found by a search path.
    refused = answer == _DENIED or (answer == _NOT_FOUND and what.startswith("select by search_path"))
    return Attempt(mode, whose, "database", what, refused=refused, answer=answer)


async def _answer(conn: Connection, statement: str) -> str:
    transaction = conn.transaction()
    await transaction.start()
    try:
        await conn.execute(_CAREFULLY)
        await conn.execute(statement)
    except asyncpg.PostgresError as error:
        return error.sqlstate or ""
    finally:
        await transaction.rollback()
    return _DONE


def _away(error: BaseException) -> DependencyUnavailable:
    return DependencyUnavailable("postgres", f"the vault's database does not answer ({type(error).__name__})")


# --- the object store ---


@dataclass(frozen=True, slots=True)
class _Store:
    """The object store as each mode reaches it, what is tried there, and what has to be deleted afterwards."""

    requests: Mapping[VaultMode, SignedRequests]
    buckets: Mapping[VaultMode, str]
    key: str
    left: list[tuple[Sequence[VaultMode], str, Mapping[str, str]]]
    """Whose credentials should be able to delete it, its path, and its version or upload."""

    def path(self, bucket: VaultMode, name: str) -> str:
        return f"/{self.buckets[bucket]}/{self.key}.{name}"

    def put(self, mode: VaultMode, bucket: VaultMode, name: str, headers: Mapping[str, str], body: bytes) -> Answer:
        path = self.path(bucket, name)
        answer = self.requests[mode].send("PUT", path, headers=headers, body=body)
        if not answer.code:
            version = answer.headers.get("x-amz-version-id")
            self.left.append(((mode, bucket), path, {"versionId": version} if version else {}))
        return answer

    def clean(self) -> None:
        for modes, path, query in self.left:
            # Where somebody may do what he should not, nobody knows who may undo it.
            if all(self.requests[mode].send("DELETE", path, query=query).code for mode in modes):
                _log.warning("left in the object store, since nobody may delete it", extra={"path": path})


def _try_store(modes: Mapping[VaultMode, VaultModeSettings], url: str) -> list[Attempt]:
    with ExitStack() as opened:
        requests = {
            mode: opened.enter_context(
                SignedRequests(
                    url, settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value()
                )
            )
            for mode, settings in modes.items()
        }
        buckets = {mode: settings.s3_bucket for mode, settings in modes.items()}
        store = _Store(requests, buckets, f"{_PREFIX}/{uuid4()}", [])
        attempts: list[Attempt] = []
        try:
            # Each its own first: what is tried with another's bucket is tried with an object that is there.
            for mode in modes:
                attempts += _try_bucket(store, mode, mode)
            for mode in modes:
                for other in modes:
                    if other != mode:
                        attempts += [*_try_bucket(store, mode, other), *_try_settings(store, mode, other)]
                attempts.append(_try_new_bucket(store, mode))
            for mode in modes:
                attempts.append(_delete(store, mode, mode))
        finally:
            store.clean()
    return attempts


def _try_bucket(store: _Store, mode: VaultMode, other: VaultMode) -> Iterator[Attempt]:
    """What there is to do with the objects of ``other``, which may be ``mode`` itself."""
    requests, bucket, there = store.requests[mode], f"/{store.buckets[other]}", store.path(other, other)
    yield _attempt(mode, other, "put an object", store.put(mode, other, mode, {}, b"probe"))
    yield _attempt(mode, other, "list objects", requests.send("GET", bucket, query={"list-type": "2", "max-keys": "1"}))
    yield _attempt(mode, other, "get an object", requests.send("GET", there))
    yield _attempt(mode, other, "stat an object", requests.send("HEAD", there))
    copied = store.put(mode, mode, f"{mode}.from-{other}", {"x-amz-copy-source": there}, b"")
    yield _attempt(mode, other, "copy an object to one's own bucket", copied)
    parts = store.path(other, f"{mode}.parts")
    begun = requests.send("POST", parts, query={"uploads": ""})
    if not begun.code:
        upload = ET.fromstring(begun.body).findtext("{*}UploadId") or ""  # noqa: S314 - the store is trusted
        store.left.append(((mode, other), parts, {"uploadId": upload}))
    yield _attempt(mode, other, "begin an upload in parts", begun)
    yield _attempt(mode, other, "list uploads", requests.send("GET", bucket, query={"uploads": ""}))


def _try_settings(store: _Store, mode: VaultMode, other: VaultMode) -> Iterator[Attempt]:
    """What there is to do with the bucket of another mode itself; deleting from it comes last."""
    requests, bucket = store.requests[mode], f"/{store.buckets[other]}"
    yield _attempt(mode, other, "read the policy", requests.send("GET", bucket, query={"policy": ""}))
    # Whoever may change them is told what is wrong with these; whoever may not, is not.
    yield _attempt(mode, other, "change the policy", requests.send("PUT", bucket, query={"policy": ""}, body=b"{}"))
    malformed = requests.send("PUT", bucket, query={"acl": ""}, body=b"<Malformed/>")
    yield _attempt(mode, other, "change the ACL", malformed)
    listed = requests.send("GET", "/")
    root = ET.fromstring(listed.body) if not listed.code else ET.Element("Error")  # noqa: S314 - the store is trusted
    seen = store.buckets[other] in {name.text for name in root.iterfind(".//{*}Bucket/{*}Name")}
    answer = listed.code or ("listed" if seen else "not listed")
    refused = answer == "not listed" or answer in _REFUSED
    yield Attempt(mode, other, "object store", "see the bucket in a listing", refused=refused, answer=answer)
    yield _delete(store, mode, other)


def _delete(store: _Store, mode: VaultMode, other: VaultMode) -> Attempt:
    path = store.path(other, other)
    answer = store.requests[mode].send("DELETE", path)
    if marker := answer.headers.get("x-amz-version-id"):
        # Where versions are kept, deleting puts a marker on top.
        store.left.append(((mode, other), path, {"versionId": marker}))
    return _attempt(mode, other, "delete an object", answer)


def _try_new_bucket(store: _Store, mode: VaultMode) -> Attempt:
    path = f"/replank-isolation-{uuid4()}"
    made = store.requests[mode].send("PUT", path)
    if not made.code:
        store.left.append(((mode,), path, {}))
    return _attempt(mode, "store", "create a bucket", made)


def _attempt(mode: VaultMode, whose: str, what: str, answer: Answer) -> Attempt:
    return Attempt(mode, whose, "object store", what, refused=answer.code in _REFUSED, answer=answer.code or _DONE)
