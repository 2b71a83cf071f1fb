"""Repairing what a check found: each kind in its own way, each safe to be done again.

Nothing is believed that was not proven just now, nothing is deleted that is not kept elsewhere or nobody's, and every
repair is followed by the look that a check takes: what it finds is what the finding says from then on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final, Protocol
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from replank.connection import Connection
from replank.objects import ChecksumMismatch, ObjectExists
from replank_schema.vault import collector, consistency_store, contents, findings, inline_store, job_store, store
from replank_schema.vault.consistency_store import Finding, SchemaRow
from replank_schema.vault.findings import DEEP_KINDS, QUARANTINE, Case, FindingKind, Mended
from replank_schema.vault.intake import Intake
from replank_schema.vault.jobs import Handler, Work
from replank_schema.vault.model import DigestMismatch, blob_key, words_of
from replank_schema.vault.proof import prove
from replank_schema.vault.scan import NotJson
from replank_schema.vault.vault import Vault

_log = logging.getLogger(__name__)

KIND: Final = "repair"

_PAGE: Final = 500
_FIRST: Final = UUID(int=0)

# Contents before the schemas that speak of them.
_ORDER: Final[tuple[FindingKind, ...]] = (
    "corrupt",
    "missing",
    "unstored",
    "wrong_size",
    "wrong_facts",
    "orphaned",
    "uncollected",
    "unclaimed",
    "lost_version",
    "dangling",
    "foreign",
)
# What helps where repairing did not.
_LEFT: Final[Mapping[FindingKind, str]] = {
    "missing": "send the content again: any upload of the same bytes mends it",
    "orphaned": "repair it again: it is younger than it was, or somebody else is at it",
    "wrong_size": "check it deeply: the object could not be proven to hold the content",
    "unstored": "send the content again: any upload of the same bytes mends it",
    "uncollected": "repair it again: somebody else is at it",
    "corrupt": "repair it again: the object changed while it was kept aside",
    "wrong_facts": "delete the schemas that have it: the content was never JSON that can be kept",
    "lost_version": "restore the rows of the lost versions from a backup",
    "dangling": "repair its content first",
    "unclaimed": "repair it again: somebody else is at it",
    "foreign": "find out who wrote it, and take it away by hand",
}


class Sources(Protocol):
    """Who may have a content besides the bucket."""

    async def content(self, sha256: str) -> AsyncIterator[bytes] | None:
        """The content with this digest, as it was sent; None if it is not there. It is proven before it is used."""


class InlineRows:
    """The rows of the old pattern as a source: while both are written, and until the old ones are archived."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def content(self, sha256: str) -> AsyncIterator[bytes] | None:
        """The content of a row with this digest."""
        async with self._vault.pool.acquire() as conn:
            text = await inline_store.content_of(conn, sha256)

        async def whole(text: str) -> AsyncIterator[bytes]:
            yield text.encode()

        return whole(text) if text is not None else None


