"""What can be wrong between the vault's tables and its object store, and telling of it.

Whoever suspects something has it looked at again here, with the row held, before it is told: what a listing and a query
see is not of one moment, and what is on its way in or out is no fault. What is found is kept and told in one
transaction, once for as long as it is open; what was found before and is not so any more is closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias, get_args
from uuid import UUID

from pydantic import TypeAdapter
from uuid_utils.compat import uuid7

from replank import outbox
from replank.connection import Connection
from replank.contracts.schema import MOST_AFFECTED, SchemaInconsistencyDetected
from replank.objects import ObjectInfo, ObjectNotFound
from replank.telemetry import metrics
from replank_schema.vault import consistency_store, job_store, store
from replank_schema.vault.consistency_store import BlobFacts, BlobRow, Finding, SchemaRow
from replank_schema.vault.model import EXPORTS, INCOMING, blob_key, words_of
from replank_schema.vault.proof import Proof, prove
from replank_schema.vault.vault import Vault

FindingKind = Literal[
    "missing",
    "orphaned",
    "wrong_size",
    "unstored",
    "uncollected",
    "corrupt",
    "wrong_facts",
    "lost_version",
    "dangling",
    "unclaimed",
    "foreign",
]
KINDS: Final[tuple[FindingKind, ...]] = get_args(FindingKind)
DEEP_KINDS: Final[tuple[FindingKind, ...]] = ("corrupt", "wrong_facts")
"""What only the content itself can tell."""

_ROW_KINDS: Final[tuple[FindingKind, ...]] = ("missing", "orphaned", "wrong_size", "unstored", "uncollected")
_SCHEMA_KINDS: Final[tuple[FindingKind, ...]] = ("lost_version", "dangling")
_KEY_KINDS: Final[tuple[FindingKind, ...]] = ("unclaimed", "foreign")

QUARANTINE: Final = "quarantine/"
"""Where corrupt objects are kept: below the content's digest, by their own."""
_OURS: Final = (INCOMING, EXPORTS, QUARANTINE, ".replank-probe/")

_REMEDIES: Final[Mapping[FindingKind, str]] = {
    "missing": "repair it, or send the content again",
    "orphaned": "repair it, or leave it to the collector",
    "wrong_size": "repair it: the row is corrected once the content is proven",
    "unstored": "repair it, or send the content again",
    "uncollected": "find out why the collector does not run; repairing takes it away",
    "corrupt": "repair it: the object is kept aside, and the content can be sent again",
    "wrong_facts": "repair it: the row is corrected from the content",
    "lost_version": "repair it: the current version's row is made anew; others have to come from a backup",
    "dangling": "repair it: the schema is corrected from its version",
    "unclaimed": "find out why the collector does not run; repairing takes it away",
    "foreign": "find out who wrote it, and take it away by hand",
}

_KIND: Final[TypeAdapter[FindingKind]] = TypeAdapter(FindingKind)

Found: TypeAlias = dict[FindingKind, str]
"""What is wrong with one thing: what is known of it, by kind."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a job looks at, and which job that is."""

    vault: Vault
    job_id: UUID


@dataclass(frozen=True, slots=True)
class Mended:
    """A finding of this kind was repaired, and how."""

    kind: FindingKind
    how: str


# --- judging: pure ---


def overdue(vault: Vault) -> timedelta:
    """After how long the collector must have taken what nobody refers to: it had two chances."""
    return vault.limits.grace + timedelta(seconds=2 * vault.limits.collect_every)


def judge_row(vault: Vault, row: BlobRow | None, info: ObjectInfo | None) -> Found:
    """A content's row beside its object, of which there may be either."""
    if row is None:
        if info is not None and _older(info, vault.limits.grace):
            return {"orphaned": f"an object of {info.size} bytes has no row"}
        return {}
    found: Found = {}
    if row.state != "stored":
        if row.referenced:
            found["unstored"] = f"versions have it, but its row says {row.state}"
    elif info is None:
        found["missing"] = "its row says that it is stored, and there is no object"
    elif info.size != row.stored_size:
        found["wrong_size"] = f"its object has {info.size} bytes, not {row.stored_size}"
    if not row.referenced and row.untouched > overdue(vault):
        found["uncollected"] = f"nobody refers to it, and its row ({row.state}) should have been collected"
    return found


