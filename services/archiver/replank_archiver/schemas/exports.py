"""Where the rows come from: the schema service's HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx

from replank.errors import ConfigurationError, DependencyUnavailable
from replank_archiver.schemas.model import ExportGone

_GONE: Final = (404, 410)
_REFUSED: Final = (401, 403)


class Exports:
    """What the schema service at ``url`` offers, fetched with the token that is in a file, which may be replaced."""

    def __init__(self, url: str, token_file: Path, *, timeout: float = 10.0) -> None:
        self._token_file = token_file
        self._client = httpx.AsyncClient(base_url=url, timeout=timeout)

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """What is at a path, as it arrives.

        Raises `ExportGone` where nothing is offered there (any more), `ConfigurationError` for a token that cannot be
        read, and `replank.errors.DependencyUnavailable` for everything else that keeps it from arriving, also later.
        """
        try:
            token = (await asyncio.to_thread(self._token_file.read_text, encoding="utf-8")).strip()
        except OSError as error:
            raise ConfigurationError(
                f"the token file {self._token_file} cannot be read: {error.strerror}", fix="check SERVICE_TOKEN_FILE"
            ) from error
        try:
            async with self._client.stream("GET", path, headers={"authorization": f"Bearer {token}"}) as answer:
                if answer.status_code in _GONE:
                    raise ExportGone(f"the schema service offers nothing at {path}", fix="archive the old rows again")
                if answer.status_code in _REFUSED:
                    raise self._unavailable(
                        f"it answers {answer.status_code}", "grant the archiver `view` on the vault"
                    )
                if not answer.is_success:
                    raise self._unavailable(f"it answers {answer.status_code}", "look at the schema service's log")
                yield answer.aiter_raw()
        except httpx.HTTPError as error:
            raise self._unavailable(
                str(error) or type(error).__name__, "check SCHEMA_URL, and that it is ready"
            ) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _unavailable(self, reason: str, fix: str) -> DependencyUnavailable:
        return DependencyUnavailable(
            "schema", f"the export cannot be fetched from {self._client.base_url}: {reason}", fix=fix
        )
