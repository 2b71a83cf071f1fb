"""One mode of the vault as the commands ask it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

from replank.contracts.schema import VaultMode
from replank.errors import ConfigurationError, ReplankError
from replank_cli.asking import Door, Refused, Wanted, door, segment
from replank_cli.vault.views import Schema

PREFIXES: Final[Mapping[VaultMode, str]] = {"standard": "/schemavault", "pro": "/pro/schemas"}

#: As a path, ``by-name/<name>/content`` is the content of the schema ``<name>``.
_CONTENT: Final = "/content"
_MOST_OF_A_NAME: Final = 200


class Vault:
    """One mode of the vault. Not for several threads.

    Every method raises `replank_cli.asking.Refused`, `DependencyUnavailable` when the service does not answer, and
    `ConfigurationError` where it has no vault.
    """

    def __init__(self, asked: Door, mode: VaultMode) -> None:
        self.door = asked
        self.mode = mode
        self.prefix = PREFIXES[mode]

    def get(self, path: str, **query: Wanted) -> Any:
        """What a GET below the mode's prefix answers."""
        with requiring_vault():
            return self.door.get(self.prefix + path, **query)

    def pages(self, path: str, *, limit: int, **query: Wanted) -> list[Any]:
        """The first ``limit`` items of a listing."""
        with requiring_vault():
            return self.door.pages(self.prefix + path, limit=limit, **query)

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str | int] | None = None,
        revision: int | None = None,
    ) -> Any:
        """What another request answers; ``revision``: only if the schema is at this one."""
        headers = {} if revision is None else {"if-match": f'"{revision}"'}
        with requiring_vault():
            return self.door.ask(method, self.prefix + path, query=query, body=body, headers=headers)

    def found(self, named: str) -> Any:
        """The schema of this id, or the active one of this name, as it is answered."""
        if is_id(named):
            return self.get(f"/{named}")
        try:
            if not named.endswith(_CONTENT):
                return self.get(f"/by-name/{segment(named)}")
        except Refused as refused:
            if refused.slug != "schema-not-found":
                raise
        else:
            # Sorted by name, what is called so comes before all that is called so and more.
            items = self.pages("", limit=1, name=named)
            if items and items[0]["name"] == named:
                return items[0]
        raise ReplankError(
            f"the vault has no active schema {named} in its mode {self.mode}",
            fix=f"`replank vault list --mode {self.mode}` shows those that there are; --status deleted the others",
        )

    def schema(self, named: str) -> Schema:
        """The schema of this id, or the active one of this name."""
        return Schema.model_validate(self.found(named))

    def deleted(self, named: str) -> Schema:
        """The schema of this id, or the deleted one of this name. Raises `ConfigurationError` if there are several."""
        if is_id(named):
            return self.schema(named)
        items = self.pages("", limit=_MOST_OF_A_NAME, name=named, status="deleted")
        found = [Schema.model_validate(item) for item in items if item["name"] == named]
        if not found:
            raise ReplankError(
                f"no deleted schema is called {named}",
                fix="`replank vault list --status deleted` shows those there are",
            )
        if len(found) > 1:
            raise ConfigurationError(
                f"{len(found)} deleted schemas are called {named}: "
                + ", ".join(f"{one.id} (version {one.version}, deleted by {one.deleted_by})" for one in found),
                fix="give the id of the one that you mean",
            )
        return found[0]


@contextmanager
def requiring_vault() -> Iterator[None]:
    """A path of the vault that is not there means that the service has none: say so."""
    try:
        yield
    except Refused as refused:
        if (refused.status, refused.slug) != (404, "not-found"):
            raise
        raise ConfigurationError(
            "the schema service has no vault",
            fix="check --url (or REPLANK_SCHEMA_URL), and the setting REPLANK_SCHEMA_VAULT of the service",
        ) from refused


@contextmanager
def vault(url: str | None, token: str | None, mode: VaultMode) -> Iterator[Vault]:
    """The mode of the service that the options name. Raises `ConfigurationError` if they name none."""
    with door(url, token) as asked:
        yield Vault(asked, mode)


def is_id(named: str) -> bool:
    """Whether it is a schema's id, and no name."""
    try:
        UUID(named)
    except ValueError:
        return False
    return True
