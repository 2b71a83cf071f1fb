"""Contents: taking them in, keeping them once each, reading them and parts of them.

The order makes it safe. The row of a blob is there before its object, so that an object is never nobody's for long; the
object is there before anything refers to it, so that what can be found can be read. A crash between two steps leaves a
blob that nobody refers to, which the collector takes after the grace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from opentelemetry import trace

from replank.connection import Connection
from replank.objects import ObjectExists, ObjectNotFound
from replank_schema.vault import store
from replank_schema.vault.codec import Decompressor, SeekTable, seek_table_length
from replank_schema.vault.intake import Intake
from replank_schema.vault.model import INCOMING, Blob, BlobBusy, BlobUnknown, SchemaNotFound, blob_key
from replank_schema.vault.pattern import NeedsOptimizedSchemas
from replank_schema.vault.vault import Vault

_log = logging.getLogger(__name__)
_tracer: Final = trace.get_tracer("replank.schema.vault")

MEDIA_TYPE: Final = "application/zstd"


@dataclass(frozen=True, slots=True)
class Received:
    """A content that was taken in. ``data`` is the object to be; None if it is where it belongs already, or is large
    and waits to be moved there."""

    blob: Blob
    data: bytes | None


async def receive(
    vault: Vault,
    source: AsyncIterable[bytes],
    upload_id: UUID,
    *,
    declared: str | None = None,
    only_small: bool = False,
) -> Received:
    """Take an upload in. Where it fails, or the sender goes away, nothing stays.

    Raises what `Intake.compressed` does, and the errors of the object store for a large upload, which is refused as
    `NeedsOptimizedSchemas` if it is to be ``only_small``.
    """
    intake = Intake(source, declared=declared)
    # What takes time in an upload is between the requests to servers: reading, checking and compressing what is sent.
    with _tracer.start_as_current_span("vault receive", record_exception=False, set_status_on_exception=False) as span:
        received = await _received(vault, intake, upload_id, only_small=only_small)
        span.set_attributes({"replank.vault.mode": vault.mode, "replank.content.size": intake.size})
    return received


async def _received(vault: Vault, intake: Intake, upload_id: UUID, *, only_small: bool) -> Received:
    async with aclosing(intake.compressed()) as compressed:
        head = bytearray()
        async for piece in compressed:
            head += piece
            if intake.size > vault.limits.inline_bytes:
                break
        else:
            return Received(intake.blob(len(head)), bytes(head))
        if only_small:
            raise NeedsOptimizedSchemas(
                f"the content has more than the {vault.limits.inline_bytes} bytes that are kept in a row"
            )

        async def everything() -> AsyncIterator[bytes]:
            yield bytes(head)
            head.clear()
            async for piece in compressed:
                yield piece

        info = await vault.objects.put(f"{INCOMING}{upload_id}", everything(), content_type=MEDIA_TYPE)
        return Received(intake.blob(info.size), None)


async def take_in(text: bytes) -> Received:
    """Take in a content that is in memory already. Raises what `Intake.compressed` does."""

    async def source() -> AsyncIterator[bytes]:
        yield text

    intake = Intake(source())
    data = b"".join([piece async for piece in intake.compressed()])
    return Received(intake.blob(len(data)), data)


def plain(data: bytes) -> bytes:
    """What an object decompresses to that is small enough to be held as a whole. CPU work."""
    decompressor = Decompressor()
    text = b"".join(decompressor.feed(data))
    decompressor.finish()
    return text


async def keep(vault: Vault, blob: Blob, data: bytes) -> Blob:
    """Have the content of a small upload in the object store, once; it may be referred to now.

    Raises `BlobBusy`, and the errors of the object store: then nothing refers to anything.
    """
    if (known := await _announce(vault, blob)) is not None:
        return known
    return await put(vault, blob, data)


async def _announce(vault: Vault, blob: Blob) -> Blob | None:
    """Say that a content arrives. The blob as it is known, if it is in the object store already."""
    async with vault.pool.acquire() as conn:
        state = await store.announce(conn, blob)
    if state is None:
        # Its collection is under way, or was when a process died: it is finished first.
        await remove_condemned(vault, blob.sha256)
        async with vault.pool.acquire() as conn:
            state = await store.announce(conn, blob)
    if state is None:
        raise busy(blob.sha256)
    if state == "arriving":
        return None
    async with vault.pool.acquire() as conn:
        known = await store.blob(conn, blob.sha256)
    if known is None:
        raise busy(blob.sha256)
    try:
        # What is known is trusted, but for its being there: who has the content in hand is who can mend a loss.
        await vault.objects.stat(blob_key(blob.sha256))
    except ObjectNotFound:
        _log.warning("a content that should be there is not, and is stored again", extra={"sha256": blob.sha256})
        return None
    return known


async def remove_condemned(vault: Vault, sha256: str) -> bool:
    """Delete the object of a condemned blob, and then its row; False if there is none.

    The row is held meanwhile, so that nobody puts the object anew before it is gone.
    """
    async with vault.pool.acquire() as conn, conn.transaction():
        if not await store.hold_condemned(conn, sha256):
            return False
        await vault.objects.delete(blob_key(sha256))
        await store.forget(conn, sha256)
    return True


async def put(vault: Vault, blob: Blob, data: AsyncIterable[bytes] | bytes) -> Blob:
    """Store an announced content; ``blob.stored_size`` is how many bytes that takes."""
    key = blob_key(blob.sha256)
    try:
        await vault.objects.put(
            key,
            data,
            size=blob.stored_size,
            content_type=MEDIA_TYPE,
            metadata={"sha256": blob.sha256, "size": str(blob.size)},
            if_none_match=True,
        )
    except ObjectExists:
        # Somebody sent the same at the same time. Another release may compress it otherwise: the object's size counts.
        info = await vault.objects.stat(key)
        return replace(blob, stored_size=info.size)
    return blob


async def known(conn: Connection, sha256: str) -> Blob:
    """A content that was sent before, to be referred to now. Raises `BlobUnknown`."""
    found = await store.touch(conn, sha256)
    if found is None:
        raise BlobUnknown(
            f"the content with the SHA-256 {sha256} is not in the vault", fix="send it: PUT it under blobs/"
        )
    return found


async def refer(conn: Connection, blob: Blob) -> None:
    """Within the transaction that refers to it: the content is stored, and is not collected. Raises `BlobBusy`."""
    if not await store.stored(conn, blob.sha256, blob.stored_size):
        raise busy(blob.sha256)


@asynccontextmanager
async def reading(
    vault: Vault, blob: Blob, *, first: int = 0, length: int | None = None
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The content, or ``length`` bytes of it from ``first``, decompressed as it arrives.

    Reads no more of the object than the frames that hold them. Raises the errors of the object store before the first
    byte, and `replank_schema.vault.codec.CorruptContent` where the content is not what was stored.
    """
    key = blob_key(blob.sha256)
    whole = first == 0 and length is None
    if whole:
        async with vault.objects.get(key) as body:
            yield _decompressed(body, Decompressor())
        return
    take = blob.size - first if length is None else length
    tail = seek_table_length(blob.size, blob.frame_size)
    async with vault.objects.get(key, offset=blob.stored_size - tail, length=tail) as body:
        table = SeekTable.parse(b"".join([chunk async for chunk in body]))
    span = table.locate(first, take)
    async with vault.objects.get(key, offset=span.offset, length=span.length) as body:
        yield _decompressed(body, Decompressor(skip=span.skip, take=span.take))


