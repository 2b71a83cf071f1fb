"""The schema service as any command asks it: one door, where every refusal becomes an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import quote

import httpx
import stamina
import stamina.instrumentation
import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError

#: Starting a migration looks into both databases and converts a sample before it answers.
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_ATTEMPTS: Final = 4
_PAGE: Final = 200

#: What a query may ask for; what is None is not asked for.
Wanted: TypeAlias = str | int | Sequence[str] | None

Url: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        "--schema-url",
        envvar="REPLANK_SCHEMA_URL",
        help="Where the schema service listens.",
        show_default=False,
    ),
]
Token: TypeAlias = Annotated[
    str | None,
    typer.Option("--token", envvar="REPLANK_TOKEN", help="A bearer token that it accepts.", show_default=False),
]


class View(BaseModel):
    """What a service answers, as far as the command reads it; what a newer service adds is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Condition(View):
    """Something that must be so before a migration may go on; ``fix`` says how it comes to be so."""

    name: str
    met: bool
    detail: str = ""
    fix: str = ""


class Fault(View):
    """A field of a request that the service cannot accept."""

    field: str
    problem: str


class User(View):
    """Who was seen using a schema: how many events, and when last."""

    consumer: str
    events: int
    last_at: datetime


class Problem(View):
    """A problem document of a service. ``consumers`` would break by what was asked, for these ``reasons``."""

    type: str
    title: str = ""
    detail: str
    fix: str = ""
    trace_id: str = ""
    conditions: list[Condition] = []
    errors: list[Fault] = []
    consumers: list[User] = []
    reasons: list[str] = []


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


class TryAgain(Exception):
    """It did not answer, or asks to be asked again; ``error`` is what to say when it was asked often enough."""

    def __init__(self, error: ReplankError) -> None:
        super().__init__(error.message)
        self.error = error


class Door:
    """Asks the service. Not for several threads.

    A request that gets no answer is sent again a few times: whoever asks for a change gives it an Idempotency-Key.
    Every method raises `Refused`, or `DependencyUnavailable` when the service does not answer.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **query: Wanted) -> Any:
        """What a GET answers."""
        return self.ask("GET", path, query={name: value for name, value in query.items() if value is not None})

    def pages(self, path: str, *, limit: int, **query: Wanted) -> list[Any]:
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

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | Sequence[str]] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """What the service answers: JSON, or None."""
        try:
            for attempt in stamina.retry_context(on=TryAgain, attempts=_ATTEMPTS, timeout=15.0, wait_max=2.0):
                with attempt:
                    return self._once(method, path, query=query, body=body, headers=headers)
        except TryAgain as error:
            raise error.error from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _once(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | Sequence[str]] | None,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
    ) -> Any:
        try:
            response = self._client.request(method, path, params=query, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise TryAgain(away(self._client.base_url, error)) from error
        require_success(response)
        return content_of(response)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """What a GET answers, to be read as it comes. Raises `TryAgain` also while it is read: who reads knows how."""
        try:
            with self._client.stream("GET", path, headers=headers) as response:
                if not response.is_success:
                    response.read()
                    require_success(response)
                yield response
        except httpx.HTTPError as error:
            raise TryAgain(away(self._client.base_url, error)) from error


def away(url: httpx.URL, error: httpx.HTTPError) -> DependencyUnavailable:
    """What to say of a service that gives no answer."""
    return DependencyUnavailable(
        "schema",
        f"the schema service does not answer at {url}: {str(error) or type(error).__name__}",
        fix="check --url (or REPLANK_SCHEMA_URL) and that the service runs; it is safe to ask again",
    )


def require_success(response: httpx.Response) -> None:
    """Raise `Refused`, or `TryAgain` where it may be otherwise in a moment."""
    if response.is_success:
        return
    refused = Refused(response.status_code, _problem(response))
    if response.status_code in (502, 503, 504) and refused.slug != "planning-paused":
        raise TryAgain(refused)
    raise refused


def client_settings(url: str | None, token: str | None) -> dict[str, Any]:
    """What an httpx client is made of that asks the service. Raises `ConfigurationError` if the options name none."""
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
    return {
        "base_url": parsed,
        "headers": {"authorization": f"Bearer {token.strip()}", "accept": "application/json"},
        "timeout": _TIMEOUT,
        # Reading the system's certificates takes longer than a request, and plain HTTP has no use for them.
        "verify": parsed.scheme == "https",
    }


@contextmanager
def door(url: str | None, token: str | None) -> Iterator[Door]:
    """The service that the options name. Raises `ConfigurationError` if they name none."""
    with httpx.Client(**client_settings(url, token)) as client:
        yield Door(client)


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
    users = [
        f"  {user.consumer}: {user.events:,} events, the last at {user.last_at.astimezone().isoformat(' ', 'seconds')}"
        for user in problem.consumers
    ]
    reasons = [f"  {reason}" for reason in problem.reasons]
    return "\n".join([head, *faults, *map(told, problem.conditions), *users, *reasons])


def content_of(response: httpx.Response) -> Any:
    """The JSON of an answer, or None. Raises `Refused` for anything else."""
    try:
        return response.json() if response.content else None
    except ValueError:
        raise Refused(response.status_code, _not_ours(response)) from None


def _problem(response: httpx.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return _not_ours(response)


def _not_ours(response: httpx.Response) -> Problem:
    """What a proxy on the way, or another server at this address, has answered."""
    return Problem(
        type="about:blank",
        detail=f"{response.request.method} {response.request.url} answered {response.status_code}, and not as the "
        "schema service does",
        fix="check --url (or REPLANK_SCHEMA_URL)",
    )
