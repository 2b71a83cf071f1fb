"""An account of the object store reaches its own bucket completely, and nothing else."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from uuid import uuid4
from xml.etree import ElementTree as ET

import pytest
from pydantic import SecretStr

from replank.errors import ConfigurationError, DependencyUnavailable
from replank.objects import AccessDenied, ObjectStore, ObjectStoreSettings
from replank.objects.accounts import Account, ensure_accounts, from_environment, remove_accounts
from replank.objects.errors import ObjectStoreError
from replank.objects.signed import SignedRequests
from replank.testing import servers
from replank.testing.plugin import AccountFactory
from replank.testing.servers import Bucket

MIB = 1024 * 1024


def reaching(bucket: Bucket, *, name: str | None = None) -> ObjectStore:
    """The store as the account of ``bucket``, with another bucket if it is named."""
    settings = ObjectStoreSettings(
        url=bucket.url,
        bucket=name or bucket.bucket,
        access_key=SecretStr(bucket.access_key),
        secret_key=SecretStr(bucket.secret_key),
        part_size=5 * MIB,
        attempts=2,
    )
    return ObjectStore(settings)


@pytest.fixture
def administrator(s3_server: tuple[str, str, str]) -> Iterator[SignedRequests]:
    with SignedRequests(*s3_server) as store:
        yield store


async def test_the_owner_of_a_bucket_can_do_all_that_we_do(s3_account: AccountFactory) -> None:
    async with reaching(await s3_account()) as store:
        can = await store.probe()
        assert can.conditional_put
        assert can.conditional_multipart
        assert can.checksums
        await store.ensure_bucket()
        large = os.urandom(12 * MIB)  # three parts
        await store.put("a/large", large, if_none_match=True)
        assert await store.read("a/large", limit=len(large)) == large
        assert (await store.stat("a/large")).size == len(large)
        assert [info.key async for info in store.list("a/")] == ["a/large"]

        async def broken_off() -> AsyncIterator[bytes]:
            yield large[: 6 * MIB]
            raise OSError("the source is gone")

        with pytest.raises(OSError, match="the source is gone"):
            await store.put("a/broken", broken_off())
        assert await store.abort_stale_uploads(older_than=timedelta(0)) == 0
        await store.delete("a/large")
        assert [info.key async for info in store.list()] == []


async def test_an_account_reaches_no_bucket_but_its_own(s3_account: AccountFactory, s3: Bucket) -> None:
    ours, theirs = await s3_account(), await s3_account()
    async with reaching(theirs) as store:
        await store.put("secret", b"theirs")
    for other in (theirs.bucket, s3.bucket):
        async with reaching(ours, name=other) as store:
            with pytest.raises(AccessDenied):
                await store.check()
            with pytest.raises(AccessDenied):
                await store.read("secret")
            with pytest.raises(AccessDenied):
                await store.put("secret", b"ours")
            with pytest.raises(AccessDenied):
                await store.delete("secret")
    async with reaching(ours, name="replank-test-of-nobody") as store:
        with pytest.raises(AccessDenied):
            await store.ensure_bucket()
    async with reaching(theirs) as store:
        assert await store.read("secret") == b"theirs"
    with SignedRequests(ours.url, ours.access_key, ours.secret_key) as requests:
        listed = ET.fromstring(requests.send("GET", "/").body).iterfind(".//{*}Bucket/{*}Name")
        assert [name.text for name in listed] == [ours.bucket]


async def test_an_account_administers_nothing(s3_account: AccountFactory) -> None:
    ours = await s3_account()
    other = Account("intruder", "intruder-secret", ours.bucket)
    with pytest.raises(ObjectStoreError, match="XAdminAccessDenied"):
        ensure_accounts(ours.url, ours.access_key, ours.secret_key, [other])


async def test_repeating_it_renews_the_secret_and_keeps_the_objects(
    s3_account: AccountFactory, s3_server: tuple[str, str, str]
) -> None:
    first = await s3_account()
    async with reaching(first) as store:
        await store.put("kept", b"kept")
    again = Account(first.access_key, "another-secret", first.bucket)
    await asyncio.to_thread(ensure_accounts, *s3_server, [again])
    async with reaching(Bucket(first.url, again.access_key, again.secret_key, again.bucket)) as store:
        assert await store.read("kept") == b"kept"
    async with reaching(first) as store:
        with pytest.raises(AccessDenied):
            await store.read("kept")


async def test_a_bucket_that_was_somebody_elses_becomes_the_accounts_without_old_permissions(
    s3_account: AccountFactory, s3_server: tuple[str, str, str], administrator: SignedRequests
) -> None:
    former, later = await s3_account(), await s3_account()
    async with reaching(former) as store:
        await store.put("kept", b"kept")
    arn = f"arn:aws:s3:::{former.bucket}"
    policy = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*", '
        f'"Resource": ["{arn}", "{arn}/*"]}}]}}'
    )
    assert not administrator.send("PUT", f"/{former.bucket}", query={"policy": ""}, body=policy.encode()).code
    taken = Account(later.access_key, later.secret_key, former.bucket)
    await asyncio.to_thread(ensure_accounts, *s3_server, [taken])
    async with reaching(later, name=former.bucket) as store:
        assert await store.read("kept") == b"kept"
    async with reaching(former) as store:
        with pytest.raises(AccessDenied):
            await store.read("kept")


async def test_the_administrator_still_reaches_every_bucket(
    s3_account: AccountFactory, s3_server: tuple[str, str, str]
) -> None:
    theirs = await s3_account()
    async with reaching(theirs) as store:
        await store.put("seen", b"seen")
    async with reaching(Bucket(*s3_server, theirs.bucket)) as store:
        assert await store.read("seen") == b"seen"


async def test_what_a_test_made_goes_with_it(s3_server: tuple[str, str, str], administrator: SignedRequests) -> None:
    async with servers.account(*s3_server) as made, reaching(made) as store:
        await store.put("a/b", b"c")
    assert administrator.send("GET", f"/{made.bucket}").code == "NoSuchBucket"
    async with reaching(made) as store:
        with pytest.raises(AccessDenied):
            await store.check()
    await asyncio.to_thread(remove_accounts, *s3_server, [made.access_key])  # which is no error


async def test_it_runs_as_a_program_from_the_environment(
    s3_server: tuple[str, str, str], administrator: SignedRequests
) -> None:
    url, access_key, secret_key = s3_server
    name = f"replank-test-{uuid4().hex[:16]}"
    environment = {
        "S3_URL": url,
        "S3_ACCESS_KEY": access_key,
        "S3_SECRET_KEY": secret_key,
        "S3_ACCOUNTS": f'[{{"access_key": "{name}", "secret_key": "its-secret", "bucket": "{name}"}}]',
    }

    async def run(changed: dict[str, str]) -> tuple[int | None, str]:
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "replank.objects.accounts"),
            env={**os.environ, **environment, **changed},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await program.communicate()
        return program.returncode, said.decode()

    try:
        assert await run({}) == (0, "")
        async with reaching(Bucket(url, name, "its-secret", name)) as store:
            await store.check()
        code, said = await run({"S3_SECRET_KEY": "a-wrong-secret"})
        assert code == 1
        assert "SignatureDoesNotMatch" in said
        assert "Traceback" not in said
        assert "its-secret" not in said
    finally:
        administrator.send("DELETE", f"/{name}")
        await asyncio.to_thread(remove_accounts, *s3_server, [name])


def test_an_environment_that_says_too_little_is_named_without_its_secrets() -> None:
    with pytest.raises(ConfigurationError, match="not set: S3_SECRET_KEY, S3_ACCOUNTS"):
        from_environment({"S3_URL": "http://s3", "S3_ACCESS_KEY": "root"})
    complete = {"S3_URL": "http://s3", "S3_ACCESS_KEY": "root", "S3_SECRET_KEY": "hidden"}
    for accounts in ("{", '[{"access_key": "only"}]', '{"access_key": "hidden"}', "[1]"):
        with pytest.raises(ConfigurationError, match="S3_ACCOUNTS cannot be read") as refused:
            from_environment({**complete, "S3_ACCOUNTS": accounts})
        assert "hidden" not in str(refused.value)


def test_a_store_that_does_not_answer_is_said_so() -> None:
    with pytest.raises(DependencyUnavailable, match="does not answer"):
        ensure_accounts("http://127.0.0.1:1", "root", "secret", [Account("a", "b", "c")])