class Repair(BaseModel):
    """Which findings to repair; None: all that are open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    findings: tuple[UUID, ...] | None = None


def handler(sources: Sources | None = None) -> Handler:
    """The work of repairs, with somebody who may have lost contents."""

    async def handle(work: Work) -> None:
        await _Repairs(work, sources).run()

    return handle


class _Repairs:
    """One repair job. An interrupted one begins again: what is repaired is not open any more."""

    def __init__(self, work: Work, sources: Sources | None) -> None:
        self._work = work
        self._vault = work.vault
        self._case = Case(work.vault, work.job.id)
        self._sources = sources
        self._only = Repair.model_validate(work.job.request).findings
        # Each does what can be done, and says what was; None: nothing.
        self._ways: Mapping[FindingKind, Callable[[str], Awaitable[str | None]]] = {
            "corrupt": self._set_aside,
            "missing": self._fetch,
            "unstored": self._store,
            "wrong_size": self._correct,
            "wrong_facts": self._correct,
            "orphaned": self._collect,
            "uncollected": self._collect,
            "unclaimed": self._drop_upload,
            "lost_version": self._return_version,
            "dangling": self._correct_schema,
        }

    async def run(self) -> None:
        work = self._work
        async with self._vault.pool.acquire() as conn:
            work.total = sum((await consistency_store.count_left(conn, work.job.id, self._only)).values())
        for kind in _ORDER:
            await self._repair_all(kind)
        async with self._vault.pool.acquire() as conn:
            mended = await consistency_store.count_closed(conn, work.job.id, "repaired")
            gone = await consistency_store.count_closed(conn, work.job.id, "gone")
            left = await consistency_store.count_left(conn, work.job.id, self._only)
        await findings.measure(self._vault)
        work.total = work.done  # with what was opened meanwhile
        async with work.finish({"mended": {**mended}, "gone": {**gone}, "left": {**left}}):
            pass

    async def _repair_all(self, kind: FindingKind) -> None:
        after = _FIRST
        while True:
            async with self._vault.pool.acquire() as conn:
                page = await consistency_store.open_findings(conn, [kind], only=self._only, after=after, limit=_PAGE)
            for finding in page:
                await self._repair(kind, finding)
                self._work.done += 1
            if len(page) < _PAGE:
                return
            after = page[-1].id

    async def _repair(self, kind: FindingKind, finding: Finding) -> None:
        mend = self._ways.get(kind)
        how = await mend(finding.thing) if mend is not None else None
        found = await findings.settle(
            self._case,
            kind,
            finding.thing,
            deep=kind in DEEP_KINDS,
            mended=Mended(kind, how) if how is not None else None,
        )
        if kind in found:
            async with self._vault.pool.acquire() as conn:
                await consistency_store.set_remedy(conn, finding.id, _LEFT[kind])

    # --- contents ---

    async def _set_aside(self, sha256: str) -> str | None:
        """Keep a corrupt object elsewhere, take it from its place, and look for the content."""
        vault = self._vault
        proof = await prove(vault, sha256)
        if proof is None or proof.corrupt is None:
            return None
        aside = f"{QUARANTINE}{sha256}/{proof.stored_sha256}"
        try:
            async with vault.objects.get(blob_key(sha256), sha256=proof.stored_sha256) as body:
                with contextlib.suppress(ObjectExists):  # an earlier repair came this far
                    await vault.objects.put(
                        aside, body, size=proof.stored_size, sha256=proof.stored_sha256, if_none_match=True
                    )
            async with vault.objects.get(aside, sha256=proof.stored_sha256) as copy:
                async for _ in copy:
                    pass  # to its end, where its digest is compared
        except ChecksumMismatch as error:
            _log.warning("a corrupt object cannot be kept aside: %s", error, extra={"sha256": sha256})
            return None
        async with vault.pool.acquire() as conn, conn.transaction():
            await consistency_store.held_blob(conn, sha256)
            info = await findings.stat(vault, blob_key(sha256))
            if info is None or info.etag != proof.etag:
                return None
            await vault.objects.delete(blob_key(sha256))
        fetched = await self._fetch(sha256)
        return f"the corrupt object is kept as {aside}" + (f"; {fetched}" if fetched else "")

    async def _fetch(self, sha256: str) -> str | None:
        """Store a lost content again, if somebody has it."""
        vault = self._vault
        source = await self._sources.content(sha256) if self._sources is not None else None
        async with vault.pool.acquire() as conn:
            facts = await consistency_store.facts(conn, sha256)
        if source is None or facts is None:
            return None
        intake = Intake(source, declared=sha256)
        try:
            # The end of the stream proves the digest, and nothing appears before the end.
            async with aclosing(intake.compressed()) as compressed:
                info = await vault.objects.put(
                    blob_key(sha256),
                    compressed,
                    content_type=contents.MEDIA_TYPE,
                    metadata={"sha256": sha256, **({} if facts.size is None else {"size": str(facts.size)})},
                    if_none_match=True,
                )
        except ObjectExists:
            return None
        except (DigestMismatch, NotJson) as error:
            _log.warning("a source does not have the content that it says: %s", error, extra={"sha256": sha256})
            return None
        async with vault.pool.acquire() as conn, conn.transaction():
            if await consistency_store.held_blob(conn, sha256) is None:
                return None
            await consistency_store.correct_blob(conn, intake.blob(info.size))
        return "it was stored again from another source"

    async def _store(self, sha256: str) -> str | None:
        """Have what versions refer to stored again; what has no object may at least be sent again after this."""
        how = await self._correct(sha256) or await self._fetch(sha256)
        if how is not None:
            return how
        async with self._vault.pool.acquire() as conn, conn.transaction():
            row = await consistency_store.held_blob(conn, sha256)
            if row is not None and row.referenced:
                await consistency_store.expect(conn, sha256)
        return None

    async def _correct(self, sha256: str) -> str | None:
        """Have the row of a content say what its object proves, and its schemas with it."""
        vault = self._vault
        proof = await prove(vault, sha256)
        if proof is None or proof.blob is None:
            return None
        async with vault.pool.acquire() as conn, conn.transaction():
            row = await consistency_store.held_blob(conn, sha256)
            info = await findings.stat(vault, blob_key(sha256))
            if row is None or info is None or info.etag != proof.etag or not (row.referenced or row.state == "stored"):
                return None
            await consistency_store.correct_blob(conn, proof.blob)
        after = _FIRST
        while True:
            async with vault.pool.acquire() as conn:
                page = await consistency_store.current_of(conn, sha256, after=after, limit=_PAGE)
            for schema_id in page:
                async with vault.pool.acquire() as conn, conn.transaction():
                    await self._correct_held_schema(conn, schema_id)
            if len(page) < _PAGE:
                return "its row was corrected from the content"
            after = page[-1]

    async def _collect(self, sha256: str) -> str | None:
        vault = self._vault
        async with vault.pool.acquire() as conn, conn.transaction():
            row = await consistency_store.held_blob(conn, sha256)
            info = await findings.stat(vault, blob_key(sha256))
            if not {"orphaned", "uncollected"} & findings.judge_row(vault, row, info).keys():
                return None
        return "it was collected" if await collector.collect_one(vault, sha256) else None

    async def _drop_upload(self, key: str) -> str | None:
        vault = self._vault
        info = await findings.stat(vault, key)
        job_id = findings.job_of(key)
        if info is None or job_id is None or not findings.judge_key(vault, info):
            return None
        async with vault.pool.acquire() as conn:
            if await job_store.are_open(conn, [job_id]):
                return None
        await vault.objects.delete(key)
        return "it was deleted: its job has ended"

    # --- schemas ---

    async def _return_version(self, thing: str) -> str | None:
        schema_id = UUID(thing)
        async with self._vault.pool.acquire() as conn, conn.transaction():
            row = await consistency_store.held_schema(conn, schema_id)
            if row is None or not row.is_ahead:
                return None
            await consistency_store.return_version(conn, schema_id)
        return f"the row of version {row.version} was made anew, without its note"

    async def _correct_schema(self, thing: str) -> str | None:
        schema_id = UUID(thing)
        async with self._vault.pool.acquire() as conn, conn.transaction():
            row = await consistency_store.held_schema(conn, schema_id)
        if row is None or await self._correct(_current(row)[1]) is None:
            return None  # the row of its content may be what is wrong, and cannot be proven
        async with self._vault.pool.acquire() as conn, conn.transaction():
            await self._correct_held_schema(conn, schema_id)
        return "it was corrected from its current version"

    async def _correct_held_schema(self, conn: Connection, schema_id: UUID) -> None:
        row = await consistency_store.held_schema(conn, schema_id)
        if row is None or "dangling" not in findings.judge_schema(row):
            return
        number, sha256 = _current(row)
        blob = await store.blob(conn, sha256)
        if blob is not None:
            await consistency_store.correct_schema(
                conn,
                schema_id,
                version=number,
                content=blob,
                words=words_of([*row.tags, *blob.fields]),
                by=self._work.job.created_by,
            )


def _current(row: SchemaRow) -> tuple[int, str]:
    """Number and content of the version that is the current one, whatever the schema says."""
    if row.is_ahead or row.highest is None or row.highest_sha256 is None:
        return row.version, row.sha256
    return row.highest, row.highest_sha256
