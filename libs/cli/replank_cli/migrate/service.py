"""The migrations of the schema service as the commands ask for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID, uuid4

from pydantic import TypeAdapter

from replank.errors import ConfigurationError
from replank_cli.asking import Door, door
from replank_cli.migrate.views import AT_REST, OVER, Migration, Page, Summary

_PAGE: Final = 200
_BELOW: Final = "/v1/migrations"
_SUMMARIES: Final = TypeAdapter(Page[Summary])


class Schema:
    """The service's migrations. Not for several threads.

    A request that gets no answer is sent again a few times, which is harmless: it keeps its Idempotency-Key. Every
    method raises `replank_cli.asking.Refused`, or `DependencyUnavailable` when the service does not answer.
    """

    def __init__(self, asked: Door) -> None:
        self._door = asked

    def migration(self, named: str) -> Migration:
        """The migration of this id, or the one of this name. Raises `ConfigurationError` if that is not one."""
        return Migration.model_validate(self.get(f"/{self._id_of(named)}"))

    def get(self, path: str, **query: str | int | None) -> Any:
        """What a GET below ``/v1/migrations`` answers."""
        return self._door.get(_BELOW + path, **query)

    def pages(self, path: str, *, limit: int, **query: str | None) -> list[Any]:
        """The first ``limit`` items of a listing."""
        return self._door.pages(_BELOW + path, limit=limit, **query)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What a POST below ``/v1/migrations`` answers."""
        return self._door.ask("POST", _BELOW + path, body=body, headers={"idempotency-key": str(uuid4())})

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """What a PUT below ``/v1/migrations`` answers."""
        return self._door.ask("PUT", _BELOW + path, body=body)

    def _id_of(self, named: str) -> str:
        try:
            return str(UUID(named))
        except ValueError:
            pass
        found = _SUMMARIES.validate_python(self.get("", name=named, limit=_PAGE)).items
        if not found:
            raise ConfigurationError(
                f"there is no migration {named}", fix="`replank migrate list` shows those that there are"
            )
        # One of a name at most is under way. Where none is, one planned anew is meant, and never one that is over.
        for chosen in (
            [one for one in found if one.phase not in AT_REST],
            [one for one in found if one.phase == "planned"],
            [one for one in found if one.phase not in OVER],
        ):
            if len(chosen) == 1:
                return chosen[0].id
            if chosen:
                raise ConfigurationError(
                    f"{len(chosen)} migrations are named {named}: "
                    + ", ".join(f"{one.id} ({one.phase})" for one in chosen),
                    fix="give the id of the one that you mean",
                )
        return found[0].id


@contextmanager
def schema(url: str | None, token: str | None) -> Iterator[Schema]:
    """The service that the options name. Raises `ConfigurationError` if they name none."""
    with door(url, token) as asked:
        yield Schema(asked)
