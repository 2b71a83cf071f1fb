"""Whether an object is the content that it is kept as: read to its end, decompressed, digested and understood again."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Final

from replank.objects import ObjectChanged, ObjectNotFound
from replank_schema.vault.codec import FRAME, CorruptContent, Decompressor
from replank_schema.vault.model import Blob, blob_key
from replank_schema.vault.scan import NotJson, Scanner
from replank_schema.vault.vault import Vault

_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Proof:
    """What one object turned out to hold. ``etag`` is of the bytes that were read, ``stored_sha256`` their digest.

    ``corrupt`` says why they are not the content; None: they are, and ``blob`` is what is true of it, which is None in
    turn for a content that is no JSON that can be kept.
    """

    etag: str
    stored_size: int
    stored_sha256: str
    corrupt: str | None
    blob: Blob | None


async def prove(vault: Vault, sha256: str) -> Proof | None:
    """Read the object of a content; None if there is none.

    Holds a chunk and a frame. Raises `replank.objects.ObjectChanged` for one that is replaced again and again while it
    is read, and the errors of the object store.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await _prove(vault, sha256)
        except ObjectNotFound:
            return None
        except ObjectChanged:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _prove(vault: Vault, sha256: str) -> Proof:
    reading = _Reading()
    async with vault.objects.get(blob_key(sha256)) as body:
        async for chunk in body:
            await asyncio.to_thread(reading.take, chunk)
        return await asyncio.to_thread(reading.verdict, sha256, body.info.etag)


class _Reading:
    """One object as it is read. Not thread-safe."""

    def __init__(self) -> None:
        self._stored = hashlib.sha256()
        self._stored_size = 0
        self._content = hashlib.sha256()
        self._size = 0
        self._decompressor = Decompressor()
        self._scanner: Scanner | None = Scanner()
        self._short = False
        self._corrupt: str | None = None

    def take(self, chunk: bytes) -> None:
        self._stored.update(chunk)
        self._stored_size += len(chunk)
        if self._corrupt is not None:
            return
        try:
            for piece in self._decompressor.feed(chunk):
                self._take_content(piece)
        except CorruptContent as error:
            self._corrupt = error.message

    def _take_content(self, piece: bytes) -> None:
        if self._short:
            # Whole it can be read nevertheless, but not in parts, which count on it.
            raise CorruptContent("a frame that is not the last one is shorter than a frame has to be")
        self._short = len(piece) < FRAME
        self._content.update(piece)
        self._size += len(piece)
        if self._scanner is not None:
            try:
                self._scanner.feed(piece)
            except NotJson:
                self._scanner = None

    def verdict(self, sha256: str, etag: str) -> Proof:
        corrupt = self._corrupt
        if corrupt is None:
            try:
                self._decompressor.finish()
            except CorruptContent as error:
                corrupt = error.message
        if corrupt is None and self._content.hexdigest() != sha256:
            corrupt = f"the content has the SHA-256 {self._content.hexdigest()}"
        blob = self._blob(sha256) if corrupt is None else None
        return Proof(etag, self._stored_size, self._stored.hexdigest(), corrupt, blob)

    def _blob(self, sha256: str) -> Blob | None:
        if self._scanner is None:
            return None
        try:
            facts = self._scanner.finish()
        except NotJson:
            return None
        return Blob(
            sha256=sha256,
            size=self._size,
            stored_size=self._stored_size,
            frame_size=FRAME,
            kind=facts.kind,
            field_count=facts.field_count,
            fields_exact=facts.fields_exact,
            fields=facts.fields,
        )
