"""Large uploads: what was received is published by a job, which outlives the process that received it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, JsonValue

from replank_schema.vault import contents, job_store, publishing, store
from replank_schema.vault.codec import Decompressor
from replank_schema.vault.contents import Received
from replank_schema.vault.job_store import Job
from replank_schema.vault.jobs import Work
from replank_schema.vault.model import INCOMING, Blob, DigestMismatch, Draft
from replank_schema.vault.vault import Vault

KIND: Final = "upload"


class Upload(BaseModel):
    """What is to become of a received content: a schema, a version of one, or just a blob to be referred to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: Literal["schema", "version", "blob"]
    sha256: str = ""
    """Known once the content was read, as is ``stored_size`` in bytes."""
    stored_size: int = 0
    draft: Draft | None = None
    schema_id: UUID | None = None
    revision: int | None = None
    note: str = ""
    force: bool = False


async def queue(vault: Vault, job_id: UUID, blob: Blob, upload: Upload, *, by: str) -> Job:
    """Have a received upload published. From here on a crash of any process does not lose it."""
    async with vault.pool.acquire() as conn, conn.transaction():
        if await store.announce(conn, blob) is None:
            raise contents.busy(blob.sha256)
        return await job_store.insert(conn, job_id, KIND, upload.model_dump(mode="json"), total=blob.stored_size, by=by)


async def handle(work: Work) -> None:
    """Move the content to its place, proving on the way that it is what was received, and publish it."""
    vault, job = work.vault, work.job
    upload = Upload.model_validate(job.request)
    incoming = f"{INCOMING}{job.id}"
    async with vault.pool.acquire() as conn:
        blob = await store.announced(conn, upload.sha256, stored_size=upload.stored_size)
    if blob is None:
        raise contents.busy(upload.sha256)
    async with vault.objects.get(incoming) as body:
        moved = await contents.put(vault, blob, _proven(body, blob, work))
    result = await _publish(work, upload, moved)
    async with work.finish(result):
        pass
    await vault.objects.delete(incoming)


async def _proven(body: AsyncIterable[bytes], blob: Blob, work: Work) -> AsyncIterator[bytes]:
    """The bytes as they are, if what they decompress to has the digest; else an error before the last of them."""
    digest = hashlib.sha256()
    decompressor = Decompressor()

    def check(chunk: bytes) -> None:
        for piece in decompressor.feed(chunk):
            digest.update(piece)

    held = b""
    async for chunk in body:
        await asyncio.to_thread(check, chunk)
        if held:
            yield held
        held = chunk
        work.done += len(chunk)
    decompressor.finish()
    if digest.hexdigest() != blob.sha256:
        raise DigestMismatch(
            f"what was received as {blob.sha256} is not that any more", fix="send it again; look at the object store"
        )
    yield held


async def _publish(work: Work, upload: Upload, blob: Blob) -> dict[str, JsonValue]:
    vault, by = work.vault, work.job.created_by
    match upload.what:
        case "schema" if upload.draft is not None:
            done = await publishing.create(vault, upload.draft, Received(blob, None), by=by)
        case "version" if upload.schema_id is not None and upload.revision is not None:
            done = await publishing.publish_version(
                vault,
                upload.schema_id,
                Received(blob, None),
                revision=upload.revision,
                note=upload.note,
                force=upload.force,
                by=by,
            )
        case _:
            async with vault.pool.acquire() as conn, conn.transaction():
                await contents.refer(conn, blob)
            return {"sha256": blob.sha256}
    return {"sha256": blob.sha256, "schema_id": str(done.schema.id), "version": done.schema.version}
