"""Every way from one mode of the vault to the other is tried and refused; a way that is open is found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import asyncpg
import pytest
from pydantic import SecretStr

from replank.errors import DependencyUnavailable
from replank.objects.signed import SignedRequests
from replank.testing.plugin import FaultProxies
from replank_schema.vault.isolation import Attempt, verify_isolation
from replank_schema.vault.model import MODES
from replank_schema.vault.settings import VaultModeSettings
from tests.schema.vault.conftest import VaultSettings

Verify = Callable[[], Awaitable[Sequence[Attempt]]]
Store = SignedRequests  # as its administrator

S3_OF_ANOTHER = {
    "put an object",
    "list objects",
    "get an object",
    "stat an object",
    "copy an object to one's own bucket",
    "begin an upload in parts",
    "list uploads",
    "read the policy",
    "change the policy",
    "change the ACL",
    "delete an object",
    "see the bucket in a listing",
}


@pytest.fixture
def verify(database: asyncpg.Pool, vault_settings: VaultSettings, s3_server: tuple[str, str, str]) -> Verify:
    async def call() -> Sequence[Attempt]:
        async with database.acquire() as owner:
            return await verify_isolation(owner, vault_settings, s3_url=s3_server[0])

    return call


@pytest.fixture
def store(s3_server: tuple[str, str, str]) -> Store:
    """The object store as its administrator."""
    return SignedRequests(*s3_server)


def breaches(attempts: Sequence[Attempt]) -> set[tuple[str, str, str]]:
    return {(found.mode, found.reaches_for, found.what) for found in attempts if not found.as_it_should_be}


def contents(store: Store, bucket: str) -> tuple[list[str], list[str], str]:
    """The keys of a bucket, those of uploads in it, and the code for its policy."""
    listed = ET.fromstring(store.send("GET", f"/{bucket}").body)
    uploads = ET.fromstring(store.send("GET", f"/{bucket}", query={"uploads": ""}).body)
    return (
        [found.text or "" for found in listed.iterfind("{*}Contents/{*}Key")],
        [found.text or "" for found in uploads.iterfind("{*}Upload/{*}Key")],
        store.send("GET", f"/{bucket}", query={"policy": ""}).code,
    )


def buckets(store: Store) -> set[str]:
    found = ET.fromstring(store.send("GET", "/").body).iterfind(".//{*}Bucket/{*}Name")
    return {name.text or "" for name in found if (name.text or "").startswith("replank-isolation")}


async def test_every_way_is_tried_and_refused_and_each_mode_does_its_own(verify: Verify) -> None:
    attempts = await verify()
    assert breaches(attempts) == set()
    for mode, other in (("standard", "pro"), ("pro", "standard")):
        own = {found.what for found in attempts if (found.mode, found.reaches_for) == (mode, mode)}
        others = {found.what for found in attempts if (found.mode, found.reaches_for) == (mode, other)}
        service = {found.what for found in attempts if (found.mode, found.reaches_for) == (mode, "service")}
        for table in ("blob", "schema", "version", "job", "finding", "consumer"):
            verbs = {f"{verb}: {table}" for verb in ("select", "insert", "update", "delete")}
            assert verbs <= own
            assert verbs | {f"truncate: {table}", f"select by search_path: {table}"} <= others
        assert others >= {"set role", "set session", "create table"} | S3_OF_ANOTHER
        assert own >= {"connect", "append an event", "put an object", "get an object", "list objects"}
        assert service >= {
            "create table",
            "set role",
            "select: public.migration",
            "select: replank_outbox.event",
            "select: replank_inbox.applied",
            "select: replank_http.idempotency",
            "select: replank_migrations.applied",
        }
        assert (mode, "store", "create a bucket") in {(a.mode, a.reaches_for, a.what) for a in attempts}


async def test_it_tries_what_a_later_migration_adds(verify: Verify, database: asyncpg.Pool) -> None:
    await database.execute("create table vault_pro.later (id int)")
    whats = {found.what for found in await verify() if (found.mode, found.reaches_for) == ("standard", "pro")}
    assert {"select: later", "truncate: later"} <= whats


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        (
            "grant select on vault_pro.blob to {standard}",
            {("pro", "select: blob"), ("pro", "select by search_path: blob")},
        ),
        (
            "grant select (sha256) on vault_pro.blob to {standard}",
            {("pro", "select: blob"), ("pro", "select by search_path: blob")},
        ),
        ("grant insert on vault_pro.schema to {standard}", {("pro", "insert: schema")}),
        ("grant insert (name) on vault_pro.schema to {standard}", {("pro", "insert: schema")}),
        ("grant update on vault_pro.schema to {standard}", {("pro", "update: schema")}),
        ("grant update (owner) on vault_pro.schema to {standard}", {("pro", "update: schema")}),
        ("grant delete on vault_pro.version to {standard}", {("pro", "delete: version")}),
        ("grant truncate on vault_pro.version to {standard}", {("pro", "truncate: version")}),
        ("grant create on schema vault_pro to {standard}", {("pro", "create table")}),
        ("grant create on schema public to {standard}", {("service", "create table")}),
        ("grant select on migration to {standard}", {("service", "select: public.migration")}),
        ("grant select on replank_outbox.event to {standard}", {("service", "select: replank_outbox.event")}),
        (
            "revoke select on vault_standard.blob from {standard}",
            {("standard", "select: blob"), ("standard", "select by search_path: blob")},
        ),
        ("revoke update on vault_standard.job from {standard}", {("standard", "update: job")}),
        (
            "revoke execute on function replank_outbox.append from {standard}",
            {("standard", "append an event")},
        ),
    ],
)
async def test_a_right_too_many_or_too_few_is_found(
    mistake: str,
    found: set[tuple[str, str]],
    verify: Verify,
    database: asyncpg.Pool,
    vault_settings: VaultSettings,
) -> None:
    standard = f'"{vault_settings["standard"].role}"'
    if " vault_pro." in mistake or "vault_pro to" in mistake:
        await database.execute(f"grant usage on schema vault_pro to {standard}")
    await database.execute(mistake.format(standard=standard))
    assert breaches(await verify()) == {("standard", *one) for one in found}


async def test_a_role_that_may_become_the_other_is_found(
    verify: Verify, database: asyncpg.Pool, vault_settings: VaultSettings
) -> None:
    await database.execute(f'grant "{vault_settings["pro"].role}" to "{vault_settings["standard"].role}"')
    found = breaches(await verify())
    assert ("standard", "pro", "set role") in found
    assert ("standard", "pro", "select: blob") in found
    assert {mode for mode, _, _ in found} == {"standard"}


async def test_a_bucket_that_belongs_to_the_other_is_found(
    verify: Verify, vault_settings: VaultSettings, store: Store
) -> None:
    theirs, ours = vault_settings["pro"].s3_bucket, vault_settings["standard"]
    query = {"bucket": theirs, "owner": ours.s3_access_key.get_secret_value()}
    assert not store.send("PATCH", "/change-bucket-owner", query=query).code
    found = breaches(await verify())
    assert {("standard", "pro", what) for what in S3_OF_ANOTHER} <= found
    assert ("pro", "pro", "put an object") in found  # its own is not its own any more
    assert contents(store, theirs) == contents(store, ours.s3_bucket) == ([], [], "NoSuchBucketPolicy")


POLICIES = [
    ("s3:GetObject", "/*", {"get an object", "stat an object", "copy an object to one's own bucket"}),
    ("s3:ListBucket", "", {"list objects"}),
    ("s3:PutObject", "/*", {"put an object", "begin an upload in parts"}),
    ("s3:DeleteObject", "/*", {"delete an object"}),
    ("s3:GetBucketPolicy", "", {"read the policy"}),
    ("s3:PutBucketPolicy", "", {"change the policy"}),
    ("s3:PutBucketAcl", "", {"change the ACL"}),
    ("s3:ListBucketMultipartUploads", "", {"list uploads"}),
]


@pytest.mark.parametrize("to_everybody", [False, True], ids=["to the other", "to everybody"])
async def test_a_policy_that_lets_the_other_in_is_found(
    to_everybody: bool, verify: Verify, vault_settings: VaultSettings, store: Store
) -> None:
    bucket = vault_settings["pro"].s3_bucket
    own = {mode: vault_settings[mode].s3_access_key.get_secret_value() for mode in MODES}
    everything = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    for action, resource, found in POLICIES:
        statements = [
            {"Effect": "Allow", "Principal": {"AWS": [own["pro"]]}, "Action": "s3:*", "Resource": everything},
            {
                "Effect": "Allow",
                "Principal": "*" if to_everybody else {"AWS": [own["standard"]]},
                "Action": action,
                "Resource": f"arn:aws:s3:::{bucket}{resource}",
            },
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements}).encode()
        answer = store.send("PUT", f"/{bucket}", query={"policy": ""}, body=policy)
        assert not answer.code, answer
        assert breaches(await verify()) == {("standard", "pro", what) for what in found}, action
        assert json.loads(store.send("GET", f"/{bucket}", query={"policy": ""}).body) == json.loads(policy)
        assert contents(store, bucket)[:2] == ([], [])


async def test_an_account_that_is_an_administrators_is_found(
    verify: Verify, vault_settings: VaultSettings, store: Store
) -> None:
    access_key = vault_settings["standard"].s3_access_key.get_secret_value()
    body = b"<MutableProps><Role>admin</Role></MutableProps>"
    assert not store.send("PATCH", "/update-user", query={"access": access_key}, body=body).code
    found = breaches(await verify())
    assert {("standard", "pro", what) for what in S3_OF_ANOTHER} <= found
    assert ("standard", "store", "create a bucket") in found
    assert {mode for mode, _, _ in found} == {"standard"}
    assert buckets(store) == set()
    for settings in vault_settings.values():
        assert contents(store, settings.s3_bucket) == ([], [], "NoSuchBucketPolicy")


async def test_a_wrong_password_proves_nothing(
    database: asyncpg.Pool, vault_settings: VaultSettings, s3_server: tuple[str, str, str]
) -> None:
    dsn = vault_settings["pro"].dsn.get_secret_value()
    password = urlsplit(dsn).password or ""
    broken = {**vault_settings, "pro": with_(vault_settings["pro"], dsn=SecretStr(dsn.replace(password, "wrong")))}
    async with database.acquire() as owner:
        attempts = await verify_isolation(owner, broken, s3_url=s3_server[0])
    assert breaches(attempts) == {("pro", "pro", "connect")}
    (connecting,) = (found for found in attempts if not found.as_it_should_be)
    assert connecting.answer == asyncpg.InvalidPasswordError.sqlstate


@pytest.mark.parametrize("wrong", ["s3_access_key", "s3_secret_key"])
async def test_wrong_keys_prove_nothing(
    wrong: str, database: asyncpg.Pool, vault_settings: VaultSettings, s3_server: tuple[str, str, str]
) -> None:
    broken = {**vault_settings, "pro": with_(vault_settings["pro"], **{wrong: SecretStr("wrong-key")})}
    async with database.acquire() as owner:
        found = breaches(await verify_isolation(owner, broken, s3_url=s3_server[0]))
    assert {("pro", "pro", "put an object"), ("pro", "standard", "get an object")} <= found


async def test_a_bucket_that_is_missing_proves_nothing(
    verify: Verify, vault_settings: VaultSettings, store: Store
) -> None:
    assert not store.send("DELETE", f"/{vault_settings['pro'].s3_bucket}").code
    found = breaches(await verify())
    assert {("pro", "pro", "put an object"), ("standard", "pro", "get an object")} <= found


async def test_nothing_is_left_behind(
    verify: Verify, database: asyncpg.Pool, vault_settings: VaultSettings, store: Store
) -> None:
    async def rows() -> list[asyncpg.Record]:
        return await database.fetch(
            "select oid::regclass::text as table, (xpath('/row/n/text()', query_to_xml("
            "format('select count(*) as n from %s', oid::regclass), false, true, '')))[1]::text as rows "
            "from pg_class where relkind in ('r', 'p') and relnamespace::regnamespace::text !~ '^pg_|information' "
            "order by 1"
        )

    before = await rows()
    assert Counter(row["table"].split(".")[0] for row in before)["vault_pro"] >= 5
    await verify()
    assert await rows() == before
    for settings in vault_settings.values():
        assert contents(store, settings.s3_bucket) == ([], [], "NoSuchBucketPolicy")
    assert buckets(store) == set()


async def test_no_version_is_left_where_versions_are_kept(
    verify: Verify, vault_settings: VaultSettings, store: Store
) -> None:
    enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    for settings in vault_settings.values():
        assert not store.send("PUT", f"/{settings.s3_bucket}", query={"versioning": ""}, body=enabled).code
    assert breaches(await verify()) == set()
    for settings in vault_settings.values():
        versions = store.send("GET", f"/{settings.s3_bucket}", query={"versions": ""})
        assert not versions.code
        assert [key.text for key in ET.fromstring(versions.body).iterfind("*/{*}Key")] == []


async def test_a_server_that_is_away_is_no_answer(
    database: asyncpg.Pool, vault_settings: VaultSettings, s3_server: tuple[str, str, str], fault_proxy: FaultProxies
) -> None:
    store_proxy = await fault_proxy(urlsplit(s3_server[0]).netloc)
    await store_proxy.refuse()
    async with database.acquire() as owner:
        with pytest.raises(DependencyUnavailable, match="object store"):
            await verify_isolation(owner, vault_settings, s3_url=f"http://{store_proxy.address}")
        dsn = vault_settings["pro"].dsn.get_secret_value()
        server = urlsplit(dsn).netloc.rpartition("@")[2]
        postgres_proxy = await fault_proxy(server)
        await postgres_proxy.refuse()
        elsewhere = SecretStr(dsn.replace(server, postgres_proxy.address))
        away = {**vault_settings, "pro": with_(vault_settings["pro"], dsn=elsewhere)}
        with pytest.raises(DependencyUnavailable, match="database does not answer"):
            await verify_isolation(owner, away, s3_url=s3_server[0])


async def test_no_answer_tells_a_secret(verify: Verify, vault_settings: VaultSettings) -> None:
    told = repr(await verify())
    for settings in vault_settings.values():
        assert (urlsplit(settings.dsn.get_secret_value()).password or "") not in told
        assert settings.s3_secret_key.get_secret_value() not in told


def with_(settings: VaultModeSettings, **changed: SecretStr) -> VaultModeSettings:
    return settings.model_copy(update=changed)
