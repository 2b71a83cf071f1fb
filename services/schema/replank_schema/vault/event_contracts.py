"""Event contracts as schemas: what services declare is published, and who uses a contract is kept beside it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from uuid_utils.compat import uuid7

from replank.connection import Connection
from replank.contracts.declarations import EventContractDeclared, EventContractUsed, canonical, schema_sha256
from replank.contracts.fields import Actor
from replank.errors import ReplankError
from replank_schema.vault import contents, publishing, records, store
from replank_schema.vault.model import Consumer, Draft
from replank_schema.vault.vault import Vault

_log = logging.getLogger(__name__)

_ACTOR: Final[TypeAdapter[str]] = TypeAdapter(Actor)


class NotTheContract(ReplankError):
    """A declaration whose schema does not have the digest that it states."""


def name_of(contract: str) -> str:
    """What a contract's schema is called in the vault."""
    return f"events/{contract}"


async def publish(vault: Vault, declared: EventContractDeclared) -> None:
    """Publish a declared contract, if it is not what is published already. May be done again.

    Nobody can be asked whether a contract that is in use already may change so: if those who use it may not be able to
    read it, that is told. Raises `NotTheContract`, and what publishing does.
    """
    if schema_sha256(declared.json_schema) != declared.sha256:
        raise NotTheContract(
            f"the declared schema of {declared.contract} does not have the SHA-256 {declared.sha256}",
            fix="find out who declared it: its digest is not of the schema's canonical form",
        )
    by = _actor(f"service:{declared.service}")
    name = name_of(declared.contract)

    async def text() -> AsyncIterator[bytes]:
        yield canonical(declared.json_schema)

    received = await contents.receive(vault, text(), uuid7(), declared=declared.sha256)
    if received.data is None:
        raise NotTheContract(f"the declared schema of {declared.contract} is too large", fix="declare a smaller one")
    async with records.reading(vault) as known:
        there = await known.active(name)
    if there is None:
        draft = Draft(
            name=name,
            owner=by,
            description=f"Events of {declared.service} on the topic {declared.topic}",
            tags=("event-contract",),
            metadata={"contract": declared.contract, "service": declared.service, "topic": declared.topic},
        )
        await publishing.create(vault, draft, received, by=by)
        return
    if there.sha256 == received.blob.sha256:
        return
    done = await publishing.publish_version(
        vault, there.id, received, revision=there.revision, note="declared at the start", force=True, by=by
    )
    await _tell_of_breakage(vault, done.schema.name, done.schema.version, done.schema.id)


async def _tell_of_breakage(vault: Vault, name: str, number: int, schema_id: UUID) -> None:
    async with records.reading(vault) as known:
        version = await known.version(schema_id, number)
        users = await publishing.live_consumers(known.conn, vault, name)
    if version is not None and version.forward is False and users:
        _log.warning(
            "version %d of %s may not be readable by those who use it",
            number,
            name,
            extra={"consumers": [user.consumer for user in users]},
        )


async def note_use(conn: Connection, used: EventContractUsed) -> None:
    """Count a use of a contract, in the caller's transaction, so that it is counted once."""
    seen = Consumer(used.consumer, used.events, used.first_at, used.last_at)
    await store.contract_used(conn, name_of(used.contract), seen)


def _actor(name: str) -> str:
    try:
        return _ACTOR.validate_python(name)
    except ValidationError:
        return "service:unknown"
