"""The schema service as the commands ask it: one door, where every refusal becomes an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
import stamina
import stamina.instrumentation
from pydantic import TypeAdapter, ValidationError

from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError
from replank_cli.migrate.views import AT_REST, OVER, Condition, Migration, Page, Problem, Summary

#: Starting a migration looks into both databases and converts a sample before it answers.
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_ATTEMPTS: Final = 4
_PAGE: Final = 200
_SUMMARIES: Final = TypeAdapter(Page[Summary])


class Refused(ReplankError):
    """The service refuses what was asked. ``problem`` is its document, whose type is stable."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(_told(problem), fix="" if problem.conditions else problem.fix)
        self.status = status
        self.problem = problem

    @property
    def slug(self) -> str:
        """What kind of refusal it is: ``transition-refused``, ``phase-changed``, …"""
        return self.problem.type.rpartition(":")[2]


class _TryAgain(Exception):
    """It did not answer, or asks to be asked again; ``error`` is what to say when it was asked often enough."""

    def __init__(self, error: ReplankError) -> None:
        super().__init__(error.message)
        self.error = error


class Schema:
    """The service's migrations. Not for several threads.

    A request that gets no answer is sent again a few times, which is harmless: it keeps its Idempotency-Key. Every
    method raises `Refused`, or `DependencyUnavailable` when the service does not answer.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def migration(self, named: str) -> Migration:
        """The migration of this id, or the one of this name. Raises `ConfigurationError` if that is not one."""
        return Migration.model_validate(self.get(f"/{self._id_of(named)}"))

    def get(self, path: str, **query: str | int | None) -> Any:
        """What a GET below ``/v1/migrations`` answers."""
        return self._ask("GET", path, query={name: value for name, value in query.items() if value is not None})

    def pages(self, path: str, *, limit: int, **query: str | None) -> list[Any]:
        """The first ``limit`` items of a listing."""
        items: list[Any] = []
        cursor: str | None = None
        while len(items) < limit:
            page = self.get(path, limit=min(_PAGE, limit - len(items)), cursor=cursor, **query)
            items += page["items"]
            cursor = page["next"]
            if cursor is None:
                break
        return items

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What a POST below ``/v1/migrations`` answers."""
        return self._ask("POST", path, body=body, headers={"idempotency-key": str(uuid4())})

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """What a PUT below ``/v1/migrations`` answers."""
        return self._ask("PUT", path, body=body)

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

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        try:
            for attempt in stamina.retry_context(on=_TryAgain, attempts=_ATTEMPTS, timeout=15.0, wait_max=2.0):
                with attempt:
                    return self._once(method, path, query=query, body=body, headers=headers)
        except _TryAgain as error:
            raise error.error from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _once(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
    ) -> Any:
        try:
            response = self._client.request(method, f"/v1/migrations{path}", params=query, json=body, headers=headers)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise _TryAgain(
                DependencyUnavailable(
                    "schema",
                    f"the schema service does not answer at {self._client.base_url}: {why}",
                    fix="check --url (or REPLANK_SCHEMA_URL) and that the service runs; it is safe to ask again",
                )
            ) from error
        if response.is_success:
            return response.json() if response.content else None
        refused = Refused(response.status_code, _problem(response))
        if response.status_code in (502, 503, 504) and refused.slug != "planning-paused":
            raise _TryAgain(refused)
        raise refused


@contextmanager
def schema(url: str | None, token: str | None) -> Iterator[Schema]:
    """The service that the options name. Raises `ConfigurationError` if they name none."""
    if not url:
        raise ConfigurationError(
            "no schema service is named", fix='run eval "$(make env)" first, or give --url (REPLANK_SCHEMA_URL)'
        )
    if not token:
        raise ConfigurationError("there is no token", fix='run eval "$(make env)" first, or set REPLANK_TOKEN')
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(f"{url!r} is not the URL of a service", fix="give one such as http://127.0.0.1:8000")
    if not token.strip().isascii() or not token.strip().isprintable():
        raise ConfigurationError("the token cannot be sent: it is not plain text", fix="check REPLANK_TOKEN")
    # By itself it would write each attempt to standard output, among the results.
    stamina.instrumentation.set_on_retry_hooks(())
    client = httpx.Client(
        base_url=parsed,
        headers={"authorization": f"Bearer {token.strip()}", "accept": "application/json"},
        timeout=_TIMEOUT,
        # Reading the system's certificates takes longer than a request, and plain HTTP has no use for them.
        verify=parsed.scheme == "https",
    )
    with client:
        yield Schema(client)


def segment(text: str) -> str:
    """A text as one segment of a path: keys have slashes and worse in them."""
    return quote(text, safe="")


def told(condition: Condition) -> str:
    """A condition that is not met, and what to do about it, as lines."""
    fix = f"\n    what to do: {condition.fix}" if condition.fix else ""
    return f"  {condition.name}: {condition.detail}{fix}"


def _told(problem: Problem) -> str:
    # Its own detail repeats all conditions in one line: here each gets its own.
    head = problem.detail.partition(":")[0] if problem.conditions else problem.detail
    faults = [f"  {fault.field}: {fault.problem}" for fault in problem.errors]
    return "\n".join([head, *faults, *map(told, problem.conditions)])


def _problem(response: httpx.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        # Not one of ours: a proxy on the way, or another server at this address.
        return Problem(
            type="about:blank",
            detail=f"{response.request.method} {response.request.url} answered {response.status_code}, and not as the "
            "schema service does",
            fix="check --url (or REPLANK_SCHEMA_URL)",
        )
