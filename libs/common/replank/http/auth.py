"""Bearer tokens: who is asking?

A token is a JWT signed by a key of the issuer's JSON Web Key Set. The algorithm is taken from the key, never from the
token, and must be EdDSA, ES256 or RS256. What the caller may do is not decided here: see `replank.authz`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from fastapi import Depends
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from typing_extensions import TypedDict

from replank.errors import DependencyUnavailable
from replank.http.problems import Problem

_log = logging.getLogger(__name__)

PRINCIPAL: Final = "principal"

_ALGORITHMS: Final = frozenset({"EdDSA", "ES256", "RS256"})
_MIN_RSA_BITS: Final = 2048
_MAX_TOKEN: Final = 8192
_MAX_SUBJECT: Final = 256
_MAX_KEY_SET: Final = 1024 * 1024
# A key that was withdrawn is accepted for this long at most (seconds), while the key set can be read.
_KEYS_FRESH: Final = 300.0
# Without a readable key set, for this long.
_KEYS_USABLE: Final = 3600.0
# Anybody may send tokens with key ids of their own invention: no more than one look at the key set in this time.
_KEYS_COOLDOWN: Final = 5.0
_FETCH_TIMEOUT: Final = 3.0
_REMEMBERED: Final = 4096


class _KeySet(TypedDict):
    keys: list[dict[str, Any]]


_KEY_SET: Final = TypeAdapter(_KeySet)
_REFUSALS: Final[Mapping[type[Exception], str]] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is meant for another audience",
    jwt.InvalidIssuerError: "the token is from another issuer",
    jwt.InvalidSignatureError: "the token's signature is wrong",
    jwt.InvalidAlgorithmError: "the token's algorithm is not that of its key",
}


@dataclass(frozen=True)
class Principal:
    """Who is asking. ``claims`` are those of the token, verified."""

    subject: str
    claims: Mapping[str, Any] = field(repr=False)

    @property
    def user(self) -> str:
        """The subject as authorization knows it: ``type:id``. A subject without a type is a ``user``."""
        return self.subject if ":" in self.subject else f"user:{self.subject}"


class Authenticator:
    """Checks tokens of one issuer for one audience. ``jwks`` is a file's path or an http(s) URL.

    Keys are read at the first token, again every five minutes without making anybody wait, and at once when a token
    names a key that is not known. If they cannot be read, the old ones are good for an hour.
    """

    def __init__(self, *, issuer: str, audience: str, jwks: str, leeway: float = 30.0) -> None:
        self._issuer = issuer
        self._audience = audience
        self._jwks = jwks
        self._leeway = leeway
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._reading = asyncio.Lock()
        self._refresh: asyncio.Task[None] | None = None
        # Verifying a signature costs about 0.1 ms; a service that calls us sends the same token each time.
        self._remembered: dict[bytes, tuple[Principal, float]] = {}

    async def authenticate(self, token: str) -> Principal:
        """Who holds this token.

        Raises a 401 `Problem` for a token that is malformed, expired, signed by an unknown key, or meant for somebody
        else, and `DependencyUnavailable` when there are no keys to check it with.
        """
        await self._fresh_keys()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._remembered.get(digest)
        if known is not None:
            principal, expires = known
            if time.time() < expires + self._leeway:
                return principal
            del self._remembered[digest]
        if len(token) > _MAX_TOKEN:
            raise _unauthorized("the token is too long")
        claims = self._verify(token, await self._key_for(token))
        subject = claims["sub"]
        if not subject or len(subject) > _MAX_SUBJECT or not subject.isprintable() or " " in subject:
            raise _unauthorized("the token's subject is empty, too long, or not printable")
        principal = Principal(subject, claims)
        if len(self._remembered) >= _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = (principal, int(claims["exp"]))
        return principal

    async def check(self) -> None:
        """For `Readiness`: are there keys? Raises `DependencyUnavailable`."""
        await self._fresh_keys()

    def _verify(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key=key,
                algorithms=[str(key.algorithm_name)],
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.MissingRequiredClaimError as error:
            raise _unauthorized(f"the token has no claim {error.claim}") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise _unauthorized(_REFUSALS.get(type(error), "the token is malformed")) from None

    async def _key_for(self, token: str) -> jwt.PyJWK:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _unauthorized("the token is malformed") from None
        kid = header.get("kid")
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if kid is None:
            raise _unauthorized("the token does not name its key (kid)")
        if kid not in self._keys and time.monotonic() - (self._tried_at or 0.0) >= _KEYS_COOLDOWN:
            await self._read()
        key = self._keys.get(kid)
        if key is None:
            raise _unauthorized("the token is signed by an unknown key")
        return key

    async def _fresh_keys(self) -> None:
        if self._read_at is None:
            await self._read()
        elif self._due() and (self._refresh is None or self._refresh.done()):
            self._refresh = asyncio.create_task(self._read())
        if self._read_at is None or time.monotonic() - self._read_at > _KEYS_USABLE:
            raise DependencyUnavailable(
                "jwks", "the keys that tokens are checked with cannot be read", fix=f"check AUTH_JWKS ({self._jwks})"
            )

    def _due(self) -> bool:
        now = time.monotonic()
        return now - (self._read_at or 0.0) >= _KEYS_FRESH and now - (self._tried_at or 0.0) >= _KEYS_COOLDOWN

    async def _read(self) -> None:
        asked = time.monotonic()
        async with self._reading:
            if self._tried_at is not None and self._tried_at >= asked:
                return  # somebody else has read them while we waited
            try:
                keys = _usable_keys(await self._fetch())
            except ValidationError:
                # Its text quotes the document, which may be a private key in the wrong place.
                _log.warning("the key set %s cannot be read: it is not a JSON Web Key Set", self._jwks)
            except (OSError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                _log.warning("the key set %s cannot be read: %s", self._jwks, error)
            else:
                if self._keys.keys() != keys.keys():
                    self._remembered.clear()
                self._keys = keys
                self._read_at = time.monotonic()
            finally:
                self._tried_at = time.monotonic()

    async def _fetch(self) -> bytes:
        if not self._jwks.startswith(("http://", "https://")):
            return await asyncio.to_thread(Path(self._jwks).read_bytes)
        async with httpx.AsyncClient(timeout=_FETCH_TIMEOUT) as client:
            response = await client.get(self._jwks, headers={"accept": "application/json"})
            response.raise_for_status()
            if len(response.content) > _MAX_KEY_SET:
                raise ValueError(f"it is larger than {_MAX_KEY_SET} bytes")
            return response.content


def bearer_token(headers: Headers) -> str:
    """The token of the authorization header. Raises a 401 `Problem` when there is none."""
    values = headers.getlist("authorization")
    if not values:
        raise _unauthorized("the request has no bearer token", error=None)
    scheme, _, token = values[0].partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise _unauthorized("the authorization header is not one bearer token")
    return token.strip()


def current_principal(request: Request) -> Principal:
    """The caller of a request."""
    principal: Principal = request.scope["state"][PRINCIPAL]
    return principal


CurrentPrincipal: TypeAlias = Annotated[Principal, Depends(current_principal)]
"""Type of a route's parameter: ``async def create(body: NewPolicy, principal: CurrentPrincipal)``."""


