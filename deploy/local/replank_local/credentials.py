"""The secrets of one local stack: made once, kept in its folder, readable by its owner alone."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from replank_local.errors import StackError
from replank_local.state import write_private

ISSUER: Final = "replank-local"
AUDIENCE: Final = "replank"
ADMIN: Final = "user:local-admin"
TOKEN_LIFETIME: Final = timedelta(days=30)


class Secrets:
    """Passwords, the signing key of this stack, and the tokens signed with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def password(self, name: str) -> str:
        """The password called ``name``, made when it is first asked for. Letters and digits: safe in URLs and SQL."""
        path = self.folder / f"{name}.password"
        if not path.exists():
            write_private(path, secrets.token_hex(20))
        return path.read_text()

    @property
    def jwks(self) -> Path:
        """The file with the public key, as a JSON Web Key Set."""
        path = self.folder / "jwks.json"
        if not path.exists():
            self._make_jwks(path)
        return path

    def token(self, subject: str) -> str:
        """A bearer token for ``subject``, valid from now for 30 days."""
        now = datetime.now(UTC)
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + TOKEN_LIFETIME}
        return jwt.encode(claims, self._signing_key(), algorithm="EdDSA", headers={"kid": self._key_id()})

    def token_file(self, name: str) -> Path:
        """Where the token called ``name`` is kept."""
        return self.folder / f"{name}.token"

    def renew_tokens(self, programs: list[str]) -> None:
        """Write a fresh token for the administrator and for each service and example: ``service:<name>``."""
        write_private(self.token_file("admin"), self.token(ADMIN))
        for program in programs:
            write_private(self.token_file(program), self.token(f"service:{program}"))

    def _signing_key(self) -> Ed25519PrivateKey:
        path = self.folder / "signing-key.pem"
        if not path.exists():
            pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_private(path, pem.decode())
        key = load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise StackError(f"{path} is not an Ed25519 key", fix="remove the file; the next `make up` makes a new one")
        return key

    def _public_jwk(self) -> dict[str, str]:
        raw = self._signing_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}

    def _key_id(self) -> str:
        """The key's thumbprint (RFC 7638): the SHA-256 of its required members in lexical order."""
        canonical = json.dumps(self._public_jwk(), separators=(",", ":"), sort_keys=True)
        return _base64url(hashlib.sha256(canonical.encode()).digest())

    def _make_jwks(self, path: Path) -> None:
        key = {**self._public_jwk(), "kid": self._key_id(), "alg": "EdDSA", "use": "sig"}
        write_private(path, json.dumps({"keys": [key]}, indent=2))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
