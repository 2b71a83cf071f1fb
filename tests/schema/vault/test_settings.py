"""The vault is configured for every mode or for none, and no mode gets what is another's."""

from __future__ import annotations

import json

import pytest

from replank.errors import ConfigurationError
from replank_schema.settings import SchemaSettings

VAULT: dict[str, dict[str, str]] = {
    mode: {
        "dsn": f"postgresql://vault_{mode}:hidden-{mode}@db/schema",
        "s3_access_key": f"key-{mode}",
        "s3_secret_key": f"hidden-{mode}",
        "s3_bucket": f"bucket-{mode}",
    }
    for mode in ("standard", "pro")
}
BASICS = {
    "DSN": "postgresql://schema:hidden@db/schema",
    "KAFKA": "kafka:9092",
    "AUTH_ISSUER": "issuer",
    "AUTH_AUDIENCE": "replank",
    "AUTH_JWKS": "/jwks.json",
    "AUTHZ_URL": "http://auth-cache",
    "SERVICE_TOKEN_FILE": "/token",
    "S3_URL": "http://s3:7070",
    "S3_ACCESS_KEY": "key-own",
    "S3_BUCKET": "bucket-own",
}


@pytest.fixture(autouse=True)
def _basics(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BASICS.items():
        monkeypatch.setenv(f"REPLANK_SCHEMA_{name}", value)


def changed(mode: str, **settings: str) -> str:
    return json.dumps({**VAULT, mode: {**VAULT[mode], **settings}})


def test_without_a_word_there_is_no_vault() -> None:
    assert SchemaSettings.load().vault == {}


def test_it_is_given_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLANK_SCHEMA_VAULT", json.dumps(VAULT))
    vault = SchemaSettings.load().vault
    assert {mode: settings.role for mode, settings in vault.items()} == {
        "standard": "vault_standard",
        "pro": "vault_pro",
    }
    assert vault["pro"].s3_bucket == "bucket-pro"
    assert "hidden" not in repr(vault)


def test_it_is_given_variable_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, settings in VAULT.items():
        for name, value in settings.items():
            monkeypatch.setenv(f"REPLANK_SCHEMA_VAULT__{mode.upper()}__{name.upper()}", value)
    assert SchemaSettings.unknown_variables() == []
    by_variables = SchemaSettings.load().vault
    monkeypatch.setenv("REPLANK_SCHEMA_VAULT", json.dumps(VAULT))
    assert SchemaSettings.load().vault == by_variables


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (json.dumps({"pro": VAULT["pro"]}), "does not configure standard: configure every mode, or none"),
        (json.dumps({**VAULT, "platinum": VAULT["pro"]}), "VAULT__PLATINUM"),
        (
            changed("pro", dsn="postgresql://vault_standard:other@elsewhere/schema"),
            "gives mode standard and mode pro the same database role",
        ),
        (changed("pro", s3_access_key="key-standard"), "gives mode standard and mode pro the same S3 access key"),
        (changed("pro", s3_bucket="bucket-standard"), "gives mode standard and mode pro the same bucket"),
        (
            changed("pro", s3_access_key="key-standard", s3_bucket="bucket-standard"),
            "the same S3 access key and the same bucket",
        ),
        (
            changed("pro", dsn="postgresql://schema:other@db/schema"),
            "mode pro and the service itself the same database role",
        ),
        (changed("pro", s3_access_key="key-own"), "mode pro and the service itself the same S3 access key"),
        (changed("pro", s3_bucket="bucket-own"), "mode pro and the service itself the same bucket"),
        (changed("pro", dsn="postgresql://db/schema"), "names no role in the dsn of pro"),
        (changed("pro", dsn="mysql://vault_pro:hidden@db/schema"), "VAULT__PRO__DSN is not a postgresql:// URL"),
        (changed("pro", color="red"), "VAULT__PRO__COLOR means nothing"),
    ],
)
def test_what_would_bring_the_modes_together_is_refused_by_name(
    given: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLANK_SCHEMA_VAULT", given)
    with pytest.raises(ConfigurationError) as refused:
        SchemaSettings.load()
    assert "REPLANK_SCHEMA_VAULT" in str(refused.value)
    assert message in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_role_is_compared_as_the_server_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLANK_SCHEMA_VAULT", changed("pro", dsn="postgresql://vault%5Fstandard:x@db/schema"))
    with pytest.raises(ConfigurationError, match="same database role"):
        SchemaSettings.load()


def test_the_store_has_to_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPLANK_SCHEMA_S3_URL")
    monkeypatch.setenv("REPLANK_SCHEMA_VAULT", json.dumps(VAULT))
    with pytest.raises(ConfigurationError, match=r"REPLANK_SCHEMA_VAULT needs .*: set REPLANK_SCHEMA_S3_URL"):
        SchemaSettings.load()
