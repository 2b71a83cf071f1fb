"""Reading from whichever pattern it is whose turn it is, endpoint by endpoint.

The phase is read with each request, so that a rollback holds for the very next read; a flag needs a second to reach
every process. Flags choose within what the phase allows. While both patterns are whole
`replank.migrate.client.ReadRouter` decides, falls back and compares; the old pattern is its key-value store, the new
one its tables, and what it asks are ``migrate.vault-<mode>.reads.<endpoint>`` of the endpoints ``list``, ``get`` and
``content``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from uuid import UUID

import openfeature.api

from replank.migrate.client import ReadRouter
from replank.migrate.client.answers import shape
from replank_schema.vault import contents, inline_store, pattern_store, store
from replank_schema.vault.model import Blob, Filters, Schema, SchemaNotFound, Sort, Version
from replank_schema.vault.pattern import NeedsOptimizedSchemas, Phase
from replank_schema.vault.records import phase_now
from replank_schema.vault.vault import Vault

Value = TypeVar("Value")

_OLD: Final = ("kv", "compare")


@dataclass(frozen=True, slots=True)
class Held:
    """A content as a whole."""

    blob: Blob
    data: bytes = field(repr=False)


class _OneTransaction:
    """Both patterns are written in one transaction: neither is ever behind the other."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def behind(self, age: float) -> bool:  # noqa: ARG002 - the interface's
        return False

    async def count(self, endpoints: Sequence[str], outcomes: Sequence[str], counts: Sequence[int]) -> None:
        async with self._vault.pool.acquire() as conn:
            await pattern_store.count_reads(conn, endpoints, outcomes, counts)


def read_router(vault: Vault) -> ReadRouter:
    """The router of one mode, which nobody but `Reads` asks."""
    return ReadRouter(
        f"vault-{vault.mode}",
        source=vault.pool,
        target=vault.pool,
        flags=openfeature.api.get_client(),
        ledger=_OneTransaction(vault),
    )


class Reads:
    """The reads of one mode."""

    def __init__(self, vault: Vault, router: ReadRouter) -> None:
        self._vault = vault
        self._router = router

    async def phase(self) -> Phase:
        """How far the mode is at this moment."""
        if self._vault.switch.settled:
            return Phase.NEW
        async with self._vault.pool.acquire() as conn:
            return await phase_now(self._vault, conn)

    async def require_new(self, what: str) -> None:
        """Raise `NeedsOptimizedSchemas` where the new pattern does not have everything."""
        if not (await self.phase()).new_is_whole:
            raise NeedsOptimizedSchemas(what)

    async def schema(self, schema_id: UUID) -> Schema | None:
        async def old() -> Schema | None:
            async with self._vault.pool.acquire() as conn:
                return await inline_store.get(conn, schema_id)

        async def new() -> Schema | None:
            async with self._vault.pool.acquire() as conn:
                return await store.get(conn, schema_id)

        return await self._read("get", old, new)

    async def active(self, name: str) -> Schema | None:
        """The active schema of this name."""

        async def old() -> Schema | None:
            async with self._vault.pool.acquire() as conn:
                return await inline_store.active(conn, name)

        async def new() -> Schema | None:
            async with self._vault.pool.acquire() as conn:
                return await store.active(conn, name)

        return await self._read("get", old, new)

    async def page(
        self, filters: Filters, sort: Sort, *, after: tuple[Any, UUID] | None, limit: int
    ) -> Sequence[Schema]:
        """Schemas in order. Raises `NeedsOptimizedSchemas` for words where the old pattern answers."""

        async def old() -> list[Schema]:
            if filters.words is not None:
                raise NeedsOptimizedSchemas("schemas were to be found by words")
            async with self._vault.pool.acquire() as conn:
                return await inline_store.page(conn, filters, sort, after=after, limit=limit)

        async def new() -> list[Schema]:
            async with self._vault.pool.acquire() as conn:
                return await store.page(conn, filters, sort, after=after, limit=limit)

        return await self._read("list", old, new, missing=lambda _: False)

    async def version(self, schema_id: UUID, number: int) -> Version | None:
        async def old() -> Version | None:
            async with self._vault.pool.acquire() as conn:
                return await inline_store.version(conn, schema_id, number)

        async def new() -> Version | None:
            async with self._vault.pool.acquire() as conn:
                return await store.version(conn, schema_id, number)

        return await self._read("get", old, new)

    async def versions(self, schema_id: UUID, *, before: int, limit: int) -> Sequence[Version]:
        """Versions below ``before``, the latest first."""

        async def old() -> list[Version]:
            async with self._vault.pool.acquire() as conn:
                return await inline_store.versions(conn, schema_id, before=before, limit=limit)

        async def new() -> list[Version]:
            async with self._vault.pool.acquire() as conn:
                return await store.versions(conn, schema_id, before=before, limit=limit)

        return await self._read("get", old, new, missing=lambda found: not found)

    async def content(self, schema_id: UUID, number: int | None) -> Blob | Held:
        """The content of a version, of the current one where ``number`` is None: where it can be streamed from, or,
        as long as the old pattern can answer too, as a whole. Raises `SchemaNotFound`."""
        if not (await self.phase()).writes_old:
            async with self._vault.pool.acquire() as conn:
                return await contents.of_version(conn, schema_id, number)

        async def old() -> Held | None:
            async with self._vault.pool.acquire() as conn:
                found = await inline_store.content(conn, schema_id, number)
            return Held(found.blob, found.text.encode()) if found is not None else None

        async def new() -> Held | None:
            async with self._vault.pool.acquire() as conn:
                try:
                    blob = await contents.of_version(conn, schema_id, number)
                except SchemaNotFound:
                    return None
            return Held(blob, await contents.read(self._vault, blob))

        held = await self._read("content", old, new, form=_digest)
        if held is None:
            raise SchemaNotFound(f"there is no such version of schema {schema_id}, or no such schema")
        return held

    async def _read(
        self,
        endpoint: str,
        old: Callable[[], Awaitable[Value]],
        new: Callable[[], Awaitable[Value]],
        *,
        missing: Callable[[Value], bool] = lambda answer: answer is None,
        form: Callable[[Value], Any] = shape,
    ) -> Value:
        phase = await self.phase()
        if not phase.writes_old:
            return await new()
        if not phase.new_is_whole:
            return await old()
        optimized = await self._vault.switch.optimized()
        default, key = phase.reads(optimized=optimized), self._vault.mode
        # The flag of the whole mode has the last word.
        if not optimized and self._router.mode(endpoint, key, default) not in _OLD:
            return await old()
        return await self._router.read(
            endpoint, kv=old, tables=new, key=key, missing=missing, form=form, default=default
        )


def _digest(held: Held | None) -> Any:
    if held is None:
        return None
    return {"sha256": hashlib.sha256(held.data).hexdigest(), "kind": held.blob.kind}
