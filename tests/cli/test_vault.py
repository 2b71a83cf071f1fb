"""The vault led by the command alone, against the service as a process on real servers."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from replank.contracts.schema import VaultMode
from replank.objects.signed import SignedRequests
from replank.testing import eventually, servers
from replank.testing.faults import FaultProxy
from replank.testing.processes import Process
from replank.testing.services import Issuer, Rights, basics, migrate_completely, playing_rights
from replank_schema.vault.model import MODES, blob_key
from tests.cli.command import Answer, replank, running
from tests.schema.vault import served
from tests.schema.vault.real import REAL_SCHEMAS
from tests.schema.vault.served import CUSTOMER, sha256_of, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 60.0
INLINE = 64 * 1024
MOST = 8 * 1024 * 1024


@dataclass
class Place:
    """A service with a vault, and the environment that leads to it."""

    environment: dict[str, str]
    database: asyncpg.Pool
    rights: Rights
    issuer: Issuer
    store: SignedRequests
    buckets: dict[VaultMode, str]
    roles: dict[VaultMode, str]

    async def vault(self, *arguments: str, **environment: str) -> Answer:
        return await replank("vault", *arguments, **{**self.environment, **environment})

    async def done(self, *arguments: str, **environment: str) -> Answer:
        answer = await self.vault(*arguments, **environment)
        assert answer.code == 0, answer
        return answer

    async def view(self, *arguments: str) -> Any:
        return json.loads((await self.done(*arguments, "--json")).out)

    async def refused(self, *arguments: str, **environment: str) -> str:
        answer = await self.vault(*arguments, **environment)
        assert answer.code == 1, answer
        assert "Traceback" not in answer.error
        assert answer.error.startswith("error: ")
        return answer.error

    async def uses(self, name: str, consumer: str) -> None:
        """Say that somebody was seen using what is published under a name."""
        statement = "insert into vault_standard.consumer values ($1, $2, 12, now(), now())"
        await self.database.execute(statement, name, consumer)


@asynccontextmanager
async def serving(
    folder: Path, postgres: str, kafka: str, s3: tuple[str, str, str], **more: Any
) -> AsyncIterator[Place]:
    """The service as a process on a database and buckets of its own; ``more`` are settings of it."""
    issuer = Issuer(folder)
    async with AsyncExitStack() as opened:
        dsn = await opened.enter_async_context(servers.database(postgres))
        await migrate_completely(dsn, "replank_schema")
        rights = await opened.enter_async_context(playing_rights(*served.EVERYTHING))
        modes: dict[VaultMode, dict[str, str]] = {}
        for mode in MODES:
            account = await opened.enter_async_context(servers.account(*s3))
            modes[mode] = {
                "dsn": await opened.enter_async_context(servers.role(dsn)),
                "s3_access_key": account.access_key,
                "s3_secret_key": account.secret_key,
                "s3_bucket": account.bucket,
            }
        given = basics(issuer, dsn=dsn, kafka=kafka, name="schema", authz_url=rights.url)
        given |= {"s3_url": s3[0], "vault": json.dumps(modes), **more}
        given |= {"vault_limits": json.dumps({"inline_bytes": INLINE, "most_bytes": MOST})}
        environment = {f"REPLANK_SCHEMA_{name.upper()}": str(value) for name, value in given.items()}
        database = await opened.enter_async_context(asyncpg.create_pool(dsn, min_size=1, max_size=2))
        process = await opened.enter_async_context(Process("replank_schema", env=environment))
        line = json.loads(await process.line_with("listening on", within=PATIENCE))
        reached = {
            "REPLANK_SCHEMA_URL": "http://" + line["message"].removeprefix("listening on "),
            "REPLANK_TOKEN": issuer.token(exp=int(time.time()) + 3600),
        }
        there = Place(
            reached,
            database,
            rights,
            issuer,
            SignedRequests(*s3),
            {mode: settings["s3_bucket"] for mode, settings in modes.items()},
            {mode: settings["dsn"].partition("://")[2].partition(":")[0] for mode, settings in modes.items()},
        )

        async def lets_in() -> bool:
            return (await there.vault("list")).code == 0

        await eventually(lets_in, "the service has let its modes in", within=PATIENCE, interval=0.5)
        yield there


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    postgres_server: str, kafka: str, s3_server: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Place]:
    async with serving(tmp_path_factory.mktemp("vault"), postgres_server, kafka, s3_server) as there:
        yield there


def fresh() -> str:
    return f"t{uuid4().hex[:12]}"


def large(bytes_: int) -> bytes:
    """A document of about so many bytes, unlike any other."""
    row = {"id": str(uuid4()), "text": "x" * 40}
    return text_of([{**row, "n": n} for n in range(bytes_ // 100)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of real schemas, in folders and with what is none beside them."""
    for name in ("dependabot.json", "renovate.json", "circle-ci.json"):
        (tmp_path / "ci").mkdir(exist_ok=True)
        (tmp_path / "ci" / name).write_bytes(REAL_SCHEMAS[name])
    (tmp_path / "customer.json").write_bytes(text_of(CUSTOMER))
    (tmp_path / "README.md").write_text("not for the vault")
    (tmp_path / ".hidden.json").write_text("{}")
    return tmp_path


