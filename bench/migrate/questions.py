"""The same questions to the key-value store and to the tables, through the storefront's own two stores."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

from bench.migrate.shop import Move, connected
from bench.postgres import Server
from bench.procs import module, running
from bench.runs import Void
from replank.connection import Connection
from replank.migrate import ddl
from replank_storefront.generate import LARGEST_CLIENT, LARGEST_MONTH
from replank_storefront.kv_store import KvStore
from replank_storefront.store import Store
from replank_storefront.table_store import TableStore

_DELAY_S: Final = 0.0005
_READY_S: Final = 30.0

# The whole catalogs; the last one may have fewer products.
_CATALOGS: Final = """
select key from kv_store
 where key >= 'catalog:' and key < 'catalog;' and jsonb_array_length(value -> 'productIds') = 1000
 order by key limit 20
"""
_BRANDS: Final = """
select distinct split_part(value ->> 'name', ' ', 1) as brand
  from kv_store where key >= 'product:' and key < 'product;' order by brand limit 50
"""
# Brings the records into memory, as they are in a shop that is in use, without asking through the store.
_WARM: Final = "select sum(length(value::text)) from kv_store where key >= $1 and key < $2"


@dataclass(frozen=True, slots=True)
class Question:
    """``ask`` takes one of the things that it may be asked about; ``old`` and ``new`` say how often in one run.

    ``away``: the databases are behind a network, see `bench.migrate.distance`.
    """

    name: str
    ask: Callable[[Store, Connection, str], Awaitable[Any]]
    about: Sequence[str]
    old: int
    new: int
    away: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """A question to both stores: queries for one answer, and its median time, in milliseconds."""

    question: str
    old_queries: float
    new_queries: float
    old_ms: float
    new_ms: float
    round_trip_ms: float
    """What an empty question takes, to either database."""

    @property
    def ratio(self) -> float:
        return self.old_ms / self.new_ms


async def index(move: Move) -> None:
    """What a migration does after its backfill, and before anything is read from the tables."""
    await ddl.build_indexes(move.target, move.compiled)
    async with connected(move.target) as tables:
        await tables.execute("vacuum (analyze)")


async def questions(move: Move) -> Sequence[Question]:
    """A catalog of 1,000 products, the month of the client with most orders, and products by a part of their name."""
    async with connected(move.shop.dsn) as kv:
        catalogs = [row["key"].split(":")[1] for row in await kv.fetch(_CATALOGS)]
        brands = [row["brand"] for row in await kv.fetch(_BRANDS)]
    lists = Question("list", lambda store, conn, catalog: store.products(conn, catalog), catalogs, old=5, new=50)
    return (
        lists,
        replace(lists, name="list, away", old=2, new=20, away=True),
        Question(
            "report", lambda store, conn, client: store.report(conn, client, LARGEST_MONTH), [LARGEST_CLIENT], 1, 20
        ),
        Question("search", lambda store, conn, brand: store.search(conn, brand), brands, old=10, new=200),
    )


async def ask(server: Server, move: Move, question: Question) -> Answered:
    """Ask both stores. Raises `Void` when they do not answer alike."""
    # It tells of each record that it cannot read; to write that down is no part of the question.
    logging.getLogger("replank_storefront").setLevel(logging.ERROR)
    async with AsyncExitStack() as stack:
        kv, tables = [
            await stack.enter_async_context(_asking(dsn, away=question.away)) for dsn in (move.shop.dsn, move.target)
        ]
        await kv.fetchval(_WARM, f"order:{LARGEST_CLIENT}:", f"order:{LARGEST_CLIENT};")
        await kv.fetchval(_WARM, "product:", "product;")
        old = await _time(server, move.shop.dsn, question, KvStore(), kv, times=question.old)
        new = await _time(server, move.target, question, TableStore(), tables, times=question.new)
        round_trip_ms = await _round_trip(kv)
    for about, answer in old.answers.items():
        if new.answers[about] != answer:
            raise Void(f"the two stores answer {question.name} of {about} differently")
    return Answered(question.name, old.queries, new.queries, old.ms, new.ms, round_trip_ms)


@asynccontextmanager
async def _asking(dsn: str, *, away: bool) -> AsyncIterator[Connection]:
    if not away:
        async with connected(dsn) as connection:
            yield connection
        return
    network = module("bench.migrate.distance", "--dsn", dsn, "--delay-s", str(_DELAY_S))
    async with running(network) as between:
        await between.ready(_READY_S)
        async with connected(between.last_line.split()[1]) as connection:
            yield connection


async def _round_trip(connection: Connection) -> float:
    took = []
    for _ in range(100):
        began = time.perf_counter()
        await connection.fetchval("select 1")
        took.append((time.perf_counter() - began) * 1e3)
    return median(took)


@dataclass(frozen=True, slots=True)
class _Timed:
    answers: dict[str, Any]
    queries: float
    ms: float


async def _time(server: Server, dsn: str, question: Question, store: Store, conn: Connection, *, times: int) -> _Timed:
    if times > 1:
        # The first time a statement is prepared, which it is once in the life of a connection.
        await question.ask(store, conn, question.about[0])
    answers, took = {}, []
    before = await server.counters(dsn)
    for number in range(times):
        about = question.about[number % len(question.about)]
        began = time.perf_counter()
        answers[about] = await question.ask(store, conn, about)
        took.append((time.perf_counter() - began) * 1e3)
    asked = await server.counters(dsn) - before
    return _Timed(answers, asked.statements / times, median(took))