@asynccontextmanager
async def reading_stored(vault: Vault, blob: Blob) -> AsyncIterator[AsyncIterator[bytes]]:
    """The content as it is stored: zstd, for who can decompress it."""
    async with vault.objects.get(blob_key(blob.sha256)) as body:
        yield aiter(body)


async def read(vault: Vault, blob: Blob) -> bytes:
    """A content that is small enough to be held as a whole."""
    async with reading(vault, blob) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def _decompressed(body: AsyncIterable[bytes], decompressor: Decompressor) -> AsyncIterator[bytes]:
    async for chunk in body:
        # Piece by piece: a chunk may hold the frames of a content a thousand times its size.
        pieces = decompressor.feed(chunk)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece
    decompressor.finish()


async def of_version(conn: Connection, schema_id: UUID, number: int | None) -> Blob:
    """The content of a version; None: of the current one. Raises `SchemaNotFound`."""
    if number is None:
        schema = await store.get(conn, schema_id)
        sha256 = schema.sha256 if schema is not None else None
    else:
        version = await store.version(conn, schema_id, number)
        sha256 = version.sha256 if version is not None else None
    blob = await store.blob(conn, sha256) if sha256 is not None else None
    if blob is None:
        what = f"schema {schema_id}" if number is None else f"version {number} of schema {schema_id}"
        raise SchemaNotFound(f"there is no {what}")
    return blob


def busy(sha256: str) -> BlobBusy:
    """The error for a content that is on its way out."""
    return BlobBusy(
        f"the content with the SHA-256 {sha256} is being collected just now", fix="send it again in a moment"
    )
