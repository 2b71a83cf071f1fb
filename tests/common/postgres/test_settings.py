"""What a service reads from its environment, and how it says what is wrong there."""

from __future__ import annotations

import logging

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from replank.errors import ConfigurationError
from replank.settings import ServiceSettings


class ShopSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="REPLANK_TESTSHOP_")

    targets: dict[str, str] = Field(default_factory=dict)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {
        "DSN": "postgresql://shop:hunter2@db/shop",
        "KAFKA": "localhost:9092",
        "AUTH_ISSUER": "issuer",
        "AUTH_AUDIENCE": "shop",
        "AUTH_JWKS": "/nowhere.json",
    }.items():
        monkeypatch.setenv(f"REPLANK_TESTSHOP_{name}", value)
    return monkeypatch


def test_reads_its_own_prefix_and_leaves_the_rest_at_defaults(env: pytest.MonkeyPatch) -> None:
    settings = ShopSettings.load()
    assert settings.dsn.get_secret_value() == "postgresql://shop:hunter2@db/shop"
    assert settings.http_host == "127.0.0.1"


def test_one_nested_value_leaves_its_siblings_as_they_were(env: pytest.MonkeyPatch) -> None:
    before = ShopSettings.load().pools
    env.setenv("REPLANK_TESTSHOP_POOLS__READ_HEAVY__MAX_SIZE", "17")
    after = ShopSettings.load().pools
    assert after.read_heavy.max_size == 17
    assert after.read_heavy.statement_timeout == before.read_heavy.statement_timeout
    assert after.authorization_primary == before.authorization_primary


def test_names_every_missing_variable_at_once(env: pytest.MonkeyPatch) -> None:
    env.delenv("REPLANK_TESTSHOP_DSN")
    env.delenv("REPLANK_TESTSHOP_KAFKA")
    with pytest.raises(ConfigurationError) as caught:
        ShopSettings.load()
    assert "REPLANK_TESTSHOP_DSN is not set" in str(caught.value)
    assert "REPLANK_TESTSHOP_KAFKA is not set" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DSN", "mysql://root:hunter2@db/shop"),
        ("KAFKA", "hunter2"),
        ("TRACE_SAMPLE", "hunter2"),
        ("TRACE_SAMPLE", "1.5"),
        ("HTTP_PORT", "99999"),
        ("AUTHZ_URL", "http://admin:hunter2@auth"),
        ("VALKEY_URL", "hunter2"),
        ("LOG_LEVEL", "hunter2"),
        ("TARGETS", "{hunter2"),
        ("POOLS__READ_HEAVY__MAX_SIZE", "hunter2"),
        ("POOLS__READ_HEAVY__MAX_SIZE", "0"),
        ("POOLS__NO_SUCH__MAX_SIZE", "1"),
    ],
)
def test_names_the_variable_at_fault_and_never_its_value(env: pytest.MonkeyPatch, name: str, value: str) -> None:
    env.setenv(f"REPLANK_TESTSHOP_{name}", value)
    with pytest.raises(ConfigurationError) as caught:
        ShopSettings.load()
    assert f"REPLANK_TESTSHOP_{name.removesuffix('__MAX_SIZE')}" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_repr_hides_secrets(env: pytest.MonkeyPatch) -> None:
    env.setenv("REPLANK_TESTSHOP_S3_SECRET_KEY", "hunter2")
    assert "hunter2" not in repr(ShopSettings.load())


def test_a_misspelt_variable_is_logged_with_the_likely_one(
    env: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    env.setenv("REPLANK_TESTSHOP_TRACE_SAMPEL", "0.1")
    env.setenv("REPLANK_TESTSHOP_SERVICE_HOST", "10.0.0.1")  # a container platform sets this one
    with caplog.at_level(logging.WARNING):
        ShopSettings.load()
    assert [record.getMessage() for record in caplog.records] == [
        "REPLANK_TESTSHOP_TRACE_SAMPEL means nothing; did you mean REPLANK_TESTSHOP_TRACE_SAMPLE?"
    ]
