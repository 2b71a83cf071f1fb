"""Secrets and row data do not survive redaction; everything else does."""

from __future__ import annotations

import asyncpg
import pytest
from pydantic import BaseModel, ValidationError

from replank.telemetry.redaction import HIDDEN, names_secret, redact, redact_text

JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("cannot connect to postgresql://ann:hunter2@db:5432/shop", "hunter2"),
        ("redis://:hunter2@cache/0 is down", "hunter2"),
        ("postgresql://ann:p%40ss:w@db/shop", "p%40ss:w"),
        ("host=db password=hunter2 user=ann", "hunter2"),
        ("create role ann login password 'hun''ter2' valid until 'x'", "hun''ter2"),
        ('{"secret_key": "hunter2"}', "hunter2"),
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("authorization: Basic YW5uOmh1bnRlcjI=", "YW5uOmh1bnRlcjI="),
        (f"refused {JWT} as expired", JWT),
        ("GET https://s3/b/k?X-Amz-Credential=AK%2Fx&X-Amz-Signature=abc123 403", "abc123"),
        ("GET /download?token=hunter2&page=1", "hunter2"),
        ("token=hunter2&page=1", "hunter2"),
    ],
)
def test_a_secret_in_text_is_hidden(text: str, secret: str) -> None:
    cleaned = redact_text(text)
    assert secret not in cleaned
    assert HIDDEN in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "update orders set state = 'paid' where id = $1",
        "select token, secret from vault where id = $1",
        "12 tokens were issued; the secret is out",
        "http://127.0.0.1:4318/v1/traces answered 503",
        "lease token 7 lost",
        "GET /orders?page=2&limit=10",
    ],
)
def test_text_without_secrets_is_left_alone(text: str) -> None:
    assert redact_text(text) == text


@pytest.mark.parametrize("key", ["password", "db_password", "SECRET_KEY", "access_token", "Authorization", "cookie"])
def test_the_value_of_a_key_that_names_a_secret_is_hidden(key: str) -> None:
    assert names_secret(key)
    assert redact({"settings": [{key: "hunter2", "user": "ann"}]}) == {"settings": [{key: HIDDEN, "user": "ann"}]}


def test_payload_bytes_are_shown_as_their_length_only() -> None:
    assert redact({"value": b"hunter2"}) == {"value": "[7 bytes]"}


def test_what_is_nested_too_deeply_is_hidden() -> None:
    nested: object = "hunter2"
    for _ in range(20):
        nested = [nested]
    assert "hunter2" not in repr(redact(nested))


async def test_row_data_in_errors_of_postgres_is_hidden(pool: asyncpg.Pool) -> None:
    await pool.execute("create table people (email text unique, age int check (age > 0))")
    await pool.execute("insert into people values ('ann@example.org', 3)")
    texts = []
    for statement, arguments in [
        ("insert into people values ($1, 3)", ("ann@example.org",)),
        ("insert into people values ($1, -1)", ("ann@example.com",)),
        ("insert into people values ('x', $1)", ("ann@example.net",)),
        ("select $1::text::int", ("ann@example.int",)),
    ]:
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as caught:
            await pool.execute(statement, *arguments)
        texts.append(redact_text(str(caught.value)))
        assert arguments[0] in str(caught.value), "this error never had row data: the case proves nothing"
    assert "ann@" not in "".join(texts)
    assert "unique constraint" in texts[0]


def test_values_that_a_validator_quotes_are_hidden() -> None:
    class Order(BaseModel):
        amount: int

    with pytest.raises(ValidationError) as caught:
        Order.model_validate({"amount": "hunter2"})
    assert "hunter2" in str(caught.value)
    assert "hunter2" not in redact_text(str(caught.value))
