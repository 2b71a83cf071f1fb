"""The authorization client. Whatever is not a clear yes is a no, or an error: never a yes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx
import stamina
from pydantic import BaseModel, StrictBool, ValidationError

from replank.contracts.auth_cache import STORE
from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError
from replank.telemetry import metrics

_DEPENDENCY: Final = "auth-cache"
_MOST_CONNECTIONS: Final = 100
_ATTEMPTS: Final = 3
_OK: Final = 200


class AuthzRejected(ReplankError):
    """The server says that the question itself is wrong: a malformed name, a relation that it does not know.

    ``code`` is the server's own word for it. Asking again will not help.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"auth-cache refuses the request: {message} [{code}]", fix="correct the names in the request")
        self.code = code


@dataclass(frozen=True)
class Tuple:
    """A fact: ``user`` has ``relation`` to ``object``. Users and objects are written ``type:id``."""

    user: str
    relation: str
    object: str

    def as_json(self) -> dict[str, str]:
        """In OpenFGA's words."""
        return {"user": self.user, "relation": self.relation, "object": self.object}


@dataclass(frozen=True)
class Decision:
    """The answer to a check, and what was asked."""

    allowed: bool
    user: str
    relation: str
    object: str


class AuthzClient:
    """Asks the authorization server at ``url``. One client per process; it keeps connections open.

    ``token`` is a bearer token, or the path of a file with one, which is read again when it changes. ``within``
    (seconds) is the deadline of a call with all its retries.
    """

    def __init__(self, url: str, token: str | Path, *, store: str = STORE, within: float = 2.0) -> None:
        self._store = f"/stores/{store}"
        self._token = _Token(token) if isinstance(token, Path) else token
        self._within = within
        self._slots = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._sending: set[asyncio.Task[httpx.Response]] = set()
        self._client = httpx.AsyncClient(
            base_url=url, timeout=within, limits=httpx.Limits(max_connections=None, max_keepalive_connections=20)
        )

    async def check(self, user: str, relation: str, object: str, context: Mapping[str, Any] | None = None) -> Decision:
        """May ``user`` do ``relation`` to ``object``? ``context`` is for conditions of the server's model.

        Raises `DependencyUnavailable` when there is no clear answer in time, and `AuthzRejected` for a question that
        the server does not understand. Neither must be taken for a yes.
        """
        started = time.perf_counter()
        outcome = "unavailable"
        try:
            body: dict[str, Any] = {"tuple_key": Tuple(user, relation, object).as_json()}
            if context is not None:
                body["context"] = dict(context)
            # A check changes nothing: it may be repeated whatever broke.
            answer = await self._post("/check", body, repeat_on=httpx.TransportError)
            try:
                allowed = _CheckAnswer.model_validate_json(answer).allowed
            except ValidationError:
                raise self._unavailable("it gave an answer that is not one") from None
            outcome = "allowed" if allowed else "denied"
            return Decision(allowed, user, relation, object)
        finally:
            metrics.AUTHZ_CHECK.labels(outcome=outcome).observe(time.perf_counter() - started)

    async def write(self, tuples: Sequence[Tuple] = (), *, deletes: Sequence[Tuple] = ()) -> None:
        """Write and delete facts, all of them or none.

        Raises as `check` does. After `DependencyUnavailable` nobody knows whether they were written.
        """
        body: dict[str, Any] = {}
        if tuples:
            body["writes"] = {"tuple_keys": [fact.as_json() for fact in tuples]}
        if deletes:
            body["deletes"] = {"tuple_keys": [fact.as_json() for fact in deletes]}
        if body:
            # Repeated only when the server cannot have seen it.
            await self._post("/write", body, repeat_on=httpx.ConnectError)

    async def ping(self) -> None:
        """For readiness: does it answer at all? Raises `DependencyUnavailable`."""
        try:
            async with asyncio.timeout(self._within):
                answer = await self._client.get("/healthz")
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._unavailable(_reason(error)) from error
        if answer.status_code != _OK:
            raise self._unavailable(f"status {answer.status_code}")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        await asyncio.gather(*self._sending, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _post(self, path: str, body: Mapping[str, Any], *, repeat_on: type[httpx.HTTPError]) -> bytes:
        headers = {"authorization": f"Bearer {self._bearer()}"}
        call = stamina.AsyncRetryingCaller(
            attempts=_ATTEMPTS, timeout=self._within, wait_initial=0.05, wait_jitter=0.05, wait_max=0.5
        )
        try:
            async with asyncio.timeout(self._within):
                answer = await call(
                    lambda error: isinstance(error.__cause__, repeat_on), self._send, self._store + path, body, headers
                )
        except TimeoutError as error:
            raise self._unavailable(_reason(error)) from error
        return self._content(answer)

    async def _send(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
        """Send a request that is not cancelled together with its caller, but ends a moment later by its own deadline.

        httpx's pool loses a connection whose request is cancelled in the wrong moment, and after an outage in which
        many calls reached their deadline it has none left, for ever. So the slots bound the connections, not the pool.
        """
        await self._slots.acquire()
        sending = asyncio.create_task(self._client.post(path, json=body, headers=headers))
        self._sending.add(sending)
        sending.add_done_callback(self._sent)
        try:
            return await asyncio.shield(sending)
        except httpx.HTTPError as error:
            raise self._unavailable(_reason(error)) from error

    def _sent(self, sending: asyncio.Task[httpx.Response]) -> None:
        self._slots.release()
        self._sending.discard(sending)
        if not sending.cancelled():
            sending.exception()  # whoever waited for it has it; if nobody does any more, it is of no interest

    def _content(self, answer: httpx.Response) -> bytes:
        match answer.status_code:
            case 200:
                return answer.content
            case 400 | 404 | 422:
                raise _rejected(answer)
            case 401 | 403:
                raise self._unavailable(
                    f"it refuses this service's own token ({answer.status_code})", fix="check SERVICE_TOKEN_FILE"
                )
            case status:
                raise self._unavailable(f"status {status}")

    def _bearer(self) -> str:
        return self._token.read() if isinstance(self._token, _Token) else self._token

    def _unavailable(self, reason: str, *, fix: str = "") -> DependencyUnavailable:
        return DependencyUnavailable(
            _DEPENDENCY,
            f"auth-cache at {self._client.base_url} gives no decision: {reason}",
            fix=fix or "check AUTHZ_URL, and that auth-cache is ready",
        )


class _CheckAnswer(BaseModel):
    allowed: StrictBool


class _Rejection(BaseModel):
    code: str = "unknown"
    message: str = "no reason given"


class _Token:
    """A token in a file that is replaced before it expires."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int] | None = None
        self._text = ""

    def read(self) -> str:
        try:
            stat = self._path.stat()
            version = (stat.st_mtime_ns, stat.st_ino)
            if version != self._version:
                self._text = self._path.read_text(encoding="utf-8").strip()
                self._version = version
        except OSError as error:
            raise ConfigurationError(
                f"the token file {self._path} cannot be read: {error.strerror}", fix="check SERVICE_TOKEN_FILE"
            ) from error
        if not self._text:
            raise ConfigurationError(f"the token file {self._path} is empty", fix="check SERVICE_TOKEN_FILE")
        return self._text


def _rejected(answer: httpx.Response) -> AuthzRejected:
    try:
        rejection = _Rejection.model_validate_json(answer.content)
    except ValidationError:
        rejection = _Rejection()
    return AuthzRejected(rejection.code, rejection.message)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__
