"""Writing to whichever pattern takes the writes: to the old one, to the new one, or to both in one transaction.

The phase is read and held in the transaction that writes, so that no write goes by a phase that has ended. Where both
patterns are written, the old one's row is held and has the last word on what is taken: it has every schema, while the
new one may wait for some to be backfilled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from replank.connection import Connection
from replank_schema.vault import contents, inline_store, pattern_store, store
from replank_schema.vault.contents import Received
from replank_schema.vault.inline_store import Inline
from replank_schema.vault.model import Blob, BlobUnknown, Changes, Draft, Schema, SchemaNotFound, Version
from replank_schema.vault.pattern import FINAL, NeedsOptimizedSchemas, Phase
from replank_schema.vault.vault import Vault

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Content:
    """A content that is ready to be referred to. ``text`` is None where the old pattern was not written when it was
    made ready, ``kept`` false where the object store was not."""

    blob: Blob
    text: str | None
    kept: bool

    def suits(self, phase: Phase) -> bool:
        """Whether it can be written in this phase."""
        return (self.text is not None or not phase.writes_old) and (self.kept or not phase.writes_new)

    @property
    def inline(self) -> Inline:
        if self.text is None:
            raise AssertionError("asked for the text of a content that was not made ready for the old pattern")
        return Inline(self.blob, self.text)


@dataclass(frozen=True, slots=True)
class Records:
    """The schemas of a mode, as one transaction sees and changes them."""

    conn: Connection
    phase: Phase

    async def get(self, schema_id: UUID) -> Schema | None:
        if self.phase.writes_old:
            return await inline_store.get(self.conn, schema_id)
        return await store.get(self.conn, schema_id)

    async def active(self, name: str) -> Schema | None:
        """The active schema of this name."""
        if self.phase.writes_old:
            return await inline_store.active(self.conn, name)
        return await store.active(self.conn, name)

    async def version(self, schema_id: UUID, number: int) -> Version | None:
        if self.phase.writes_old:
            return await inline_store.version(self.conn, schema_id, number)
        return await store.version(self.conn, schema_id, number)

    async def held(self, schema_id: UUID) -> Schema | None:
        """The schema, which nobody else changes before the transaction ends."""
        if self.phase.writes_old:
            return await inline_store.held(self.conn, schema_id)
        return await store.held(self.conn, schema_id)

    async def insert(self, schema_id: UUID, draft: Draft, content: Content, *, by: str) -> Schema | None:
        """Insert a schema with its first version; None if an active one has the name."""
        schema = None
        if self.phase.writes_old:
            schema = await inline_store.insert(self.conn, schema_id, draft, content.inline, by=by)
            if schema is None:
                return None
        if self.phase.writes_new:
            await contents.refer(self.conn, content.blob)
            schema = await store.insert(self.conn, schema_id, draft, content.blob, by=by)
            await self._mirror(schema_id)
        return schema

    async def publish(
        self, schema: Schema, content: Content, *, note: str, backward: bool | None, forward: bool | None, by: str
    ) -> Schema:
        """Give a schema that is held its next version."""
        published = schema
        in_new = await self._in_new(schema.id)
        if self.phase.writes_old:
            published = await inline_store.publish(
                self.conn, schema, content.inline, note=note, backward=backward, forward=forward, by=by
            )
        if in_new:
            await contents.refer(self.conn, content.blob)
            published = await store.publish(
                self.conn, schema, content.blob, note=note, backward=backward, forward=forward, by=by
            )
            await self._mirror(schema.id)
        return published

    async def change(self, schema: Schema, changes: Changes, *, by: str) -> Schema:
        """Change what people said of a schema that is held."""
        changed = schema
        in_new = await self._in_new(schema.id)
        if self.phase.writes_old:
            changed = await inline_store.change(self.conn, schema, changes, by=by)
        if in_new:
            names: Sequence[str] = ()
            if changes.tags is not None:
                blob = await store.blob(self.conn, schema.sha256)
                names = blob.fields if blob is not None else ()
            changed = await store.change(self.conn, schema, changes, names=names, by=by)
            await self._mirror(schema.id)
        return changed

    async def delete(self, schema: Schema, *, by: str) -> Schema:
        """Delete a schema that is held, softly."""
        deleted = schema
        in_new = await self._in_new(schema.id)
        if self.phase.writes_old:
            deleted = await inline_store.delete(self.conn, schema.id, by=by)
        if in_new:
            deleted = await store.delete(self.conn, schema.id, by=by)
            await self._mirror(schema.id)
        return deleted

    async def restore(self, schema: Schema, *, by: str) -> Schema | None:
        """Bring a deleted schema that is held back; None if an active one has its name by now."""
        restored: Schema | None = None
        in_new = await self._in_new(schema.id)
        if self.phase.writes_old:
            restored = await inline_store.restore(self.conn, schema.id, by=by)
            if restored is None:
                return None
        if in_new:
            restored = await store.restore(self.conn, schema.id, by=by)
            if restored is not None:
                await self._mirror(schema.id)
        return restored

    async def _in_new(self, schema_id: UUID) -> bool:
        """Whether the new pattern is written and has the schema: one that waits to be backfilled, or was rejected, is
        changed in the old one alone, from where it is moved as it is by then."""
        if not self.phase.writes_new:
            return False
        return not self.phase.writes_old or await store.held(self.conn, schema_id) is not None

    async def _mirror(self, schema_id: UUID) -> None:
        if self.phase.writes_old:
            await inline_store.mirror(self.conn, schema_id)


async def phase_now(vault: Vault, conn: Connection) -> Phase:
    """How far the mode is at this moment. Where nothing was ever written it is what the flag says."""
    if vault.switch.settled:
        return Phase.NEW
    standing = await pattern_store.get(conn)
    if standing is None:
        return await _first(vault)
    vault.switch.settled = standing.phase in FINAL
    return standing.phase


async def _first(vault: Vault) -> Phase:
    return Phase.NEW if await vault.switch.optimized() else Phase.PLANNED


@asynccontextmanager
async def writing(vault: Vault, *, by: str) -> AsyncIterator[Records]:
    """A transaction that writes."""
    async with vault.pool.acquire() as conn, conn.transaction():
        if vault.switch.settled:
            yield Records(conn, Phase.NEW)
            return
        standing = await pattern_store.share(conn, vault.mode)
        if standing is None:
            yield Records(conn, await pattern_store.begin(conn, await _first(vault), by=by))
            return
        # Before the transaction commits nobody may take it for granted; but this was there when it began.
        vault.switch.settled = standing.phase in FINAL
        yield Records(conn, standing.phase)


@asynccontextmanager
async def reading(vault: Vault) -> AsyncIterator[Records]:
    """What the pattern says that has every schema: for looking before a write."""
    async with vault.pool.acquire() as conn:
        yield Records(conn, await phase_now(vault, conn))


async def write_with(
    vault: Vault, received: Received, *, by: str, act: Callable[[Records, Content], Awaitable[Result]]
) -> Result:
    """Do something in a transaction that refers to a content, which is put first where this phase wants it."""
    while True:
        content = await prepare(vault, received, await _likely_phase(vault))
        async with writing(vault, by=by) as records:
            if content.suits(records.phase):
                return await act(records, content)
        # The phase changed between the two.


async def _likely_phase(vault: Vault) -> Phase:
    if vault.switch.settled:
        return Phase.NEW
    async with reading(vault) as records:
        return records.phase


async def prepare(vault: Vault, received: Received, phase: Phase) -> Content:
    """Put a content where the phase wants it, before anything refers to it.

    Raises `replank_schema.vault.model.BlobUnknown`, `BlobBusy`, the errors of the object store, and
    `NeedsOptimizedSchemas` for one that the old pattern, which is written too, does not take.
    """
    blob, text = received.blob, None
    if phase.writes_old:
        require_small(vault, blob.size)
        text = (await text_of(vault, received)).decode()
    if phase.writes_new and received.data is not None:
        blob = await contents.keep(vault, blob, received.data)
    elif phase.writes_new and blob.stored_size == 0 and text is not None:
        # Known from a row of the old pattern alone.
        taken = await contents.take_in(text.encode())
        blob = await contents.keep(vault, taken.blob, taken.data or b"")
    return Content(blob, text, kept=phase.writes_new)


def require_small(vault: Vault, size: int) -> None:
    """Raise `NeedsOptimizedSchemas` for a content that is larger than a row takes."""
    if size > vault.limits.inline_bytes:
        raise NeedsOptimizedSchemas(
            f"the content has {size} bytes, more than the {vault.limits.inline_bytes} that are kept in a row"
        )


async def text_of(vault: Vault, received: Received) -> bytes:
    """A content as it was sent, from wherever it is."""
    if received.data is not None:
        return await asyncio.to_thread(contents.plain, received.data)
    async with vault.pool.acquire() as conn:
        inline = await inline_store.content_of(conn, received.blob.sha256)
    return inline.encode() if inline is not None else await contents.read(vault, received.blob)


async def known(vault: Vault, sha256: str) -> Received:
    """A content that was sent before, to be referred to now. Raises `BlobUnknown`."""
    async with reading(vault) as records:
        if records.phase.writes_new:
            try:
                return Received(await contents.known(records.conn, sha256), None)
            except BlobUnknown:
                if not records.phase.writes_old:
                    raise
        inline = await inline_store.known(records.conn, sha256)
    if inline is None:
        raise BlobUnknown(f"the content with the SHA-256 {sha256} is not in the vault", fix="send it")
    return Received(inline.blob, None)


async def version_of(vault: Vault, schema_id: UUID, number: int | None) -> Received:
    """The content of a version, to be read with `text_of`. Raises `SchemaNotFound`."""
    async with reading(vault) as records:
        if not records.phase.writes_old:
            return Received(await contents.of_version(records.conn, schema_id, number), None)
        inline = await inline_store.content(records.conn, schema_id, number)
    if inline is None:
        raise SchemaNotFound(f"there is no version {number} of schema {schema_id}")
    return Received(inline.blob, None)
