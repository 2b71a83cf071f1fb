"""The throttle: an even pace, and conditions that are waited for and named."""

from __future__ import annotations

import asyncio
import time

import pytest

from replank.migrate.throttle import Throttle, ThrottleSettings
from replank.testing.wait import eventually
from tests.common.migrate.moving import connected


class Knobs:
    """Settings that a test turns while the throttle works."""

    def __init__(self, dsn: str, **settings: object) -> None:
        self.settings = ThrottleSettings.model_validate({"check_interval": 0.05, **settings})
        self.throttle = Throttle(source=dsn, target=dsn, settings=lambda: self.settings)

    def turn(self, **settings: object) -> None:
        self.settings = ThrottleSettings.model_validate({"check_interval": 0.05, **settings})


async def test_without_settings_nothing_waits(postgres_dsn: str) -> None:
    knobs = Knobs(postgres_dsn)
    began = time.monotonic()
    for _ in range(100):
        await knobs.throttle.admit()
        knobs.throttle.spent(10_000)
    assert time.monotonic() - began < 1


async def test_the_pace_is_kept_and_nothing_is_saved_up(postgres_dsn: str) -> None:
    knobs = Knobs(postgres_dsn, rows_per_second=1000)
    await asyncio.wait_for(knobs.throttle.admit(), 1)
    knobs.throttle.spent(500)
    began = time.monotonic()
    for _ in range(3):
        await knobs.throttle.admit()
        knobs.throttle.spent(100)
    assert 0.65 < time.monotonic() - began < 2


async def test_a_new_pace_holds_at_once(postgres_dsn: str) -> None:
    knobs = Knobs(postgres_dsn, rows_per_second=1)
    knobs.throttle.spent(10_000)
    waiting = asyncio.create_task(knobs.throttle.admit())
    await eventually(lambda: knobs.throttle.waiting_for == "the pace of 1 rows/s", "it says what it waits for")
    knobs.turn()
    await asyncio.wait_for(waiting, 2)
    assert knobs.throttle.waiting_for == ""


async def test_a_query_of_yours_decides(postgres_dsn: str) -> None:
    async with connected(postgres_dsn) as conn:
        await conn.execute("create table go (on_with_it boolean); insert into go values (false)")
        knobs = Knobs(postgres_dsn, query="select on_with_it from go")
        waiting = asyncio.create_task(knobs.throttle.admit())
        await eventually(lambda: "does not answer true" in knobs.throttle.waiting_for, "it waits for the query")
        await conn.execute("update go set on_with_it = true")
        await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("select no_such_column", "fails: UndefinedColumnError"),
        ("create table written (x int)", "fails: ReadOnlySQLTransactionError"),
        ("select pg_sleep(5) is null", "did not answer within 0.2 s"),
        ("select 1", "does not answer true"),
    ],
)
async def test_a_query_that_cannot_be_answered_is_waited_for(postgres_dsn: str, query: str, told: str) -> None:
    knobs = Knobs(postgres_dsn, query=query, query_timeout=0.2)
    waiting = asyncio.create_task(knobs.throttle.admit())
    await eventually(lambda: told in knobs.throttle.waiting_for, told)
    waiting.cancel()


async def test_load_is_waited_for(postgres_dsn: str) -> None:
    async with connected(postgres_dsn) as conn:
        knobs = Knobs(postgres_dsn, max_active_sessions=0)
        busy = asyncio.create_task(conn.execute("select pg_sleep(30)"))
        waiting = asyncio.create_task(knobs.throttle.admit())
        await eventually(lambda: "sessions are active" in knobs.throttle.waiting_for, "it waits for the load to fall")
        knobs.turn(max_active_sessions=10_000)
        await asyncio.wait_for(waiting, 5)
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy


async def test_replication_without_standbys_has_no_lag(postgres_dsn: str) -> None:
    await asyncio.wait_for(Knobs(postgres_dsn, max_replication_lag=0.001).throttle.admit(), 5)


async def test_a_database_that_cannot_be_asked_is_waited_for(postgres_dsn: str) -> None:
    knobs = Knobs(postgres_dsn.replace("replank_test_", "replank_gone_"), max_active_sessions=5)
    waiting = asyncio.create_task(knobs.throttle.admit())
    await eventually(lambda: "cannot be asked" in knobs.throttle.waiting_for, "it says so")
    waiting.cancel()
