"""The secrets of a local stack: made once, private, and good for what the services check."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest

from replank_local.credentials import ADMIN, AUDIENCE, ISSUER, Secrets


def decode(secrets: Secrets, token: str) -> dict[str, object]:
    """What a service makes of a token: checked against the key set's file alone."""
    keys = jwt.PyJWKSet.from_dict(json.loads(secrets.jwks.read_text()))
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, object] = jwt.decode(token, key, algorithms=["EdDSA"], audience=AUDIENCE, issuer=ISSUER)
    return claims


def test_a_password_is_made_once_and_kept(tmp_path: Path) -> None:
    first = Secrets(tmp_path / "secrets").password("postgres")
    assert Secrets(tmp_path / "secrets").password("postgres") == first
    assert Secrets(tmp_path / "secrets").password("kafka") != first


def test_everything_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path / "secrets")
    secrets.password("postgres")
    secrets.renew_tokens(["schema"])
    assert secrets.jwks.exists()
    assert secrets.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in secrets.folder.iterdir()} == {0o600}


def test_the_tokens_are_the_administrators_and_the_services(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path)
    secrets.renew_tokens(["schema"])
    admin = decode(secrets, secrets.token_file("admin").read_text())
    assert admin["sub"] == ADMIN
    assert decode(secrets, secrets.token_file("schema").read_text())["sub"] == "service:schema"
    expires = datetime.fromtimestamp(float(str(admin["exp"])), UTC)
    assert timedelta(days=29) < expires - datetime.now(UTC) <= timedelta(days=30)


def test_a_token_of_one_stack_is_refused_by_another(tmp_path: Path) -> None:
    ours, theirs = Secrets(tmp_path / "ours"), Secrets(tmp_path / "theirs")
    with pytest.raises(KeyError):
        decode(ours, theirs.token(ADMIN))


def test_the_public_key_set_holds_nothing_private(tmp_path: Path) -> None:
    (key,) = json.loads(Secrets(tmp_path).jwks.read_text())["keys"]
    assert key.keys() == {"kty", "crv", "x", "kid", "alg", "use"}