async def test_a_folder_is_pushed_once_and_only_what_changed_again(place: Place, folder: Path) -> None:
    prefix = fresh()
    pushed = await place.done("push", str(folder), "--prefix", prefix, "--tag", "ci", "--metadata", '{"team": "a"}')
    names = [f"{prefix}/ci/circle-ci", f"{prefix}/ci/dependabot", f"{prefix}/ci/renovate", f"{prefix}/customer"]
    assert sorted(line.split()[1] for line in pushed.out.splitlines()[:-1]) == names
    assert "4 new, 0 new versions, 0 unchanged, 0 failed" in pushed.out
    again = json.loads((await place.done("push", str(folder), "--prefix", prefix, "--json")).out)
    assert (again["unchanged"], again["new"], again["version"], again["failed"]) == (4, 0, 0, 0)
    assert not any(one["sent"] for one in again["files"])

    changed = {**CUSTOMER, "properties": {**CUSTOMER["properties"], "mail": {"type": "string"}}}
    (folder / "customer.json").write_bytes(text_of(changed))
    third = await place.done("push", str(folder), "--prefix", prefix, "--note", "has mail")
    assert f"version   {prefix}/customer version 2" in third.out
    assert "0 new, 1 new versions, 3 unchanged, 0 failed" in third.out

    listed = await place.view("list", prefix, "--tag", "ci", "--metadata", '{"team": "a"}', "--sort", "-field_count")
    assert sorted(one["name"] for one in listed) == names
    assert [one["field_count"] for one in listed] == sorted((one["field_count"] for one in listed), reverse=True)
    assert [one["name"] for one in await place.view("list", prefix, "--query", "mail")] == [f"{prefix}/customer"]
    assert "no schemas" in (await place.done("list", prefix, "--mode", "pro")).out
    shown = (await place.done("show", f"{prefix}/customer")).out
    assert sha256_of(text_of(changed)) in shown
    history = await place.view("versions", f"{prefix}/customer")
    assert [(one["version"], one["note"]) for one in history] == [(2, "has mail"), (1, "")]
    told = (await place.done("diff", f"{prefix}/customer", "1", "2")).out
    assert "+ /properties/mail" in told
    assert "compatible" in told


