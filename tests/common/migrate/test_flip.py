"""The flip: never do both stores take writes, and whoever dies in the middle leaves something to decide by."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
import pytest_asyncio

from replank.migrate import authority, flip
from replank.migrate.applier import Applier, ApplierSettings
from replank.migrate.authority import Side
from replank.migrate.flip import AuthorityBroken, FlipInProgress, FlipUndone
from replank.outbox.relay import Relay
from replank.testing.processes import Process
from replank.testing.wait import eventually
from tests.common.migrate.moving import Move, connected, differences, migration, order, put

# At every one of these the process is killed; what has been decided by then.
STEPS = ["held", "drained", "opened", "closed"]


@pytest_asyncio.fixture
async def move(postgres_server: str, kafka: str) -> AsyncIterator[Move]:
    async with migration(postgres_server, kafka) as made:
        yield made


@asynccontextmanager
async def carried(move: Move) -> AsyncIterator[None]:
    """Relays and appliers of both directions run."""
    stop = asyncio.Event()
    settings = ApplierSettings(session_timeout=6.0)
    appliers = [
        Applier(
            mapping=move.mapping,
            kafka=move.kafka,
            source=move.source,
            target=move.target,
            direction=direction,
            settings=settings,
        )
        for direction in ("forward", "reverse")
    ]
    async with Relay(move.source, move.kafka), Relay(move.target, move.kafka):
        tasks = [asyncio.create_task(applier.run(stop)) for applier in appliers]
        try:
            await eventually(lambda: not any(a.problem for a in appliers), "the appliers run", within=20)
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def states(move: Move) -> tuple[str, str]:
    async with connected(move.source) as source, connected(move.target) as target:
        return (
            await authority.state(source, move.name, "source"),
            await authority.state(target, move.name, "target"),
        )


class Writer:
    """Writes orders to whichever store takes them, and knows which of its writes were answered."""

    def __init__(self, move: Move, number: int) -> None:
        self.move = move
        self.number = number
        self.acknowledged: dict[str, str] = {}
        self.stop = asyncio.Event()

    async def run(self) -> None:
        async with connected(self.move.source) as source, connected(self.move.target) as target:
            written = 0
            to_source = True
            while not self.stop.is_set():
                key, note = f"{self.number}-{written % 20}", f"write {written}"
                try:
                    if to_source:
                        await put(source, [(f"order:{key}", order(1, note=note))])
                    else:
                        await target.execute(
                            "insert into orders (id, client_id, note) values ($1, 'c', $2) "
                            "on conflict (id) do update set note = excluded.note",
                            key,
                            note,
                        )
                except asyncpg.PostgresError as error:
                    if error.sqlstate == authority.ELSEWHERE:
                        to_source = not to_source
                    elif error.sqlstate != authority.HELD:
                        raise
                    await asyncio.sleep(0.002)
                else:
                    self.acknowledged[key] = note
                    written += 1


@asynccontextmanager
async def writing(move: Move) -> AsyncIterator[list[Writer]]:
    writers = [Writer(move, number) for number in range(3)]
    tasks = [asyncio.create_task(writer.run()) for writer in writers]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stop.set()
        await asyncio.gather(*tasks)


async def notes(move: Move) -> dict[str, str]:
    async with connected(move.source) as conn:
        return {
            row["key"].removeprefix("order:"): json.loads(row["value"])["note"]
            for row in await conn.fetch("select key, value from kv_store")
        }


async def test_the_authority_goes_there_and_back_under_writers_and_no_write_is_lost(move: Move) -> None:
    async with carried(move):
        async with writing(move) as writers:
            for _ in range(3):
                for change, side in ((flip.to_tables, "target"), (flip.to_key_value, "source")):
                    before = sum(len(w.acknowledged) for w in writers)
                    flipped = await change(move.stores, within=20)
                    assert flipped.side == side
                    assert 0 < flipped.held < 20
                    assert before <= sum(len(w.acknowledged) for w in writers)
            assert await states(move) == ("open", "closed")

        async def same() -> bool:
            return not await differences(move)

        await eventually(same, "both stores agree", within=20)
    expected = {key: note for writer in writers for key, note in writer.acknowledged.items()}
    assert len(expected) == 60
    assert await notes(move) == expected


@pytest.mark.parametrize("way", ["to_tables", "to_key_value"])
async def test_a_flip_that_is_killed_after_any_step_leaves_one_store_to_write_to(move: Move, way: str) -> None:
    before: Side = "source" if way == "to_tables" else "target"
    after: Side = "target" if way == "to_tables" else "source"
    async with carried(move):
        async with writing(move) as writers:
            for step in STEPS:
                if before == "target":
                    await flip.to_tables(move.stores, within=20)
                else:
                    await flip.to_key_value(move.stores, within=20)
                program = ["tests.common.migrate.programs.flip", move.name, move.source, move.target, move.kafka, way]
                async with Process(*program, step) as process:
                    await process.line_with(f"after {step}")
                    process.kill()
                # Whatever it left: nobody may write to both.
                assert (await states(move)).count("open") <= 1
                expected = before if step in {"held", "drained"} else after
                assert await flip.recover(move.stores) == expected
                opened, closed = ("open", "closed") if expected == "source" else ("closed", "open")
                assert await states(move) == (opened, closed)
                assert await flip.recover(move.stores) == expected
            count = sum(len(w.acknowledged) for w in writers)
            assert count > 0

        async def same() -> bool:
            return not await differences(move)

        await eventually(same, "both stores agree", within=20)
    assert await notes(move) == {key: note for writer in writers for key, note in writer.acknowledged.items()}


async def test_what_is_not_carried_in_time_is_undone(move: Move) -> None:
    async with connected(move.source) as conn:
        await put(conn, [("order:1", order(1))])
        # No relay runs.
        with pytest.raises(FlipUndone, match="did not publish"):
            await flip.to_tables(move.stores, within=0.5)
        assert await states(move) == ("open", "closed")
        async with Relay(move.source, move.kafka):
            # No applier runs.
            with pytest.raises(FlipUndone, match="was applied in time"):
                await flip.to_tables(move.stores, within=3)
        assert await states(move) == ("open", "closed")
        await put(conn, [("order:2", order(2))])


async def test_a_taking_side_that_cannot_be_opened_holds_nobody_for_long(move: Move) -> None:
    async with carried(move), connected(move.target) as busy:
        transaction = busy.transaction()
        await transaction.start()
        await busy.execute(f"select from {move.schema}.authority for update")
        began = time.monotonic()
        with pytest.raises(FlipUndone, match="locked"):
            await flip.to_tables(move.stores, within=2)
        assert time.monotonic() - began < 10
        assert await states(move) == ("open", "closed")
        await transaction.rollback()
        assert (await flip.to_tables(move.stores, within=20)).side == "target"


async def test_a_cancelled_flip_is_undone(move: Move) -> None:
    held = asyncio.Event()

    async def hang(step: flip.Step) -> None:
        held.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(flip.to_tables(move.stores, within=10, on_step=hang))
    await held.wait()
    assert await states(move) == ("held", "closed")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await states(move) == ("open", "closed")


async def test_one_at_a_time_moves_the_authority(move: Move) -> None:
    held, go_on = asyncio.Event(), asyncio.Event()

    async def wait(step: flip.Step) -> None:
        held.set()
        await go_on.wait()

    async with carried(move):
        first = asyncio.create_task(flip.to_tables(move.stores, within=30, on_step=wait))
        await held.wait()
        with pytest.raises(FlipInProgress):
            await flip.to_tables(move.stores, within=0.2)
        with pytest.raises(FlipInProgress):
            await flip.recover(move.stores, within=0.2)
        go_on.set()
        assert (await first).side == "target"
        assert (await flip.to_tables(move.stores)).held == 0.0


async def test_databases_that_contradict_each_other_are_not_guessed_about(move: Move) -> None:
    async with connected(move.target) as conn:
        await conn.execute(f"update {move.schema}.authority set writes = 'open' where side = 'target'")
    with pytest.raises(AuthorityBroken, match="open on the source and open on the target"):
        await flip.recover(move.stores)
