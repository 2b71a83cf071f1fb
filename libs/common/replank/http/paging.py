"""Keyset paging: a page starts after the last row of the one before it, whatever was inserted meanwhile.

_by_age = Keyset("migrations", tuple[datetime, UUID])

async def list_migrations(page: Annotated[PageQuery, Query()]) -> Page[MigrationView]:
    rows = await store.migrations(conn, after=_by_age.after(page), limit=page.limit + 1)
    return _by_age.page(rows, page, key=lambda row: (row.created_at, row.id), view=MigrationView.of)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from replank.http.problems import Problem

Key = TypeVar("Key", bound=tuple[Any, ...])
Row = TypeVar("Row")
Item = TypeVar("Item")

_CHECKSUM: Final = 6


class PageQuery(BaseModel):
    """The query parameters of every listing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(default=50, ge=1, le=200)
    cursor: str | None = Field(default=None, max_length=1024)
    """``next`` of the page before; nothing for the first page."""


class Page(BaseModel, Generic[Item]):
    """A part of a listing. ``next`` is the cursor of the next page; there is none after the last."""

    items: list[Item]
    next: str | None


class Keyset(Generic[Key]):
    """The cursor of one listing: an opaque form of its sort key.

    A cursor carries a checksum over the listing's name, so that one that was cut, edited or taken from another listing
    is refused instead of showing a wrong page. It is no protection: what is in it is only ever a bound parameter.
    """

    def __init__(self, listing: str, key: type[Key]) -> None:
        self._listing = listing.encode()
        self._key = TypeAdapter(key)

    def after(self, query: PageQuery) -> Key | None:
        """The sort key to start after, ``None`` for the first page. Raises a 400 `Problem` for a cursor of no use."""
        if query.cursor is None:
            return None
        try:
            raw = base64.b64decode(
                query.cursor.encode() + b"=" * (-len(query.cursor) % 4), altchars=b"-_", validate=True
            )
            if self._checksum(raw[_CHECKSUM:]) != raw[:_CHECKSUM]:
                raise self._refused()
            return self._key.validate_json(raw[_CHECKSUM:])
        except (binascii.Error, UnicodeEncodeError, ValidationError):
            raise self._refused() from None

    def page(
        self,
        rows: Sequence[Row],
        query: PageQuery,
        *,
        key: Callable[[Row], Key],
        view: Callable[[Row], Item],
    ) -> Page[Item]:
        """The page made of up to ``limit + 1`` rows: the one too many says that there is a next page."""
        shown = rows[: query.limit]
        following = self._cursor(key(shown[-1])) if len(rows) > query.limit else None
        return Page(items=[view(row) for row in shown], next=following)

    def _cursor(self, key: Key) -> str:
        payload = self._key.dump_json(key)
        return base64.urlsafe_b64encode(self._checksum(payload) + payload).rstrip(b"=").decode()

    def _checksum(self, payload: bytes) -> bytes:
        return hashlib.blake2s(payload, key=self._listing[:32], digest_size=_CHECKSUM).digest()

    def _refused(self) -> Problem:
        return Problem(
            400, "invalid-cursor", "the cursor does not belong to this listing", fix="start again without a cursor"
        )