async def test_a_content_that_the_vault_has_is_not_sent_again_whatever_its_name(place: Place, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for path in (first, second):
        path.write_bytes(large(20_000))
    second.write_bytes(first.read_bytes())
    prefix = fresh()
    both = json.loads((await place.done("push", str(tmp_path), "--prefix", prefix, "--json")).out)
    assert both["new"] == 2
    assert sorted(one["sent"] for one in both["files"]) == [False, True], "the same content goes over the wire once"
    third = json.loads((await place.done("push", str(first), "--name", fresh(), "--json")).out)
    assert [(one["outcome"], one["sent"]) for one in third["files"]] == [("new", False)]


async def test_large_contents_are_followed_until_they_are_published(place: Place, tmp_path: Path) -> None:
    prefix = fresh()
    for number in range(3):
        (tmp_path / f"large{number}.json").write_bytes(large(5 * INLINE))
    pushed = await place.done("push", str(tmp_path), "--prefix", prefix, "--parallel", "2")
    assert "3 new, 0 new versions, 0 unchanged, 0 failed" in pushed.out
    listed = await place.view("list", prefix)
    assert [one["sha256"] for one in listed] == [
        sha256_of((tmp_path / f"large{number}.json").read_bytes()) for number in range(3)
    ]


async def test_each_file_that_fails_is_told_and_keeps_no_other_from_being_published(place: Place, folder: Path) -> None:
    prefix = fresh()
    (folder / "broken.json").write_text('{"a": 1,}')
    (folder / "_odd.json").write_text("{}")
    pushed = await place.vault("push", str(folder), "--prefix", prefix)
    assert pushed.code == 1
    assert "4 new, 0 new versions, 0 unchanged, 2 failed" in pushed.out
    assert f"failed    {prefix}/broken" in pushed.out
    assert f"failed    {prefix}/_odd" in pushed.out
    assert str(folder / "broken.json") in pushed.error
    assert "Traceback" not in pushed.error


async def test_what_is_too_large_is_refused_before_it_is_sent(place: Place, tmp_path: Path) -> None:
    path, name = tmp_path / "a.json", fresh()
    path.write_bytes(b'"' + b"x" * (4 * MOST) + b'"')
    refused = await place.vault("push", str(path), "--name", name)
    assert refused.code == 1
    assert f"the body is larger than {MOST} bytes" in refused.error
    assert await place.view("list", name) == []


async def test_a_version_that_somebody_else_published_meanwhile_is_not_overwritten(
    place: Place, tmp_path: Path
) -> None:
    mine, theirs, name = tmp_path / "mine.json", tmp_path / "theirs.json", fresh()
    mine.write_text('{"a": 1}')
    theirs.write_text('{"a": 2}')
    await place.done("push", str(mine), "--name", name, "--owner", served.BEN)
    asks = (served.ADA, "owner", f"schema:standard.{(await place.view('show', name))['id']}")
    mine.write_text(json.dumps({"mine": "x" * (MOST // 2)}))
    async with FaultProxy(place.environment["REPLANK_SCHEMA_URL"]) as proxy:
        # Slow enough that theirs is there before mine is.
        proxy.slow(delay=0.05)
        slowly = {**place.environment, "REPLANK_SCHEMA_URL": f"http://{proxy.address}"}
        async with running("vault", "push", str(mine), "--name", name, **slowly) as pushing:
            await eventually(lambda: asks in place.rights.asked, "mine is on its way", within=PATIENCE)
            await place.done("push", str(theirs), "--name", name)
            _, said = await asyncio.wait_for(pushing.communicate(), PATIENCE)
    assert pushing.returncode == 1
    assert b"is at revision 2, not 1" in said
    assert (await place.done("get", name)).out == '{"a": 2}'


async def test_validate_sends_no_schema_that_is_none(place: Place, folder: Path, tmp_path: Path) -> None:
    name = fresh()
    wrong = tmp_path / "wrong.json"
    wrong.write_bytes(text_of({**CUSTOMER, "properties": {"customerId": {"type": "strin"}}}))
    refused = await place.vault("push", str(wrong), "--name", name, "--validate")
    assert refused.code == 1
    assert "/properties/customerId/type breaks the rule" in refused.error
    assert await place.view("list", name) == []
    right = await place.done("push", str(folder / "ci"), "--prefix", fresh(), "--validate")
    assert "3 new" in right.out
    await place.done("push", str(wrong), "--name", name)
    looked = await place.vault("validate", name)
    assert looked.code == 1, "exit status 1 says that it is not valid"
    assert "/properties/customerId/type" in looked.out


async def test_create_only_leaves_what_is_there_alone(place: Place, tmp_path: Path) -> None:
    name, path = fresh(), tmp_path / "a.json"
    path.write_text('{"a": 1}')
    await place.done("push", str(path), "--name", name, "--create-only")
    await place.done("push", str(path), "--name", name, "--create-only")
    path.write_text('{"a": 2}')
    refused = await place.vault("push", str(path), "--name", name, "--create-only")
    assert refused.code == 1
    assert "is there already, with another content" in refused.error
    assert (await place.view("show", name))["version"] == 1


async def test_a_name_that_ends_like_a_route_is_a_name_like_any_other(place: Place, tmp_path: Path) -> None:
    name, path = f"{fresh()}/content", tmp_path / "a.json"
    for number in (1, 2):
        path.write_text(f'{{"a": {number}}}')
        await place.done("push", str(path), "--name", name)
    assert (await place.view("show", name))["version"] == 2


async def test_ctrl_c_leaves_nothing_half_written_and_the_same_command_goes_on(place: Place, tmp_path: Path) -> None:
    prefix = fresh()
    for number in range(6):
        (tmp_path / f"{number}.json").write_bytes(large(INLINE // 2))
    (tmp_path / "9.json").write_bytes(large(64 * INLINE))
    command = ("vault", "push", str(tmp_path), "--prefix", prefix, "--parallel", "1")
    async with FaultProxy(place.environment["REPLANK_SCHEMA_URL"]) as proxy:
        slowly = {**place.environment, "REPLANK_SCHEMA_URL": f"http://{proxy.address}"}
        # The large one, which comes last, takes seconds.
        proxy.slow(delay=0.05)
        async with running(*command, **slowly) as pushing:
            assert pushing.stdout is not None
            for _ in range(6):
                assert (await asyncio.wait_for(pushing.stdout.readline(), PATIENCE)).startswith(b"new")
            pushing.send_signal(signal.SIGINT)
            _, said = await asyncio.wait_for(pushing.communicate(), PATIENCE)
    assert pushing.returncode == 1
    assert b"the same command goes on where this one stopped" in said
    assert b"Traceback" not in said
    there = {one["name"]: one["version"] for one in await place.view("list", prefix)}
    assert there == {f"{prefix}/{number}": 1 for number in range(6)}
    after = json.loads((await replank(*command, "--json", **place.environment)).out)
    assert (after["new"], after["version"], after["unchanged"], after["failed"]) == (1, 0, 6, 0)


async def test_a_content_comes_back_as_it_was_sent_and_an_interrupted_download_goes_on(
    place: Place, tmp_path: Path
) -> None:
    name, content = fresh(), large(3 * 1024 * 1024)
    (tmp_path / "a.json").write_bytes(content)
    await place.done("push", str(tmp_path / "a.json"), "--name", name)
    out = tmp_path / "got" / "b.json"
    out.parent.mkdir()
    sha256 = sha256_of(content)
    # As a command leaves it that was killed: here with what only a resumed download keeps.
    partial = out.parent / f".b.json.{sha256[:16]}.0-{len(content)}.part"
    partial.write_bytes(content[:1_000_000])
    inode = partial.stat().st_ino
    told = await place.done("get", name, "-o", str(out))
    assert f"sha256 {sha256} as published" in told.error
    assert out.read_bytes() == content
    assert out.stat().st_ino == inode, "it went on where it was"
    assert list(out.parent.iterdir()) == [out]
    partial.write_bytes(b"?" + content[1:1_000_000])
    assert "what arrived has the SHA-256" in await place.refused("get", name, "-o", str(out))
    assert list(out.parent.iterdir()) == [out], "what is damaged is not kept to go on from"
    assert out.read_bytes() == content
    await place.done("get", name, "-o", str(out))
    assert (await place.done("get", name, "--range", "1-4")).out.encode() == content[1:5]
    assert "is no range" in await place.refused("get", name, "--range", "4-1")


async def test_a_download_survives_broken_connections(place: Place, tmp_path: Path) -> None:
    name, content = fresh(), large(2 * 1024 * 1024)
    (tmp_path / "a.json").write_bytes(content)
    await place.done("push", str(tmp_path / "a.json"), "--name", name)
    out = tmp_path / "b.json"
    async with FaultProxy(place.environment["REPLANK_SCHEMA_URL"]) as proxy:
        proxy.cut_after(600_000, "to_client")
        through = {"REPLANK_SCHEMA_URL": f"http://{proxy.address}"}
        got = await place.done("get", name, "-o", str(out), **through)
        assert proxy.accepted > 3
    assert sha256_of(content) in got.error
    assert out.read_bytes() == content


async def test_a_delete_says_who_would_break_and_can_be_undone(place: Place, tmp_path: Path) -> None:
    name, path = fresh(), tmp_path / "a.json"
    path.write_bytes(text_of(CUSTOMER))
    await place.done("push", str(path), "--name", name)
    assert (await place.done("consumers", name)).out == "nobody was seen using it\n"
    await place.uses(name, "archiver")
    assert "archiver" in (await place.done("consumers", name)).out
    refused = await place.refused("delete", name)
    assert "archiver: 12 events" in refused
    assert "--force" in refused
    stricter = {**CUSTOMER, "properties": {**CUSTOMER["properties"], "customerId": {"type": "integer"}}}
    path.write_bytes(text_of(stricter))
    breaking = await place.vault("push", str(path), "--name", name)
    assert breaking.code == 1
    assert "archiver: 12 events" in breaking.error
    await place.done("push", str(path), "--name", name, "--force")
    told = (await place.done("diff", name, "1", "2")).out
    assert "~ /properties/customerId/type" in told
    assert "not compatible" in told
    await place.done("delete", name, "--force")
    gone = await place.refused("show", name)
    assert f"no active schema {name}" in gone
    assert [one["name"] for one in await place.view("list", name, "--status", "deleted")] == [name]
    await place.done("restore", name)
    assert (await place.view("show", name))["version"] == 2
    assert "no deleted schema" in await place.refused("restore", name)


async def test_tags_are_put_on_many_and_taken_off(place: Place, folder: Path) -> None:
    prefix = fresh()
    await place.done("push", str(folder), "--prefix", prefix)
    names = [f"{prefix}/ci/renovate", f"{prefix}/customer"]
    assert (await place.done("tag", *names, "--tag", "hot", "--tag", "x")).out == "2 tagged\n"
    assert [one["name"] for one in await place.view("list", prefix, "--tag", "hot")] == names
    assert (await place.done("untag", names[0], "--tag", "hot")).out == "1 untagged\n"
    assert [one["name"] for one in await place.view("list", prefix, "--tag", "hot")] == names[1:]
    assert (await place.view("show", names[0]))["tags"] == ["x"]


async def test_a_lost_content_is_found_and_sending_it_again_mends_it(place: Place, tmp_path: Path) -> None:
    name, path = fresh(), tmp_path / "a.json"
    path.write_bytes(large(4000))
    await place.done("push", str(path), "--name", name, "--mode", "pro")
    assert (await place.vault("check", "--wait", "--mode", "pro")).code == 0
    lost = sha256_of(path.read_bytes())
    place.store.send("DELETE", f"/{place.buckets['pro']}/{blob_key(lost)}")
    found = await place.vault("check", "--wait", "--shallow", "--mode", "pro")
    assert found.code == 1, "exit status 1 says that something is open"
    listed = (await place.done("findings", "--mode", "pro")).out
    assert lost in listed
    assert "missing" in listed
    left = await place.vault("repair", "--wait", "--mode", "pro")
    assert left.code == 1, "nobody else has the content"
    gone = await place.refused("get", name, "--mode", "pro")
    assert "the content is lost" in gone
    assert "send the content again" in gone
    again = await place.done("push", str(path), "--name", name, "--mode", "pro", "--resend")
    assert "1 unchanged" in again.out
    assert (await place.done("get", name, "--mode", "pro")).out.encode() == path.read_bytes()
    assert (await place.vault("check", "--wait", "--mode", "pro")).code == 0
    assert "nothing was found" in (await place.done("findings", "--mode", "pro")).out


async def test_every_cross_access_is_listed_and_an_open_one_is_exit_status_1(place: Place) -> None:
    apart = await place.done("verify-isolation")
    assert "NO " not in apart.out
    last = apart.out.splitlines()[-1]
    assert last.endswith("own accesses, all work")
    tried, refused = last.split(" cross accesses tried, ")[0], last.split("tried, ")[1].split(" refused")[0]
    assert tried == refused
    assert int(tried) == len([line for line in apart.out.splitlines() if line.startswith("ok")])
    role = place.roles["pro"]
    await place.database.execute(f'grant usage on schema vault_standard to "{role}"')
    await place.database.execute(f'grant delete on vault_standard.schema to "{role}"')
    try:
        open_ = await place.vault("verify-isolation")
    finally:
        await place.database.execute(f'revoke usage on schema vault_standard from "{role}"')
        await place.database.execute(f'revoke delete on vault_standard.schema from "{role}"')
    assert open_.code == 1
    wrong = [line for line in open_.out.splitlines() if line.startswith("NO")]
    assert len(wrong) == 1
    assert "delete: schema" in wrong[0]
    assert "allowed (done)" in wrong[0]


async def test_who_may_not_is_told_so_in_one_line(place: Place, tmp_path: Path) -> None:
    ben = {"REPLANK_TOKEN": place.issuer.token(served.BEN)}
    (tmp_path / "a.json").write_text("{}")
    looked = await place.refused("list", **ben)
    assert "user:ben has not the relation" in looked
    assert "to vault:standard" in looked
    assert "vault:standard" in await place.refused("verify-isolation", **ben)
    assert "vault:pro" in await place.refused("check", "--mode", "pro", **ben)
    pushed = await place.vault("push", str(tmp_path), "--prefix", fresh(), **ben)
    assert pushed.code == 1
    assert "user:ben has not the relation" in pushed.error
    unknown = await place.vault("list", "--mode", "silver")
    assert unknown.code == 2


async def test_what_was_not_understood_is_refused_before_anything_is_sent(place: Place, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "a").write_text("{}")
    assert "would both be a" in await place.refused("push", str(tmp_path / "a"), str(tmp_path / "a.json"))
    assert "--name is for one file" in await place.refused("push", str(tmp_path), "--name", "x")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "there is no .json file" in await place.refused("push", str(empty))
    assert "no JSON object" in await place.refused("push", str(tmp_path), "--metadata", "[]")
    assert (await place.vault("push", str(tmp_path / "none.json"))).code == 2


async def test_a_performance_test_shows_what_was_measured_beside_what_was_kept_and_cleans_up(
    place: Place, tmp_path: Path
) -> None:
    kept = tmp_path / "before.json"
    small = ("--schemas", "3", "--runs", "5")
    await place.done("performance-test", *small, "--save", str(kept))
    before = json.loads(kept.read_text())
    assert before["pattern"] == "new pattern"
    assert list(before["upload"]) == ["10", "50", "200"]
    assert all(0 < times["p50"] <= times["p95"] * 1.01 for times in before["upload"].values())
    kept.write_text(json.dumps({**before, "pattern": "old pattern"}))
    beside = (await place.done("performance-test", *small, "--against", str(kept))).out
    assert "old pattern, standard: p50" in beside
    assert "new pattern, standard: p50" in beside
    assert beside.count(" faster") + beside.count(" slower") == 4
    assert await place.view("list", "performance-test/") == []
    kept.write_text("{}")
    assert "is no kept measurement" in await place.refused("performance-test", *small, "--against", str(kept))


async def test_a_mode_that_began_with_the_new_pattern_says_so_and_is_not_moved(place: Place) -> None:
    assert "new" in (await place.done("pattern")).out
    for command in (("migrate",), ("advance",), ("rollback",), ("archive-old", "--yes")):
        refused = await place.refused(*command)
        assert "what to do" in refused


@pytest.mark.timeout(300)
async def test_a_mode_is_led_from_the_old_pattern_to_the_new_one_and_back(
    postgres_server: str, kafka: str, s3_server: tuple[str, str, str], folder: Path, tmp_path: Path
) -> None:
    own = folder / "ci"
    (folder / "customer.json").rename(own / "customer.json")
    for name in ("renovate.json", "circle-ci.json"):
        (own / name).unlink()  # they are larger than a row of the old pattern takes
    async with serving(tmp_path, postgres_server, kafka, s3_server, use_optimized_schemas="false") as place:
        assert "planned" in (await place.done("pattern")).out
        assert "2 new" in (await place.done("push", str(own))).out
        assert "2 unchanged" in (await place.done("push", str(own))).out
        assert (await place.done("get", "customer")).out.encode() == text_of(CUSTOMER)
        assert "what to do" in await place.refused("list", "--query", "zip")
        moved = await place.done("migrate", "--wait")
        assert "rejected 0, rows verified 2" in moved.out
        assert "new_with_fallback" in (await place.done("pattern")).out
        # Not set here: flags are in a topic that all services follow.
        assert "USE_OPTIMIZED_SCHEMAS is off" in await place.refused("advance")
        (own / "customer.json").write_bytes(text_of({**CUSTOMER, "title": "since then"}))
        await place.done("push", str(own))
        assert "rolled_back" in (await place.done("rollback")).out
        assert (await place.view("show", "customer"))["version"] == 2, "the old pattern has every write"
        assert b"since then" in (await place.done("get", "customer")).out.encode()
