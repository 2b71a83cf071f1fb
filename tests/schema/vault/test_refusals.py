"""What the vault refuses, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
import pytest_asyncio

from replank.objects import ObjectStore, ObjectStoreSettings
from replank.testing.plugin import FaultProxies
from replank.testing.services import Issuer, http_alone
from replank_schema.application import compose
from tests.schema.vault.conftest import Configure, VaultSettings
from tests.schema.vault.served import ADA, CUSTOMER, content_digest, problem, publish, upload

JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture
async def bucket(vault_settings: VaultSettings, s3_server: tuple[str, str, str]) -> AsyncIterator[ObjectStore]:
    """The bucket of the standard mode."""
    standard = vault_settings["standard"]
    settings = ObjectStoreSettings(
        url=s3_server[0],
        bucket=standard.s3_bucket,
        access_key=standard.s3_access_key,
        secret_key=standard.s3_secret_key,
    )
    async with ObjectStore(settings) as store:
        yield store


async def everything(database: asyncpg.Pool, bucket: ObjectStore) -> tuple[list[str], int, int, int]:
    """What there is: objects, schemas, events, jobs."""
    return (
        [info.key async for info in bucket.list() if not info.key.startswith(".replank-probe")],
        await database.fetchval("select count(*) from vault_standard.schema"),
        await database.fetchval("select count(*) from replank_outbox.event"),
        await database.fetchval("select count(*) from vault_standard.job"),
    )


NOTHING: tuple[list[str], int, int, int] = ([], 0, 0, 0)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"", "byte 0"),
        (b"hello", "byte 1"),
        (b'{"a": 1', "byte 7"),
        (b'{"a": 1} {"b": 2}', "byte 10"),
        (b'{"a": NaN}', "byte 7"),
        (b"\xff\xfe{}", "byte 0"),
        (b"[" * 600 + b"]" * 600, "deep"),
    ],
)
async def test_what_is_no_json_is_refused_with_the_place_and_leaves_nothing(
    client: httpx.AsyncClient, database: asyncpg.Pool, bucket: ObjectStore, content: bytes, where: str
) -> None:
    refused = problem(await upload(client, "broken", content), 422, "not-json")
    assert where in refused["detail"], refused
    assert await everything(database, bucket) == NOTHING


async def test_content_with_another_digest_than_declared_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, database: asyncpg.Pool, bucket: ObjectStore
) -> None:
    digest = {"content-digest": content_digest(b"something else"), **JSON}
    answer = await client.post("/schemavault/upload", params={"name": "a"}, content=b"{}", headers=digest)
    problem(answer, 422, "digest-mismatch")
    wrong = hashlib.sha256(b"something else").hexdigest()
    problem(await client.put(f"/schemavault/blobs/{wrong}", content=b"{}", headers=JSON), 422, "digest-mismatch")
    for malformed in ("md5=:abc=:", "sha-256=abc", ""):
        answer = await client.post(
            "/schemavault/upload", params={"name": "a"}, content=b"{}", headers={**JSON, "content-digest": malformed}
        )
        problem(answer, 400, "digest-malformed")
    assert await everything(database, bucket) == NOTHING
    right = {"content-digest": content_digest(b"{}"), **JSON}
    assert (
        await client.post("/schemavault/upload", params={"name": "a"}, content=b"{}", headers=right)
    ).status_code == 201


@pytest.mark.parametrize(
    "name",
    [
        "../etc/passwd",
        "a/../b",
        "/a",
        "a/",
        "a//b",
        ".hidden",
        "a/.b",
        "a\\b",
        "a b",
        "a\0b",
        "%2e%2e/a",
        "",
        "x" * 256,
    ],
)
async def test_names_that_could_mean_another_place_are_refused(
    client: httpx.AsyncClient, database: asyncpg.Pool, bucket: ObjectStore, name: str
) -> None:
    answer = await upload(client, name, CUSTOMER)
    assert answer.status_code in {400, 422}, answer.text
    assert await everything(database, bucket) == NOTHING


async def test_an_unknown_mode_is_no_path(client: httpx.AsyncClient) -> None:
    for path in ("/vip/schemas", "/pro/schemavault", "/pro"):
        problem(await client.get(path), 404, "not-found")


async def test_a_content_over_the_limit_is_refused_before_it_is_sent_and_while_it_is(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool, bucket: ObjectStore
) -> None:
    async with http_alone(compose(configure(most_bytes=100_000)), issuer_of_tokens.token(ADA)) as client:
        # 5 GiB, says the sender: answered without a byte of it.
        announced = {**JSON, "content-length": str(5 * 1024**3)}
        answer = await client.post("/schemavault/upload", params={"name": "a"}, content=b"", headers=announced)
        problem(answer, 413, "body-too-large")

        async def endless() -> AsyncIterator[bytes]:
            yield b"["
            while True:
                yield b"1," * 5000

        answer = await client.post("/schemavault/upload", params={"name": "a"}, content=endless(), headers=JSON)
        problem(answer, 413, "body-too-large")
        assert await everything(database, bucket) == NOTHING
        exactly = json.dumps("x" * (100_000 - 2)).encode()
        assert (await upload(client, "a", exactly)).status_code == 201
        # Other routes hold their bodies as a whole, and take no more than ever.
        answer = await client.post("/schemavault/bulk", content=b"[" + b"1," * 600_000, headers=JSON)
        problem(answer, 413, "body-too-large")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"metadata": "[1]"}, "metadata"),
        ({"metadata": "{"}, "metadata"),
        ({"metadata": json.dumps({"a": "\x00"})}, "metadata"),
        ({"metadata": json.dumps({"a": "x" * 20_000})}, "metadata"),
        ({"tag": ["ok", "not ok"]}, "tag"),
        ({"tag": ["t"] * 51}, "tag"),
        ({"owner": "ada"}, "owner"),
        ({"colour": "red"}, "colour"),
        ({"description": "x" * 10_001}, "description"),
    ],
)
async def test_what_is_said_of_a_schema_is_checked(
    client: httpx.AsyncClient, database: asyncpg.Pool, bucket: ObjectStore, query: dict[str, Any], field: str
) -> None:
    refused = problem(await upload(client, "a", **query), 422, "invalid-request")
    assert field in refused["errors"][0]["field"]
    assert await everything(database, bucket) == NOTHING


async def test_without_the_object_store_publishing_says_when_to_try_again_and_nothing_is_half_written(
    *,
    configure: Configure,
    issuer_of_tokens: Issuer,
    s3_server: tuple[str, str, str],
    fault_proxy: FaultProxies,
    database: asyncpg.Pool,
    bucket: ObjectStore,
) -> None:
    proxy = await fault_proxy(urlsplit(s3_server[0]).netloc)
    through = configure().model_copy(update={"s3_url": proxy.in_front_of(s3_server[0])})
    async with http_alone(compose(through), issuer_of_tokens.token(ADA)) as client:
        first = (await upload(client, "a")).json()
        was = await everything(database, bucket)
        await proxy.refuse()
        for answer in (
            await upload(client, "b", {"other": 1}),
            await publish(client, first, {"other": 2}),
            await client.get(f"/schemavault/{first['id']}/content"),
        ):
            refused = problem(answer, 503, "dependency-unavailable")
            assert refused["dependency"] == "object store"
            assert answer.headers["retry-after"]
        # What needs no content goes on,
        assert (await client.get("/schemavault")).json()["items"][0]["name"] == "a"
        tagged = await client.patch(f"/schemavault/{first['id']}", json={"tags": ["t"]}, headers={"if-match": '"1"'})
        assert tagged.status_code == 200
        await proxy.heal()
        # and nothing has to be mended afterwards.
        assert (await everything(database, bucket))[:2] == was[:2]
        assert (await upload(client, "b", {"other": 1})).status_code == 201


async def test_two_who_publish_over_the_same_revision_do_not_overwrite_each_other(client: httpx.AsyncClient) -> None:
    first = (await upload(client, "a")).json()
    answers = await asyncio.gather(*(publish(client, first, {"writer": number}) for number in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 412, 412, 412, 412]
    assert len((await client.get(f"/schemavault/{first['id']}/versions")).json()["items"]) == 2


async def test_many_who_create_one_name_make_one_schema(client: httpx.AsyncClient, database: asyncpg.Pool) -> None:
    answers = await asyncio.gather(*(upload(client, "a", {"writer": number}) for number in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    assert await database.fetchval("select count(*) from vault_standard.schema") == 1


async def test_the_same_content_sent_by_many_at_once_is_kept_once(
    client: httpx.AsyncClient, bucket: ObjectStore
) -> None:
    answers = await asyncio.gather(*(upload(client, f"copy/{number}") for number in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    keys = [info.key async for info in bucket.list() if not info.key.startswith(".replank-probe")]
    assert len(keys) == 1