def _usable_keys(document: bytes) -> dict[str, jwt.PyJWK]:
    entries = _KEY_SET.validate_json(document)["keys"]
    keys: dict[str, jwt.PyJWK] = {}
    for number, entry in enumerate(entries):
        if entry.get("use", "sig") != "sig" or entry.get("kty") == "oct":
            continue
        try:
            key = jwt.PyJWK(entry)
        except jwt.PyJWTError as error:
            _log.warning("key %d of the key set cannot be used: %s", number, type(error).__name__)
            continue
        if key.algorithm_name not in _ALGORITHMS:
            continue
        if isinstance(key.key, RSAPublicKey) and key.key.key_size < _MIN_RSA_BITS:
            _log.warning("key %d of the key set is an RSA key of less than %d bits: not used", number, _MIN_RSA_BITS)
            continue
        keys[str(entry.get("kid", f"#{number}"))] = key
    if not keys:
        raise ValueError("it has no key for EdDSA, ES256 or RS256")
    return keys


def _unauthorized(
    message: str, *, fix: str = "send a valid bearer token", error: str | None = "invalid_token"
) -> Problem:
    challenge = 'Bearer realm="replank"' + (f', error="{error}", error_description="{message}"' if error else "")
    return Problem(401, "unauthorized", message, fix=fix, headers={"www-authenticate": challenge})
