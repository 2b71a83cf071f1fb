"""An issuer of tokens, and applications to call."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI

from replank.http import Authenticator

ISSUER = "https://issuer.example"
AUDIENCE = "shop"


class Issuer:
    """Signs tokens with Ed25519 keys, and publishes the public halves as a key set in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: dict[str, Ed25519PrivateKey] = {}
        self.rotate("first")

    def rotate(self, kid: str) -> None:
        """Replace all keys by a new one."""
        self._keys = {kid: Ed25519PrivateKey.generate()}
        self.path.write_text(json.dumps({"keys": [self.jwk(kid)]}))

    def jwk(self, kid: str) -> dict[str, str]:
        raw = self._keys[kid].public_key().public_bytes_raw()
        x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
        return {"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": kid, "x": x}

    def token(self, subject: Any = "user:anna", *, kid: str | None = None, without: str = "", **claims: Any) -> str:
        """A token that is good for a minute, but for the claims given (or the one left out)."""
        name, key = next(iter(self._keys.items()))
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": int(time.time()) + 60, **claims}
        payload.pop(without, None)
        return jwt.encode(payload, key, algorithm="EdDSA", headers={"kid": kid or name})


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "jwks.json")


@pytest.fixture
def authenticator(issuer: Issuer) -> Authenticator:
    return Authenticator(issuer=ISSUER, audience=AUDIENCE, jwks=str(issuer.path), leeway=0)


Caller = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def calling(issuer: Issuer) -> Caller:
    """``async with calling(app) as client``: a client with a good token (or the one given, ``None`` for none)."""

    @asynccontextmanager
    async def call(app: FastAPI, token: str | None = "") -> AsyncIterator[httpx.AsyncClient]:
        headers = {} if token is None else {"authorization": f"Bearer {token or issuer.token()}"}
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers=headers) as client:
            yield client

    return call
