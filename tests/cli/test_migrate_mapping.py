"""What the command says of a mapping alone, and of one held against real databases."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from replank.migrate.mapping import Source, load
from replank_cli.migrate import sample
from tests.cli.command import replank
from tests.schema.life import Shop, a_shop


@pytest_asyncio.fixture
async def shop(postgres_server: str) -> AsyncIterator[Shop]:
    async with a_shop(postgres_server) as made:
        yield made


@pytest.fixture
def mapping(shop: Shop, tmp_path: Path) -> str:
    path = tmp_path / "mapping.yaml"
    path.write_text(shop.mapping)
    return str(path)


async def relations(pool: asyncpg.Pool) -> list[str]:
    """Everything in a database that is not Postgres's own."""
    rows = await pool.fetch(
        "select n.nspname || '.' || c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname !~ '^(pg_|information_schema)' union all "
        "select nspname from pg_namespace where nspname !~ '^(pg_|information_schema|public)' order by 1"
    )
    return [row["name"] for row in rows]


async def test_a_proposal_is_a_mapping_that_the_store_passes_and_leaves_no_trace(shop: Shop, tmp_path: Path) -> None:
    await shop.seed(300)
    before = await relations(shop.source), await relations(shop.target)
    proposal = tmp_path / "proposed.yaml"
    inferred = await replank("migrate", "infer", "--dsn", shop.source_dsn, "--name", "shop", "--out", str(proposal))
    assert inferred.code == 0, inferred
    assert "321 records" in inferred.error
    proposed = load(proposal.read_text())
    assert {"client", "order"} <= proposed.entities.keys()
    assert proposed.entities["order"].children.keys() == {"items"}

    again = await replank("migrate", "infer", "--dsn", shop.source_dsn, "--out", str(proposal))
    assert again.code == 1
    assert "is there already" in again.error
    printed = await replank("migrate", "infer", "--dsn", shop.source_dsn, "--name", "shop")
    assert load(printed.out).entities.keys() == proposed.entities.keys(), "what is printed is the file"

    between = ("--source", shop.source_dsn, "--target", shop.target_dsn)
    checked = await replank("migrate", "check", str(proposal), *between)
    assert checked.code == 0, checked
    assert "321 records there and back: 321 exact (100 %)" in checked.out
    assert (await relations(shop.source), await relations(shop.target)) == before


async def test_what_cannot_be_converted_is_told_by_field_with_the_reason_and_without_a_value(
    shop: Shop, mapping: str
) -> None:
    await shop.seed(100)
    await shop.source.execute(
        "insert into kv_store select 'order:bad' || i, "
        "jsonb_build_object('clientId', '1', 'total', 'a secret', 'items', '[]'::jsonb) from generate_series(1, 7) i"
    )
    between = ("--source", shop.source_dsn, "--target", shop.target_dsn)
    refused = await replank("migrate", "check", mapping, *between)
    assert refused.code == 1, "more is rejected than a start would bear"
    (line,) = [line for line in refused.out.splitlines() if "order:bad" in line]
    assert line.split()[:3] == ["7", "order", "total"]
    assert "secret" not in refused.out + refused.error
    borne = await replank("migrate", "check", mapping, *between, "--max-rejects", "0.5", "--json")
    assert borne.code == 0
    found = json.loads(borne.out)["dry_run"]
    assert (found["records"], found["exact"], found["ignored"]) == (128, 120, 1)
    assert [group["records"] for group in found["rejects"]] == [7]


async def test_what_is_in_the_way_is_told_for_both_sides_with_what_to_do(shop: Shop, mapping: str) -> None:
    await shop.source.execute("alter table kv_store drop constraint kv_store_pkey")
    await shop.target.execute("create table clients (id text primary key, name text, rest jsonb)")
    await shop.target.execute("insert into clients values ('1', 'somebody', null)")
    refused = await replank("migrate", "check", mapping, "--source", shop.source_dsn, "--target", shop.target_dsn)
    assert refused.code == 1
    assert "primary_key: the primary key of kv_store is nothing, not (key)" in refused.out
    assert "alter table kv_store add primary key (key)" in refused.out
    assert "clients holds rows already" in refused.out


async def test_the_sql_is_what_a_server_takes_in_the_order_in_which_it_is_printed(shop: Shop, mapping: str) -> None:
    for part in ("tables", "functions", "indexes", "constraints", "drop"):
        printed = await replank("migrate", "sql", mapping, "--only", part)
        assert printed.code == 0, printed
        statements = [printed.out]
        if part == "indexes":
            # Concurrently: not in one go with anything else.
            statements = [one for one in printed.out.split(";\n") if "create" in one]
        for statement in statements:
            await shop.target.execute(statement)
    assert await relations(shop.target) == []
    whole = await replank("migrate", "sql", mapping)
    assert "drop table" not in whole.out
    titles = [line.split()[1].rstrip(",") for line in whole.out.splitlines() if line.startswith("-- ")]
    assert [title for title in titles if title in ("tables", "functions", "indexes", "constraints")] == [
        "tables",
        "functions",
        "indexes",
        "constraints",
    ]


async def test_a_sample_has_records_of_every_kind_however_rare(shop: Shop) -> None:
    await shop.source.execute(
        "insert into kv_store select 'order:' || i, '{}'::jsonb from generate_series(1, 20000) i "
        "union all select 'catalog:' || i, '{}'::jsonb from generate_series(1, 3) i"
    )
    await shop.source.execute("analyze kv_store")
    store = Source(table="kv_store", key="key", value="value")
    async with shop.source.acquire() as conn:
        some = await sample.read(conn, store, 1000)
        everything = await sample.read(conn, store, 50_000)
    assert len(some) == len({key for key, _ in some}) == 1000
    assert sum(key.startswith("catalog:") for key, _ in some) == 3
    assert len(everything) == 20_003


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--table", "nothing"), "there is no table nothing"),
        (("--key", "nothing"), "cannot read kv_store"),
        (("--table", "a.b.c"), "--table"),
    ],
)
async def test_a_store_that_is_not_as_described_is_said_in_words(
    shop: Shop, arguments: tuple[str, ...], said: str
) -> None:
    refused = await replank("migrate", "infer", "--dsn", shop.source_dsn, *arguments)
    assert refused.code == 1
    assert said in refused.error
    assert "what to do:" in refused.error
    assert "Traceback" not in refused.error


async def test_an_empty_store_is_nothing_to_propose_a_mapping_from(shop: Shop) -> None:
    refused = await replank("migrate", "infer", "--dsn", shop.source_dsn)
    assert refused.code == 1
    assert "nothing can be proposed" in refused.error
