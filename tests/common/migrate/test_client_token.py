"""Tokens: what a writer brings back, and what it is worth."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replank.migrate.client import (
    InvalidToken,
    NoAuthority,
    Token,
    WritesElsewhere,
    carry_trace,
    token_of,
    token_of_records,
)
from replank.migrate.client.token import MOST_PAIRS, Written
from replank.outbox import NotInTransaction
from replank.testing import eventually
from replank.testing.servers import waiting_for_locks

from .sides import PUT, both_sides

KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
WRITES = st.builds(Written, st.sampled_from(["source", "target"]), KEYS, st.integers(1, 2**63 - 1))


@given(st.lists(WRITES, max_size=30))
def test_a_token_survives_its_text_form(writes: list[Written]) -> None:
    token = Token.of(writes)
    text = str(token)
    assert text.isascii()
    assert not set(text) & set(' \t\r\n;"\\')
    assert Token.parse(text) == token


@given(st.lists(WRITES, max_size=30))
def test_of_each_record_the_newest_version_stays_and_of_many_records_the_last(writes: list[Written]) -> None:
    token = Token.of(writes)
    assert len(token.writes) <= MOST_PAIRS
    for one in token:
        assert one.version == max(w.version for w in writes if (w.side, w.key) == (one.side, one.key))
    if writes:
        assert (writes[-1].side, writes[-1].key) in {(one.side, one.key) for one in token}


def test_tokens_are_joined_and_parted() -> None:
    before = Token.of([Written("source", "order:1", 5), Written("source", "order:2", 6)])
    after = Token.of([Written("target", "order:1", 3), Written("source", "order:2", 9)])
    both = before.then(after)
    assert both.to("source") == Token.of([Written("source", "order:1", 5), Written("source", "order:2", 9)])
    assert both.to("target") == Token.of([Written("target", "order:1", 3)])
    assert str(Token.of([Written("source", "order:a/ü,1", 5)])) == "s5:order:a%2F%C3%BC%2C1"
    assert not Token()
    assert Token.parse("") == Token()


@pytest.mark.parametrize(
    "text",
    [
        "order:1",
        "s:order:1",
        "x5:order:1",
        "s5:",
        "s0:order:1",
        "s5:order:1,",
        "s5:order 1",
        "s-5:order:1",
        "s99999999999999999999:a",
        "s5:%ff",
        "s9223372036854775808:a",
        "s5:%00",
        ",".join(f"s1:{n}" for n in range(MOST_PAIRS + 1)),
        "s1:" + "a" * 100_000,
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidToken):
        Token.parse(text)


async def test_a_transaction_knows_what_it_has_written(postgres_server: str) -> None:
    async with both_sides(postgres_server, databases=1) as sides:
        async with sides.source.acquire() as conn:
            async with conn.transaction():
                assert await token_of(conn) == Token()
                await conn.execute(PUT, 'order:"1"\n', "{}")
                await conn.execute(PUT, "order:2", "{}")
                await conn.execute(PUT, 'order:"1"\n', '{"total": 1}')
                token = await token_of(conn)
            async with conn.transaction():
                assert await token_of(conn) == Token()
        newest = {change.key: change.version for change in await sides.changes()}
        assert {(one.side, one.key): one.version for one in token} == {
            ("source", key): version for key, version in newest.items()
        }
        await sides.flip("source")
        async with sides.target.acquire() as conn, conn.transaction():
            await conn.execute("update orders set total = 3 where id = '2'")
            (written,) = await token_of(conn)
        (change,) = await sides.changes("target")
        assert written == Written("target", "order:2", change.version)


async def test_of_a_large_write_a_token_has_the_last_records(postgres_server: str) -> None:
    async with both_sides(postgres_server, databases=1) as sides:
        async with sides.source.acquire() as conn, conn.transaction():
            for _ in range(3):
                await conn.execute(
                    "insert into kv_store select 'order:' || repeat('x', 900) || i, '{}' from generate_series(1, 50) i"
                    " on conflict (key) do update set value = excluded.value"
                )
            token = await token_of(conn)
        newest = {change.key: change.version for change in await sides.changes()}
        assert 1 < len(token.writes) <= MOST_PAIRS
        assert all(newest[one.key] == one.version for one in token)


@pytest.mark.parametrize("change", ["do nothing", "do update set value = excluded.value where kv_store.value is null"])
async def test_a_write_that_is_repeated_is_covered_though_it_changes_nothing(postgres_server: str, change: str) -> None:
    async with both_sides(postgres_server, databases=1) as sides:
        await sides.put("order:1", {"total": 1})
        async with sides.source.acquire() as conn, conn.transaction():
            await conn.execute(f"insert into kv_store values ('order:1', '{{}}') on conflict (key) {change}")
            assert await token_of(conn) == Token()
            (written,) = await token_of_records(conn, "shop", "source", ["order:1"])
        newest = max(await sides.changes(), key=lambda change: change.version)
        assert written == Written("source", "order:1", newest.version)
        await sides.carry()
        assert await sides.target.fetchval("select version from replank_m_shop.applied") == written.version
        assert await sides.record("order:1") == {"total": 1}


async def test_a_record_that_was_changed_is_not_told_again(postgres_server: str) -> None:
    async with both_sides(postgres_server, databases=1) as sides:
        async with sides.source.acquire() as conn, conn.transaction():
            await conn.execute(PUT, "order:1", "{}")
            keys = ["order:1", "order:1", "order:none"]
            assert await token_of_records(conn, "shop", "source", keys) == await token_of(conn)
        assert [change.key for change in await sides.changes()] == ["order:1"]


async def test_a_deletion_that_is_repeated_is_covered(postgres_server: str) -> None:
    async with both_sides(postgres_server, databases=1) as sides:
        await sides.put("order:1", {"total": 1})
        await sides.source.execute("delete from kv_store")
        async with sides.source.acquire() as conn, conn.transaction():
            await conn.execute("delete from kv_store where key = 'order:1'")
            (written,) = await token_of_records(conn, "shop", "source", ["order:1"])
        *_, deletion = await sides.changes()
        assert (deletion.op, written) == ("delete", Written("source", "order:1", deletion.version))


async def test_what_another_writes_at_the_same_time_is_not_told_past(postgres_server: str) -> None:
    async with both_sides(postgres_server, databases=1) as sides:
        await sides.put("order:1", {"total": 1})
        async with sides.source.acquire() as writer, sides.source.acquire() as conn:
            transaction = writer.transaction()
            await transaction.start()
            await writer.execute(PUT, "order:1", '{"total": 2}')

            async def repeat() -> Token:
                async with conn.transaction():
                    return await token_of_records(conn, "shop", "source", ["order:1"])

            repeating = asyncio.create_task(repeat())
            await eventually(lambda: waiting_for_locks(sides.source), "the repetition waits for the writer")
            await transaction.commit()
            (written,) = await repeating
        _, change, again = await sides.changes()
        assert (again.value, again.version) == ('{"total": 2}', written.version)
        assert change.version < again.version


async def test_a_write_to_the_tables_that_is_repeated_is_covered(postgres_server: str) -> None:
    async with both_sides(postgres_server, databases=1) as sides:
        await sides.flip("source")
        async with sides.target.acquire() as conn, conn.transaction():
            tokens = await token_of_records(conn, "shop", "target", ["order:1"])
        (change,) = await sides.changes("target")
        assert list(tokens) == [Written("target", "order:1", change.version)]
        async with sides.source.acquire() as conn:
            with pytest.raises(WritesElsewhere):
                await token_of_records(conn, "shop", "source", ["order:1"])
            with pytest.raises(NoAuthority):
                await token_of_records(conn, "other", "source", ["order:1"])


async def test_in_one_transaction_there_is_nothing_to_wait_for(postgres_server: str) -> None:
    async with both_sides(postgres_server, databases=1, same_transaction=True) as sides:
        await sides.put("order:1", {"total": 1})
        async with sides.source.acquire() as conn, conn.transaction():
            assert await token_of_records(conn, "shop", "source", ["order:1"]) == Token()


async def test_a_trace_is_carried_by_a_transaction_alone(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        with pytest.raises(NotInTransaction):
            await carry_trace(conn)
