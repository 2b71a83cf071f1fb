"""Nobody gets in without a good token, and a bad one says why without saying too much."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from replank.errors import DependencyUnavailable
from replank.http import Authenticator, Principal, Problem
from replank.testing.wait import eventually
from tests.common.http.conftest import AUDIENCE, ISSUER, Issuer
from tests.common.http.serving import serving


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


async def refusal(authenticator: Authenticator, token: str) -> Problem:
    with pytest.raises(Problem) as caught:
        await authenticator.authenticate(token)
    assert caught.value.status == 401
    assert 'Bearer realm="replank", error="invalid_token"' in caught.value.headers["www-authenticate"]
    return caught.value


async def test_a_good_token_names_its_holder(authenticator: Authenticator, issuer: Issuer) -> None:
    principal = await authenticator.authenticate(issuer.token("service:archiver", team="storage"))
    assert (principal.subject, principal.user) == ("service:archiver", "service:archiver")
    assert principal.claims["team"] == "storage"
    assert Principal("anna", {}).user == "user:anna"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"exp": 1}, "has expired"),
        ({"nbf": 2**40}, "not valid yet"),
        ({"aud": "another"}, "another audience"),
        ({"aud": []}, "no claim aud"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"without": "exp"}, "no claim exp"),
        ({"without": "iss"}, "no claim iss"),
        ({"without": "aud"}, "no claim aud"),
        ({"without": "sub"}, "no claim sub"),
        ({"subject": ""}, "subject"),
        ({"subject": "anna smith"}, "subject"),
        ({"subject": "x" * 300}, "subject"),
        ({"subject": 7}, "malformed"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": 1e400}, "malformed"),
        ({"kid": "unheard of"}, "unknown key"),
    ],
)
async def test_a_token_with_wrong_claims_is_refused_with_the_reason(
    authenticator: Authenticator, issuer: Issuer, changes: dict[str, Any], complaint: str
) -> None:
    assert complaint in (await refusal(authenticator, issuer.token(**changes))).message


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b",
        "a.b.c",
        "....",
        "é.é.é",
        encoded([]) + ".e30.AAAA",
        encoded({"alg": "EdDSA", "kid": 7}) + ".e30.AAAA",
        base64.urlsafe_b64encode(b"[" * 4000).decode() + ".e30.AAAA",
        "x" * 10_000,
    ],
)
async def test_what_is_no_token_is_refused(authenticator: Authenticator, token: str) -> None:
    await refusal(authenticator, token)


async def test_a_changed_token_is_refused(authenticator: Authenticator, issuer: Issuer) -> None:
    head, _, signature = issuer.token().split(".")
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "user:admin", "exp": int(time.time()) + 60}
    assert "signature" in (await refusal(authenticator, f"{head}.{encoded(claims)}.{signature}")).message


async def test_the_token_does_not_choose_the_algorithm(authenticator: Authenticator, issuer: Issuer) -> None:
    claims = encoded({"iss": ISSUER, "aud": AUDIENCE, "sub": "user:admin", "exp": int(time.time()) + 60})
    unsigned = f"{encoded({'alg': 'none', 'kid': 'first'})}.{claims}."
    await refusal(authenticator, unsigned)
    # The classic confusion: the public key, which everybody knows, used as a shared secret.
    signed_part = f"{encoded({'alg': 'HS256', 'kid': 'first'})}.{claims}"
    secret = base64.urlsafe_b64decode(issuer.jwk("first")["x"] + "=")
    mac = base64.urlsafe_b64encode(hmac.digest(secret, signed_part.encode(), hashlib.sha256)).rstrip(b"=").decode()
    await refusal(authenticator, f"{signed_part}.{mac}")


async def test_a_token_expires_although_it_was_good_before(authenticator: Authenticator, issuer: Issuer) -> None:
    token = issuer.token(exp=int(time.time()) + 2)
    await authenticator.authenticate(token)

    async def refused() -> Problem | None:
        try:
            await authenticator.authenticate(token)
        except Problem as problem:
            return problem
        return None

    problem = await eventually(refused, "the token is refused")
    assert problem is not None
    assert "expired" in problem.message


@pytest.mark.parametrize("kind", ["ES256", "RS256"])
async def test_other_allowed_algorithms_work(tmp_path: Path, kind: str) -> None:
    key: Any = ec.generate_private_key(ec.SECP256R1()) if kind == "ES256" else rsa.generate_private_key(65537, 2048)
    jwk = jwt.get_algorithm_by_name(kind).to_jwk(key.public_key(), as_dict=True)
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [jwk]}))
    authenticator = Authenticator(issuer=ISSUER, audience=AUDIENCE, jwks=str(path))
    claims = {"iss": ISSUER, "aud": [AUDIENCE, "more"], "sub": "user:anna", "exp": time.time() + 60}
    assert (await authenticator.authenticate(jwt.encode(claims, key, algorithm=kind))).subject == "user:anna"


def weak_rsa() -> dict[str, Any]:
    key = serialization.load_der_private_key(
        rsa.generate_private_key(65537, 1024).private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        None,
    )
    assert isinstance(key, rsa.RSAPrivateKey)
    return dict(jwt.get_algorithm_by_name("RS256").to_jwk(key.public_key(), as_dict=True))


@pytest.mark.parametrize(
    "document",
    [
        None,
        "",
        "no json",
        "[]",
        "{}",
        '{"keys": 7}',
        '{"keys": []}',
        '{"keys": [7]}',
        '{"keys": [{"kty": "oct", "k": "aHVudGVyMg"}]}',
        '{"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "enc", "x": "AAAA"}]}',
        '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "hunter2"}]}',
        json.dumps({"keys": [weak_rsa()]}),
        "[" * 100_000,
    ],
)
async def test_without_usable_keys_the_key_set_is_named_as_unavailable(
    tmp_path: Path, document: str | None, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "broken.json"
    if document is not None:
        path.write_text(document)
    authenticator = Authenticator(issuer=ISSUER, audience=AUDIENCE, jwks=str(path))
    with pytest.raises(DependencyUnavailable, match=r"broken\.json"):
        await authenticator.authenticate(issuer.token())
    assert "cannot be read" in caplog.text
    assert "hunter2" not in caplog.text
    assert "aHVudGVyMg" not in caplog.text


async def test_a_new_key_is_found_when_a_token_names_it_and_the_old_one_is_forgotten(
    authenticator: Authenticator, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = issuer.token()
    await authenticator.authenticate(old)
    issuer.rotate("second")
    assert "unknown key" in (await refusal(authenticator, issuer.token())).message, "no look within the cooldown"
    monkeypatch.setattr("replank.http.auth._KEYS_COOLDOWN", 0.0)
    await authenticator.authenticate(issuer.token())
    assert "unknown key" in (await refusal(authenticator, old)).message


async def test_a_key_set_that_disappears_leaves_the_keys_usable_for_a_while(
    authenticator: Authenticator, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await authenticator.authenticate(issuer.token())
    issuer.path.unlink()
    monkeypatch.setattr("replank.http.auth._KEYS_COOLDOWN", 0.0)
    await refusal(authenticator, issuer.token(kid="unheard of"))
    await authenticator.authenticate(issuer.token())
    monkeypatch.setattr("replank.http.auth._KEYS_USABLE", 0.0)
    with pytest.raises(DependencyUnavailable):
        await authenticator.authenticate(issuer.token())


async def test_keys_are_read_from_a_url_and_a_failing_one_is_unavailable(issuer: Issuer) -> None:
    status = 200

    async def jwks(_: Request) -> Response:
        return Response(issuer.path.read_bytes(), status_code=status, media_type="application/json")

    async with serving(Starlette(routes=[Route("/jwks.json", jwks)])) as url:
        authenticator = Authenticator(issuer=ISSUER, audience=AUDIENCE, jwks=f"{url}/jwks.json")
        assert (await authenticator.authenticate(issuer.token())).subject == "user:anna"
        status = 500
        await authenticator.authenticate(issuer.token("user:bert"))
        stranger = Authenticator(issuer=ISSUER, audience=AUDIENCE, jwks=f"{url}/jwks.json")
        with pytest.raises(DependencyUnavailable, match=r"jwks\.json"):
            await stranger.authenticate(issuer.token())
