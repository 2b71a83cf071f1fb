"""Use cases: publish, change, delete and restore schemas. Each is one transaction with the event that tells of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from replank import outbox
from replank.connection import Connection
from replank.contracts.schema import (
    Compatibility,
    SchemaDeleted,
    SchemaOwnerChanged,
    SchemaRestored,
    SchemaVersionPublished,
)
from replank.events import Event
from replank_schema.vault import contents, records, store
from replank_schema.vault.compatibility import judge
from replank_schema.vault.contents import Received
from replank_schema.vault.model import (
    Changes,
    Consumer,
    Draft,
    NameTaken,
    NotActive,
    RevisionChanged,
    Schema,
    SchemaNotFound,
    StillUsed,
    thing,
)
from replank_schema.vault.records import Content, Records
from replank_schema.vault.vault import Vault

_MOST_REASONS = 20


@dataclass(frozen=True, slots=True)
class Published:
    """A schema after something was published. ``new`` is false where the same was its current version already."""

    schema: Schema
    new: bool


async def require_name(vault: Vault, name: str, *, by: str) -> None:
    """Raise `NameTaken` early, before an upload is read; not to whoever may be sending the same again."""
    async with records.reading(vault) as known:
        taken = await known.active(name)
    if taken is not None and (taken.created_by, taken.version) != (by, 1):
        raise _taken(taken)


async def create(vault: Vault, draft: Draft, received: Received, *, by: str) -> Published:
    """Publish a content under a new name.

    Sending the same again, by the same caller, is no clash: the answer to the first may have been lost. Raises
    `NameTaken`, and what `replank_schema.vault.records.prepare` does.
    """

    async def act(tables: Records, content: Content) -> Published:
        schema = await tables.insert(uuid7(), draft, content, by=by)
        if schema is None:
            there = await tables.active(draft.name)
            if there is not None and (there.sha256, there.created_by, there.version) == (content.blob.sha256, by, 1):
                return Published(there, new=False)
            raise (
                _taken(there)
                if there is not None
                else RevisionChanged(f"the schema {draft.name} was deleted at this moment", fix="send it again")
            )
        await _tell_published(tables.conn, vault, schema, previous=None, compatibility=None)
        return Published(schema, new=True)

    return await records.write_with(vault, received, by=by, act=act)


async def publish_version(
    vault: Vault, schema_id: UUID, received: Received, *, revision: int, note: str, force: bool, by: str
) -> Published:
    """Publish a content as the next version of a schema that is as the caller saw it.

    What is the current content already is not published again. A version that those who use the schema could not read
    is refused with their names, unless it is forced. Raises `SchemaNotFound`, `NotActive`, `RevisionChanged`,
    `StillUsed`, and what `replank_schema.vault.records.prepare` does.
    """
    async with records.reading(vault) as known:
        seen = await _found(known.get(schema_id), schema_id)
    sha256 = received.blob.sha256
    _require(seen, revision=None if seen.sha256 == sha256 else revision)
    if seen.sha256 == sha256:
        if received.data is None:
            return Published(seen, new=False)

        async def again(tables: Records, content: Content) -> Published:
            if content.kept:
                await contents.refer(tables.conn, content.blob)
            return Published(seen, new=False)

        # Whoever sends a content that was lost mends that.
        return await records.write_with(vault, received, by=by, act=again)
    before = await records.version_of(vault, schema_id, seen.version)
    compatibility, reasons = await compare(vault, before, received)

    async def act(tables: Records, content: Content) -> Published:
        schema = await _found(tables.held(schema_id), schema_id)
        _require(schema, revision=revision)
        # What cannot be judged may break them just as well.
        readable = compatibility.forward if compatibility is not None else before.blob.kind != "schema"
        if not readable and not force:
            users = await live_consumers(tables.conn, vault, schema.name)
            if users:
                raise StillUsed(
                    f"{len(users)} consumers of {schema.name} may not be able to read this version",
                    fix="make it readable by those who know the current one, or publish it with force=true",
                    consumers=users,
                    reasons=reasons,
                )
        published = await tables.publish(
            schema,
            content,
            note=note,
            backward=compatibility.backward if compatibility else None,
            forward=compatibility.forward if compatibility else None,
            by=by,
        )
        await _tell_published(tables.conn, vault, published, previous=schema.version, compatibility=compatibility)
        return Published(published, new=True)

    return await records.write_with(vault, received, by=by, act=act)


async def compare(vault: Vault, old: Received, new: Received) -> tuple[Compatibility | None, list[str]]:
    """Whether two contents are compatible, and why not; None where they are no schemas, or too large to be held."""
    before, after = old.blob, new.blob
    if (before.kind, after.kind) != ("schema", "schema") or max(before.size, after.size) > vault.limits.judge_bytes:
        return None, ["one of the two is no schema, or too large to be compared"]
    texts = await asyncio.gather(records.text_of(vault, old), records.text_of(vault, new))

    def judged() -> tuple[Compatibility, list[str]]:
        was, now = (json.loads(text) for text in texts)
        verdict = judge(was, now)
        reasons = [
            f"{reason.path or '/'}: {reason.text}" for reason in verdict.reasons if reason.direction == "forward"
        ]
        return Compatibility(backward=verdict.backward, forward=verdict.forward), reasons[:_MOST_REASONS]

    return await asyncio.to_thread(judged)


async def change(vault: Vault, schema_id: UUID, changes: Changes, *, revision: int, by: str) -> Schema:
    """Change what is said of a schema. Raises `SchemaNotFound`, `NotActive`, `RevisionChanged`."""
    async with records.writing(vault, by=by) as tables:
        schema = await _found(tables.held(schema_id), schema_id)
        _require(schema, revision=revision)
        changed = await tables.change(schema, changes, by=by)
        if changed.owner != schema.owner:
            told = SchemaOwnerChanged(
                mode=vault.mode,
                schema_id=schema.id,
                name=schema.name,
                owner=changed.owner,
                previous_owner=schema.owner,
                changed_by=by,
                changed_at=changed.updated_at,
            )
            await _tell(tables.conn, vault, schema.id, told)
    return changed


async def delete(vault: Vault, schema_id: UUID, *, revision: int | None, force: bool, by: str) -> Schema:
    """Delete a schema softly: its name is free, its versions stay, and it can be restored.

    Raises `SchemaNotFound`, `NotActive`, `RevisionChanged`, and `StillUsed` with those who use it unless it is forced.
    """
    async with records.writing(vault, by=by) as tables:
        schema = await _found(tables.held(schema_id), schema_id)
        _require(schema, revision=revision)
        users = [] if force else await live_consumers(tables.conn, vault, schema.name)
        if users:
            raise StillUsed(
                f"{len(users)} consumers use {schema.name}",
                fix="have them stop, or delete it with force=true",
                consumers=users,
            )
        deleted = await tables.delete(schema, by=by)
        told = SchemaDeleted(
            mode=vault.mode,
            schema_id=schema.id,
            name=schema.name,
            version=schema.version,
            deleted_by=by,
            deleted_at=deleted.updated_at,
        )
        await _tell(tables.conn, vault, schema.id, told)
    return deleted


async def restore(vault: Vault, schema_id: UUID, *, by: str) -> Schema:
    """Bring a deleted schema back. Raises `SchemaNotFound`, `NotActive` (it is not deleted), `NameTaken`."""
    async with records.writing(vault, by=by) as tables:
        schema = await _found(tables.held(schema_id), schema_id)
        if schema.status == "active":
            raise NotActive(f"the schema {schema.name} is not deleted", fix="there is nothing to restore")
        restored = await tables.restore(schema, by=by)
        if restored is None:
            raise NameTaken(
                f"another active schema is called {schema.name}",
                fix="delete the other one first, or publish this content under another name",
            )
        told = SchemaRestored(
            mode=vault.mode,
            schema_id=schema.id,
            name=schema.name,
            version=schema.version,
            restored_by=by,
            restored_at=restored.updated_at,
        )
        await _tell(tables.conn, vault, schema.id, told)
    return restored


async def live_consumers(conn: Connection, vault: Vault, name: str) -> list[Consumer]:
    """Who was seen using what is published under a name, not longer ago than counts."""
    since = datetime.now(UTC) - timedelta(days=vault.limits.consumer_days)
    return await store.consumers(conn, name, since=since)


async def _found(asked: Any, schema_id: UUID) -> Schema:
    schema: Schema | None = await asked
    if schema is None:
        raise SchemaNotFound(f"there is no schema {schema_id}")
    return schema


def require_active(schema: Schema) -> None:
    """Raise `NotActive` for a schema that is deleted."""
    if schema.status != "active":
        raise NotActive(f"the schema {schema.name} is deleted", fix="restore it first")


def _require(schema: Schema, *, revision: int | None) -> None:
    require_active(schema)
    if revision is not None and schema.revision != revision:
        raise RevisionChanged(
            f"the schema {schema.name} is at revision {schema.revision}, not {revision}",
            fix="look at what changed, then send the revision that you saw as If-Match",
        )


def _taken(schema: Schema) -> NameTaken:
    return NameTaken(
        f"the name {schema.name} is taken, by schema {schema.id}",
        fix="publish a new version of it, or take another name",
    )


async def _tell_published(
    conn: Connection, vault: Vault, schema: Schema, *, previous: int | None, compatibility: Compatibility | None
) -> None:
    told = SchemaVersionPublished(
        mode=vault.mode,
        schema_id=schema.id,
        name=schema.name,
        version=schema.version,
        previous=previous,
        sha256=schema.sha256,
        size=schema.size,
        kind=schema.kind,
        field_count=schema.field_count,
        owner=schema.owner,
        compatibility=compatibility,
        published_by=schema.updated_by,
        published_at=schema.updated_at,
    )
    await _tell(conn, vault, schema.id, told)


async def _tell(conn: Connection, vault: Vault, schema_id: UUID, event: Event) -> None:
    await outbox.append(conn, event, key=str(schema_id), subject=thing(vault.mode, schema_id))
