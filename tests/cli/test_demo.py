"""The demo tells the whole life of a migration on a real stack, again and again, and does not hide what goes wrong."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from replank.errors import ReplankError
from replank.migrate.mapping import load
from replank.testing import eventually
from replank_cli.demo import flow, report, shop, story, traffic
from replank_cli.demo.calls import until
from replank_cli.demo.places import Places
from replank_cli.demo.report import Verdict
from replank_cli.demo.shop import Planted
from replank_local import state
from replank_local.credentials import Secrets
from replank_local.endpoints import Endpoints
from replank_local.report import addresses
from replank_storefront import shop as storefront
from replank_storefront.generate import Dirt, Sizes
from replank_storefront.generate import Verdict as Fate
from tests.cli.command import replank

MAPPING = Path(storefront.__file__).parents[1] / "mapping.yaml"
PLACES = Places(
    urls={},
    shop="http://127.0.0.1:1",
    kv_dsn="postgresql://nobody:hush@127.0.0.1:1/none",
    tables_dsn="postgresql://nobody:hush@127.0.0.1:1/none",
    token="none",
    jaeger=None,
    mapping=MAPPING,
)


async def test_without_a_stack_it_says_what_to_do() -> None:
    answer = await replank("demo")
    assert answer.code == 1
    assert "REPLANK_SCHEMA_URL is not set" in answer.error
    assert "make demo" in answer.error


def test_it_knows_what_becomes_of_every_kind_of_dirt_that_the_shop_plants() -> None:
    planted = Planted({kind.label: [f"{kind.label}:1", f"{kind.label}:2"] for kind in Dirt})
    rejected = {f"{kind.label}:{number}" for kind in Dirt if kind.verdict is Fate.REJECTED for number in (1, 2)}
    assert planted.rejected == rejected
    assert set(planted.mendable) == {
        "dangling_reference:1",
        "dangling_reference:2",
        "third_decimal:1",
        "third_decimal:2",
    }
    assert set(planted.lost) == rejected - set(planted.mendable)


def test_it_moves_every_read_of_the_shop_and_finds_the_records_of_every_entity() -> None:
    read = set(re.findall(r'"([a-z]+\.[a-z]+)"', inspect.getsource(storefront)))
    assert read == set(story._ENDPOINTS)
    mapping = load(MAPPING.read_text())
    assert {entity.key.partition(":")[0] for entity in mapping.entities.values()} == set(mapping.entities)
    assert Sizes.of(1000).products >= 4, "the order that is followed is of products that there are"


def test_counts_that_differ_are_marked_and_endpoints_without_requests_are_shown() -> None:
    assert report.counts({"order": 1200, "site": 2}, {"order": 1200, "site": 3}) == [
        ("order", "1,200", "1,200", ""),
        ("site", "2", "3", "differ"),
        ("all", "1,202", "1,203", "differ"),
    ]
    before = {"order.get": {"count": 3, "p50": 1.25, "p99": 9.0}}
    assert report.latencies(before, {}) == [("order.get", "1.2 / 9.0  (3)", "-")]


def test_what_does_not_hold_is_a_problem() -> None:
    verdict = Verdict()
    verdict.demand([1], "there is nothing")
    verdict.demand([], "there is nothing")
    assert verdict.problems == ["there is nothing"]


async def test_waiting_ends_and_says_what_for_and_how_it_stood() -> None:
    async def ask() -> int:
        return 3

    with pytest.raises(ReplankError, match=r"waited 0 s for seven geese; there are 3"):
        await until(ask, lambda found: found == 7, what="seven geese", within=0, so_far=lambda n: f"there are {n}")


async def test_a_shop_that_cannot_be_filled_or_audited_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ReplankError, match=r"could not be filled: .*cannot be reached") as refused:
        await traffic.seed(PLACES, 1000, tmp_path / "planted.json")
    assert "hush" not in str(refused.value)


async def test_traffic_that_breaks_off_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with traffic.Traffic(PLACES, tmp_path, rate=1.0) as live:
        beginning = asyncio.create_task(live.begin("first"))
        await eventually(lambda: bool(live.shifts), "it is started")
        live.shifts[0].process.kill()
        with pytest.raises(ReplankError, match=r"the live traffic \(first\) broke off with status -9"):
            await beginning
    assert not (tmp_path / "token").stat().st_mode & 0o077


# --- the whole of it ---


class Stack:
    """A stack of its own in a folder, brought up by `make demo`'s own command."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Run the command; its exit status, and what it said."""
        process = await self.start(*arguments)
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        command, *options = arguments
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "replank_local", command, "--root", str(self.root), *options),
            env={**os.environ, "REPLANK_STACK": "native", "COLUMNS": "200"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    @property
    def said(self) -> dict[str, str]:
        """What `make env` says."""
        return addresses(Endpoints(state.load(self.root).ports, Secrets(self.root / "secrets")))

    @property
    def places(self) -> Places:
        said = self.said
        return replace(PLACES, kv_dsn=said["REPLANK_STOREFRONT_DSN"], tables_dsn=said["REPLANK_STOREFRONT_TABLES_DSN"])


SPOIL = "update kv_store set value = value || '{\"stock\": 77777}' where key like 'product:p-%'"


async def spoil_products_of_the_traffic(places: Places) -> int:
    """Change, behind the back of the traffic, what it believes to be its own; how many products that is."""
    conn = await asyncpg.connect(places.kv_dsn)
    try:
        return int((await conn.execute(SPOIL)).split()[-1])
    finally:
        await conn.close()


async def read_until(process: asyncio.subprocess.Process, text: str) -> str:
    """What a process has said when it says this."""
    assert process.stdout is not None
    said = ""
    while text not in said:
        line = await process.stdout.readline()
        assert line, f"it never said {text}:\n{said}"
        said += line.decode()
    return said


@pytest.mark.servers
@pytest.mark.timeout(1200)  # a whole stack and two whole lives, on a machine that does other things too
async def test_a_migration_lives_its_whole_life_twice_and_a_wrong_answer_is_not_hidden(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    try:
        code, told = await stack.run("demo", "--records", "2000", "--rate", "25")
        assert code == 0, told
        assert "No request failed, no answer was wrong, and both stores agreed." in told
        assert "0 failed, 0 wrong answers" in told
        assert "differ" not in re.sub(r"0 differ", "", told)
        _, rows = await shop.count(stack.places, load(MAPPING.read_text()), [])
        assert rows["product"] > 0
        assert rows["order"] > 0

        again = await stack.start("demo", "--records", "2000", "--rate", "25")
        told = await read_until(again, "capturing: ")
        assert await spoil_products_of_the_traffic(stack.places) > 0
        out, _ = await again.communicate()
        told += out.decode()
        assert "an earlier run left its migration completed" in told
        assert re.search(r"wrong: [1-9]\d* answers were wrong", told), told
        assert again.returncode == 1

        retired = await replank("migrate", "retire", "storefront", "--yes", "--wait", "--reason", "done", **stack.said)
        assert retired.code == 0, retired.error
        code, told = await stack.run("demo", "--records", "2000", "--rate", "25")
        assert code != 0
        assert "this shop lives on its tables for good" in told
        assert "Traceback" not in told
    finally:
        await stack.run("down")
        await stack.run("clean")


async def test_a_jaeger_that_is_not_built_yet_is_said_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = await flow.draw(report.Report(), "http://127.0.0.1:1", "0" * 31 + "1", flow.is_whole_plan)
    assert drawn
    assert "Jaeger does not run" in capsys.readouterr().out