def judge_content(facts: BlobFacts, proof: Proof) -> Found:
    """What a content's row says of it beside what its object holds."""
    if proof.corrupt is not None:
        return {"corrupt": f"the object does not hold the content: {proof.corrupt}"}
    if proof.blob is None:
        return {"wrong_facts": "the content is not JSON that can be kept"}
    proven = proof.blob
    wrong = [
        name
        for name in ("size", "frame_size", "kind", "field_count", "fields_exact")
        if getattr(facts, name) != getattr(proven, name)
    ]
    if facts.encoding != "zstd":
        wrong.append("encoding")
    if list(facts.fields or ()) != list(proven.fields):
        wrong.append("fields")
    return {"wrong_facts": f"its row is wrong about {', '.join(wrong)}"} if wrong else {}


def judge_schema(row: SchemaRow) -> Found:
    """A schema beside its versions and its content. Its words are looked at where they were asked for."""
    found: Found = {}
    last = row.version if row.is_ahead or row.highest is None else row.highest
    if row.versions != last:
        found["lost_version"] = f"{row.versions} of its versions up to {last} are there"
    wrong = []
    if not row.is_ahead:
        wrong += ["version"] if row.version != row.highest else []
        wrong += ["sha256"] if row.sha256 != row.highest_sha256 else []
    if "sha256" not in wrong:
        ours, content = (row.kind, row.field_count, row.size), (row.blob_kind, row.blob_field_count, row.blob_size)
        names = ("kind", "field_count", "size")
        wrong += [name for name, mine, its in zip(names, ours, content, strict=True) if mine != its]
        if row.words is not None and row.words != words_of([*row.tags, *(row.blob_fields or ())]):
            wrong.append("words")
    if wrong:
        found["dangling"] = f"it does not say of its current version what that does: {', '.join(wrong)}"
    return found


def judge_key(vault: Vault, info: ObjectInfo) -> Found:
    """An object that is no content's, by its key. Whether an upload is still wanted its job has to say."""
    if info.key.startswith(INCOMING) and job_of(info.key) is not None:
        return {"unclaimed": "an upload should have been collected"} if _older(info, overdue(vault)) else {}
    if info.key.startswith(_OURS):
        return {}
    return {"foreign": f"an object of {info.size} bytes has a key that nothing here writes"}


def job_of(key: str) -> UUID | None:
    """The job for which an upload was received."""
    with contextlib.suppress(ValueError):
        return UUID(key.removeprefix(INCOMING))
    return None


def _older(info: ObjectInfo, age: timedelta) -> bool:
    return info.last_modified is not None and info.last_modified < datetime.now(UTC) - age


# --- looking again, and telling ---


async def settle(case: Case, kind: FindingKind, thing: str, *, deep: bool, mended: Mended | None = None) -> Found:
    """Look again at what a finding of this kind is about, and have the findings about it say what is so."""
    if kind in _SCHEMA_KINDS:
        return await settle_schema(case, UUID(thing), mended=mended)
    if kind in _KEY_KINDS:
        return await settle_key(case, thing, mended=mended)
    return await settle_content(case, thing, deep=deep, mended=mended)


async def settle_content(
    case: Case, sha256: str, *, deep: bool, suspected: Found | None = None, mended: Mended | None = None
) -> Found:
    """Look again at a content. What is ``suspected`` of its size counts only if it is still exactly so: the size of an
    object that was just put is in its row a moment later."""
    vault = case.vault
    while True:
        proof = await prove(vault, sha256) if deep else None
        async with vault.pool.acquire() as conn, conn.transaction():
            row = await consistency_store.held_blob(conn, sha256)
            info = await stat(vault, blob_key(sha256))
            if deep and info is not None and (proof is None or proof.etag != info.etag):
                continue  # replaced since it was read
            found = judge_row(vault, row, info)
            if suspected is not None and found.get("wrong_size") != suspected.get("wrong_size"):
                found.pop("wrong_size", None)
            covered = _ROW_KINDS
            if row is None or info is None:
                covered += DEEP_KINDS  # there is nothing of which that could be so
            elif proof is not None:
                covered += DEEP_KINDS
                facts = await consistency_store.facts(conn, sha256)
                if facts is not None and row.state == "stored":
                    found |= judge_content(facts, proof)
            await _record(conn, case, sha256, found, covered=covered, mended=mended)
            return found


