"""Use case: keep rows that the schema service gives away, prove that they are there, and say so."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import zstandard

from replank import outbox
from replank.connection import Connection
from replank.contracts.archiver import SchemasArchived
from replank.contracts.schema import SchemaArchiveOldRequested
from replank.objects import ObjectStore
from replank_archiver.schemas import store
from replank_archiver.schemas.exports import Exports
from replank_archiver.schemas.model import NotTheExport, SchemasManifest, export_key

_AWAKE_EVERY: Final = 10.0
_PIECE: Final = 1024 * 1024
# A frame that wants a larger window to be decompressed was not made by the schema service.
_MOST_WINDOW: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Lines:
    """What compressed lines turned out to be."""

    rows: int
    sha256: str


async def keep_rows(
    conn: Connection, objects: ObjectStore, exports: Exports, asked: SchemaArchiveOldRequested
) -> SchemasManifest:
    """Fetch the rows, put them, read them back, compare, and record them within the caller's transaction.

    The object is there before the row that speaks of it commits. If the transaction is lost, doing it again puts the
    same under the same key. Raises `NotTheExport`, `replank_archiver.schemas.model.ExportGone`, and
    `DependencyUnavailable`.
    """
    known = await store.get(conn, asked.request_id)
    if known is not None:
        return known
    key = export_key(asked.mode, asked.request_id, asked.sha256)
    async with _awake(conn):
        async with exports.open(asked.path) as body:
            info = await objects.put(key, body, content_type="application/zstd")
        async with objects.get(key) as kept:
            found = await lines_of(kept)
    if (found.rows, found.sha256) != (asked.rows, asked.sha256):
        await objects.delete(key)
        raise NotTheExport(
            f"what is at {asked.path} has {found.rows} rows with the SHA-256 {found.sha256}, not {asked.rows} with "
            f"{asked.sha256}",
            fix="find out what changed it: an export is made once, and never changes",
        )
    manifest = SchemasManifest(
        request_id=asked.request_id,
        mode=asked.mode,
        rows=found.rows,
        sha256=found.sha256,
        bucket=objects.settings.bucket,
        object_key=key,
        size=info.size,
        archived_at=datetime.now(UTC),
    )
    await store.insert(conn, manifest)
    archived = SchemasArchived(
        mode=manifest.mode,
        request_id=manifest.request_id,
        rows=manifest.rows,
        sha256=manifest.sha256,
        bucket=manifest.bucket,
        object_key=manifest.object_key,
        size=manifest.size,
        archived_at=manifest.archived_at,
    )
    await outbox.append(conn, archived, key=str(manifest.request_id), subject=f"vault:{manifest.mode}")
    return manifest


@asynccontextmanager
async def _awake(conn: Connection) -> AsyncIterator[None]:
    """Keep the server from ending a transaction that waits for a long copy. ``conn`` is not to be used meanwhile."""
    done = asyncio.Event()

    async def keep() -> None:
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AWAKE_EVERY):
                    await done.wait()
            if not done.is_set():
                await conn.execute("select 1")

    keeping = asyncio.create_task(keep())
    try:
        yield
    finally:
        # Not cancelled: that would end a statement under way, and with it the transaction.
        done.set()
        await keeping


async def lines_of(body: AsyncIterable[bytes]) -> Lines:
    """Decompress what is stored, piece by piece, and count and digest the lines.

    Raises `NotTheExport` for what is no zstd, or ends early.
    """
    digest = hashlib.sha256()
    rows = 0
    last = b"\n"
    async for piece in _decompressed(body):
        digest.update(piece)
        rows += piece.count(b"\n")
        last = piece[-1:]
    if last != b"\n":
        raise NotTheExport("what is kept ends within a line", fix="archive the old rows again")
    return Lines(rows, digest.hexdigest())


async def _decompressed(body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    # Each frame has its own end, and the table at the end of the last one is a frame that is skipped.
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW).decompressobj(
        write_size=_PIECE, read_across_frames=True
    )
    async for chunk in body:
        try:
            piece = await asyncio.to_thread(decompressor.decompress, chunk)
        except zstandard.ZstdError as error:
            raise NotTheExport(f"what is kept is no zstd: {error}", fix="archive the old rows again") from error
        if piece:
            yield piece
