from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest

from replank import flags, outbox
from replank.contracts.flags import FlagChanged
from replank.flags import FlagConflict, FlagNotFound, FlagsNotInstalled, InvalidFlag


async def events(pool: asyncpg.Pool) -> list[FlagChanged]:
    rows = await pool.fetch("select value from replank_outbox.event order by id")
    return [FlagChanged.from_value(row["value"]) for row in rows]


async def test_installing_again_and_at_the_same_time_is_no_error(pool: asyncpg.Pool) -> None:
    async def install() -> None:
        async with pool.acquire() as conn:
            await flags.install(conn)

    await asyncio.gather(*(install() for _ in range(4)))
    async with pool.acquire() as conn:
        assert await flags.list(conn) == []


async def test_a_change_its_history_and_its_event_are_one_transaction(database: asyncpg.Pool) -> None:
    async with database.acquire() as conn:
        first = await flags.set(conn, "f", {"a": 1}, by="user:ada", reason="try", rollout=12.5)
        second = await flags.set(conn, "f", "two", by="user:bob", enabled=False)
        assert second.version > first.version
        assert await flags.get(conn, "f") == second
        assert await flags.history(conn, "f") == [second, first]
        transaction = conn.transaction()
        await transaction.start()
        await flags.set(conn, "f", "three", by="user:ada")
        await transaction.rollback()
        assert await flags.get(conn, "f") == second
        assert await flags.history(conn, "f") == [second, first]
    assert [(event.version, event.value) for event in await events(database)] == [
        (first.version, {"a": 1}),
        (second.version, "two"),
    ]


@pytest.mark.parametrize("value", [True, False, 0, -1, 2**70, 0.1, 3.0, "", "ü €", [], {}, {"a": [1, None, {"b": ""}]}])
async def test_every_json_value_comes_back_as_it_was(database: asyncpg.Pool, value: object) -> None:
    async with database.acquire() as conn:
        await flags.set(conn, "f", value, by="user:ada")  # type: ignore[arg-type]
        found = await flags.get(conn, "f")
    assert found is not None
    assert json.dumps(found.value) == json.dumps(value)


async def test_a_deleted_flag_is_gone_and_can_be_made_again_with_a_newer_version(database: asyncpg.Pool) -> None:
    async with database.acquire() as conn:
        first = await flags.set(conn, "f", True, by="user:ada")
        gone = await flags.delete(conn, "f", by="user:bob", reason="done")
        assert await flags.get(conn, "f") is None
        assert await flags.list(conn) == []
        assert await flags.list(conn, deleted=True) == [gone]
        with pytest.raises(FlagNotFound):
            await flags.delete(conn, "f", by="user:bob")
        again = await flags.set(conn, "f", False, by="user:ada", expected_version=0)
        assert first.version < gone.version < again.version
        assert [state.deleted for state in await flags.history(conn, "f")] == [False, True, False]
    assert [event.deleted for event in await events(database)] == [False, True, False]


async def test_a_change_based_on_an_older_version_is_refused(database: asyncpg.Pool) -> None:
    async with database.acquire() as conn:
        with pytest.raises(FlagConflict):
            await flags.set(conn, "f", 1, by="user:ada", expected_version=7)
        first = await flags.set(conn, "f", 1, by="user:ada", expected_version=0)
        with pytest.raises(FlagConflict):
            await flags.set(conn, "f", 2, by="user:bob", expected_version=0)
        await flags.set(conn, "f", 2, by="user:bob", expected_version=first.version)
        with pytest.raises(FlagConflict):
            await flags.set(conn, "f", 3, by="user:ada", expected_version=first.version)
    assert [event.value for event in await events(database)] == [1, 2]


async def test_many_changes_at_once_get_versions_of_their_own_in_commit_order(database: asyncpg.Pool) -> None:
    async def change(number: int) -> None:
        async with database.acquire() as conn:
            await flags.set(conn, "f", number, by="user:ada")

    await asyncio.gather(*(change(number) for number in range(30)))
    told = [event.version for event in await events(database)]
    assert told == sorted(set(told))
    assert len(told) == 30


async def test_the_version_grows_after_the_clock_or_the_database_went_back(database: asyncpg.Pool) -> None:
    async with database.acquire() as conn:
        await flags.set(conn, "f", 1, by="user:ada")
        ahead = await conn.fetchval(
            "update replank_flags.flag set version = version + 3600000000 where name = 'f' returning version"
        )
        assert (await flags.set(conn, "f", 2, by="user:ada")).version == ahead + 1


async def test_a_refused_flag_changes_nothing(database: asyncpg.Pool) -> None:
    async with database.acquire() as conn:
        for name, options in [
            ("a b", {"by": "user:ada"}),
            ("f", {"by": "ada"}),
            ("f", {"by": "user:ada", "rollout": 101}),
        ]:
            with pytest.raises(InvalidFlag):
                await flags.set(conn, name, True, **options)  # type: ignore[arg-type]
        assert await flags.list(conn) == []
    assert await events(database) == []


async def test_a_database_without_flag_tables_says_what_to_do(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        with pytest.raises(FlagsNotInstalled, match="flags install"):
            await flags.set(conn, "f", True, by="user:ada")
        with pytest.raises(FlagsNotInstalled):
            await flags.list(conn)


async def test_an_authority_without_an_outbox_changes_nothing(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        await flags.install(conn)
        with pytest.raises(outbox.OutboxNotInstalled):
            await flags.set(conn, "f", True, by="user:ada")
        assert await flags.list(conn) == []