async def settle_schema(case: Case, schema_id: UUID, *, mended: Mended | None = None) -> Found:
    """Look again at a schema."""
    async with case.vault.pool.acquire() as conn, conn.transaction():
        row = await consistency_store.held_schema(conn, schema_id)
        found = judge_schema(row) if row is not None else {}
        await _record(conn, case, str(schema_id), found, covered=_SCHEMA_KINDS, mended=mended)
    return found


async def settle_key(case: Case, key: str, *, mended: Mended | None = None) -> Found:
    """Look again at an object that is no content's."""
    async with case.vault.pool.acquire() as conn, conn.transaction():
        info = await stat(case.vault, key)
        found = judge_key(case.vault, info) if info is not None else {}
        if "unclaimed" in found and (job_id := job_of(key)) and await job_store.are_open(conn, [job_id]):
            found = {}
        await _record(conn, case, key, found, covered=_KEY_KINDS, mended=mended)
    return found


def kind_of(finding: Finding) -> FindingKind:
    """The kind of a finding that was kept."""
    return _KIND.validate_python(finding.kind)


async def stat(vault: Vault, key: str) -> ObjectInfo | None:
    """What is known of an object; None if there is none."""
    try:
        return await vault.objects.stat(key)
    except ObjectNotFound:
        return None


async def _record(
    conn: Connection, case: Case, thing: str, found: Found, *, covered: Sequence[FindingKind], mended: Mended | None
) -> None:
    for kind, detail in found.items():
        await _tell(conn, case, kind, thing, detail)
    over = [kind for kind in covered if kind not in found]
    if mended is not None and mended.kind in over:
        over.remove(mended.kind)
        await consistency_store.close_findings(
            conn, thing, [mended.kind], state="repaired", closed_by=case.job_id, how=mended.how
        )
    await consistency_store.close_findings(conn, thing, over, state="gone", closed_by=case.job_id)


async def _tell(conn: Connection, case: Case, kind: FindingKind, thing: str, detail: str) -> None:
    schemas: list[UUID] = []
    affected = 0
    is_of_content = kind not in _SCHEMA_KINDS and kind not in _KEY_KINDS
    if is_of_content:
        schemas, affected = await consistency_store.schemas_of(conn, thing, limit=MOST_AFFECTED)
    elif kind in _SCHEMA_KINDS:
        schemas, affected = [UUID(thing)], 1
    opened = await consistency_store.open_finding(
        conn,
        uuid7(),
        kind,
        thing,
        detail=detail,
        schemas=schemas,
        affected=affected,
        found_by=case.job_id,
        remedy=_REMEDIES[kind],
    )
    if opened is None:
        return
    told = SchemaInconsistencyDetected(
        mode=case.vault.mode,
        finding_id=opened.id,
        kind=kind,
        sha256=thing if is_of_content else None,
        schemas=tuple(schemas),
        affected=affected,
        detail=detail,
        found_at=opened.found_at,
    )
    await outbox.append(conn, told, key=str(opened.id), subject=f"vault:{case.vault.mode}")


async def measure(vault: Vault) -> None:
    """Set the gauges of open findings, and of how much there is, from the tables."""
    async with vault.pool.acquire() as conn:
        counted = await consistency_store.count_open(conn)
        volume = await store.volume(conn)
    metrics.VAULT_CONTENTS.labels(mode=vault.mode).set(volume.contents)
    metrics.VAULT_BYTES.labels(mode=vault.mode, of="content").set(volume.size)
    metrics.VAULT_BYTES.labels(mode=vault.mode, of="stored").set(volume.stored_size)
    for kind in KINDS:
        metrics.VAULT_FINDINGS.labels(mode=vault.mode, kind=kind).set(counted.get(kind, 0))
