"""Use cases: change the tuples of a store. Asking about them is in `replank_auth_cache.tuples.decisions`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from replank import outbox
from replank.connection import Connection
from replank.contracts.auth_cache import AccessGranted, AccessRevoked
from replank_auth_cache.tuples import store
from replank_auth_cache.tuples.decisions import Decisions
from replank_auth_cache.tuples.model import OnConflict, RelationTuple, UnknownStore, WriteConflict


async def change(
    conn: Connection,
    decisions: Decisions,
    name: str,
    *,
    writes: Sequence[RelationTuple] = (),
    deletes: Sequence[RelationTuple] = (),
    on_duplicate: OnConflict = OnConflict.ERROR,
    on_missing: OnConflict = OnConflict.ERROR,
    by: str,
) -> int:
    """Write and delete tuples of a store and say so, all or nothing, inside the caller's transaction.

    Returns the store's new revision. Raises `UnknownStore`, `WriteConflict`.
    """
    held = await store.next_revision(conn, name)
    if held is None:
        raise UnknownStore(name)
    incarnation, revision = held
    now = datetime.now(UTC)
    deleted = await store.delete(conn, name, deletes) if deletes else set()
    missing = sorted(set(deletes) - deleted)
    if missing and on_missing is OnConflict.ERROR:
        raise WriteConflict(f"cannot delete a tuple which does not exist: {missing[0]}")
    written = await store.insert(conn, name, writes, revision=revision, by=by, at=now) if writes else set()
    present = sorted(set(writes) - written)
    if present and on_duplicate is OnConflict.ERROR:
        raise WriteConflict(f"cannot write a tuple which already exists: {present[0]}")
    said: list[AccessRevoked | AccessGranted] = [
        *(
            AccessRevoked(store=name, **asdict(item), revision=revision, revoked_by=by, revoked_at=now)
            for item in sorted(deleted)
        ),
        *(
            AccessGranted(store=name, **asdict(item), revision=revision, granted_by=by, granted_at=now)
            for item in sorted(written)
        ),
    ]
    if said:
        await outbox.append_many(
            conn, [outbox.Message(event, key=event.object, subject=event.object) for event in said]
        )
    # Before the commit, not after: between the two a check would still trust what was cached for the revision before.
    decisions.advance(incarnation, revision)
    return revision


async def ensure(
    conn: Connection, decisions: Decisions, name: str, wanted: Sequence[RelationTuple], *, by: str
) -> None:
    """Write those tuples that are missing, as `change` does. Where none is, every cached decision stays good."""
    answers = [await store.check(conn, name, item) for item in wanted]
    missing = [item for item, answer in zip(wanted, answers, strict=True) if answer is None or not answer.allowed]
    if missing:
        await change(conn, decisions, name, writes=missing, on_duplicate=OnConflict.IGNORE, by=by)


async def bootstrap(
    conn: Connection, decisions: Decisions, stores: Iterable[str], name: str, first: Sequence[RelationTuple]
) -> None:
    """Add the stores, and to one of them its first tuples, if they are missing."""
    await store.create_stores(conn, stores)
    await ensure(conn, decisions, name, first, by="service:auth-cache")
