"""An upload as it streams by: counted, digested, read as JSON and compressed, in constant memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

from replank_schema.vault.codec import FRAME, Compressor
from replank_schema.vault.model import Blob, DigestMismatch
from replank_schema.vault.scan import Facts, Scanner

# Less than this is worked on at once: it takes less time than the way to a thread and back.
_INLINE: Final = 16 * 1024
# What is handed to a thread at once, at least: larger than what a connection gives in one read.
_PIECE: Final = 256 * 1024


class Intake:
    """Reads ``source`` once. What it knows it knows when `compressed` has ended.

    ``declared`` is the digest that the content has to have, if the sender said so.
    """

    def __init__(self, source: AsyncIterable[bytes], *, declared: str | None = None) -> None:
        self.size = 0
        self._source = source
        self._declared = declared
        self._digest = hashlib.sha256()
        self._scanner = Scanner()
        self._compressor = Compressor()
        self._facts: Facts | None = None

    async def compressed(self) -> AsyncGenerator[bytes, None]:
        """The content as it is stored. Raises `replank_schema.vault.scan.NotJson`, and `DigestMismatch` in the end."""
        waiting = bytearray()
        async for chunk in self._source:
            self.size += len(chunk)
            waiting += chunk
            if len(waiting) >= _PIECE:
                piece = bytes(waiting)
                waiting.clear()
                if made := await asyncio.to_thread(self._work, piece):
                    yield made
        rest = bytes(waiting)
        yield self._end(rest) if len(rest) < _INLINE else await asyncio.to_thread(self._end, rest)
        if self._declared is not None and self.sha256 != self._declared:
            raise DigestMismatch(
                f"the content has the SHA-256 {self.sha256}, not {self._declared} as declared",
                fix="send it again; if it fails again, the file or the digest is not what you take it for",
            )

    def _work(self, piece: bytes) -> bytes:
        self._digest.update(piece)
        self._scanner.feed(piece)
        return self._compressor.feed(piece)

    def _end(self, piece: bytes) -> bytes:
        made = self._work(piece)
        self._facts = self._scanner.finish()
        return made + self._compressor.finish()

    @property
    def sha256(self) -> str:
        """The digest of the content, as hexadecimal digits."""
        return self._digest.hexdigest()

    def blob(self, stored_size: int) -> Blob:
        """What is known of the content, after its end."""
        if self._facts is None:
            raise RuntimeError("the upload has not come to its end")
        return Blob(
            sha256=self.sha256,
            size=self.size,
            stored_size=stored_size,
            frame_size=FRAME,
            kind=self._facts.kind,
            field_count=self._facts.field_count,
            fields_exact=self._facts.fields_exact,
            fields=self._facts.fields,
        )
