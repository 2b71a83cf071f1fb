"""What the pages say is so: links lead somewhere, commands exist, SQL runs, the wire format is the one on the wire."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import os
import re
import shlex
import sys
import textwrap
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer
from typer.core import TyperGroup
from typer.main import get_command

from replank import Event, outbox
from replank.outbox.relay import Relay
from replank.settings import ServiceSettings
from replank_cli.main import app
from replank_local.services import SERVICES

CHECKOUT = Path(__file__).parents[2]
HOW_TO = CHECKOUT / "docs" / "how-to"
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "libs/*/*.md", "services/*/*.md", "deploy/**/*.md")
    for page in CHECKOUT.glob(pattern)
)

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SQL = re.compile(r"^ *```sql\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^\s*(?:\$ )?|`|\| )(replank [a-z][^`|\n]*)", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/.]+)`")


def name_of(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


def anchors(page: Path) -> set[str]:
    """The anchors that are made of a page's headings: lower case, words joined by hyphens."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(_FENCE.sub("", page.read_text())):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {path}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)} links to {path}{anchor}"


def test_every_page_can_be_found_from_the_index() -> None:
    index = CHECKOUT / "docs" / "index.md"
    reached: set[Path] = set()
    waiting = [index]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = ((page.parent / path).resolve() for path, _ in _LINK.findall(page.read_text()) if path)
        waiting += [target for target in targets if target.suffix == ".md" and target.exists()]
    assert set(CHECKOUT.glob("docs/**/*.md")) <= reached


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_is_named_exists(page: Path) -> None:
    for path in _TEST.findall(page.read_text()):
        assert (CHECKOUT / path).exists(), f"{name_of(page)} names {path}"


def commands() -> list[tuple[str, str]]:
    """Page and command line. In the benchmarks' page `replank 1 %` and the like are names of subjects."""
    pages = [page for page in PAGES if page.name != "benchmarks.md"]
    return sorted({(name_of(page), found.strip()) for page in pages for found in _COMMAND.findall(page.read_text())})


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_that_is_shown_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(re.split(" >|  #", line, maxsplit=1)[0])[1:]
    command = get_command(app)
    while isinstance(command, TyperGroup) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        found = command.get_command(command.make_context("replank", [], resilient_parsing=True), words[0])
        assert found is not None, f"{page}: there is no {words[0]} in: {line}"
        command, words = found, words[1:]
    assert not isinstance(command, TyperGroup), f"{page}: there is no such command: {line}"
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0] in options, f"{page}: {word} means nothing in: {line}"


def test_the_commands_were_found() -> None:
    assert len(commands()) >= 30


def snippets(page: Path) -> list[str]:
    """The page's Python, with what stands for "something" made an expression."""
    found = re.findall(r"^ *```python\n.*?^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text).strip("`").removeprefix("python\n").replace("…", "...") for text in found]


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=name_of)
def test_every_snippet_is_python_and_imports_what_exists(page: Path) -> None:
    for snippet in snippets(page):
        tree = compile(snippet, name_of(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module != "contracts":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def test_every_metric_that_is_named_exists() -> None:
    name = re.compile(r"`(replank_\w+_([a-z]+))`")
    metrics = CHECKOUT / "docs" / "reference" / "metrics.md"
    known = dict(name.findall(metrics.read_text()))
    for page in PAGES:
        for named, unit in name.findall(page.read_text()):
            assert named in known or unit not in known.values(), f"{name_of(page)} names the metric {named}"


async def test_the_sql_of_the_how_to_appends(pool: asyncpg.Pool) -> None:
    statements = _SQL.findall((HOW_TO / "add-an-outbox.md").read_text())
    assert len(statements) == 2
    async with pool.acquire() as conn:
        await outbox.install(conn)
        await conn.execute("create table orders (id integer primary key, state text)")
        await conn.execute("insert into orders values (7, 'open')")
        for statement in statements:
            await conn.execute(statement)
        await conn.execute("insert into orders values (8, 'open')")
        appended = await conn.fetch("select key, type, traceparent, value from replank_outbox.event order by id")
    by_hand, by_trigger = appended
    assert (by_hand["key"], by_hand["type"]) == ("7", "shop.order.paid.v1")
    assert by_hand["traceparent"].startswith("00-0af765")
    assert (by_trigger["key"], by_trigger["type"]) == ("8", "shop.order.changed.v1")
    assert by_trigger["value"] == b'{"id": 8, "state": "open"}'


class PageWritten(Event, type="docs.page.written.v1", topic="docs"):
    """Something to look at on the wire."""

    title: str


async def test_the_wire_format_is_the_one_that_is_described(
    pool: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (HOW_TO / "consume-in-another-language.md").read_text()
    rows = re.findall(r"^\| (`.+`) \| .* \| (always|if .+) \|$", page, re.MULTILINE)
    described = {name: there for names, there in rows for name in re.findall(r"`([\w-]+)`", names)}
    monkeypatch.setattr(PageWritten, "event_topic", topic)
    async with pool.acquire() as conn:
        await outbox.install(conn)
        async with conn.transaction():
            event_id = await outbox.append(conn, PageWritten(title="ü"), key="a")
            await outbox.append(conn, PageWritten(title="b"), key="a", subject="s", headers={"own": "1"})
        await conn.execute(
            "select replank_outbox.append($1, 'a', 't.v1', null,"
            " traceparent => $2, tracestate => 'a=b', baggage => 'c=d')",
            topic,
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        )
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest", group_id=None)
    async with Relay(postgres_dsn, kafka):
        await consumer.start()
        try:
            records = [await asyncio.wait_for(consumer.getone(), 30) for _ in range(3)]
        finally:
            await consumer.stop()
    plain, with_subject, with_trace = (dict(record.headers) for record in records)
    assert set(plain) == {name for name, there in described.items() if there == "always"}
    assert set(plain) | set(with_subject) | set(with_trace) == {*described, "own"}
    assert plain["ce_specversion"] == b"1.0"
    assert plain["ce_id"].decode() == str(event_id)
    assert plain["ce_source"].startswith(b"postgres:")
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", plain["ce_time"])
    assert records[0].value == '{"title":"ü"}'.encode()
    assert records[2].value is None


@pytest.mark.timeout(120)
async def test_the_quick_start_runs(tmp_path: Path, postgres_dsn: str, kafka: str, topic: str) -> None:
    page = (CHECKOUT / "libs" / "common" / "README.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    path = tmp_path / "quickstart.py"
    await asyncio.to_thread(path.write_text, program.replace("shop.orders", topic))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        path,
        env={**os.environ, "DSN": postgres_dsn, "KAFKA": kafka},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, error.decode()
    committed, handled = out.decode().splitlines()
    assert re.fullmatch(r"event \S{36} is committed", committed)
    assert re.fullmatch(r"order \S{36} is handled", handled)


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_the_variables_that_a_service_says_it_needs_are_its_own(service: str) -> None:
    page = (CHECKOUT / "services" / service / "README.md").read_text()
    prefix = SERVICES[service].prefix
    shown = re.findall(r"\b(REPLANK_\w+)=", page)
    assert shown
    settings = importlib.import_module(f"{SERVICES[service].module}.settings")
    (known,) = [
        found
        for found in vars(settings).values()
        if isinstance(found, type) and issubclass(found, ServiceSettings) and found.__module__ == settings.__name__
    ]
    for variable in shown:
        assert variable.startswith(f"{prefix}_"), variable
        assert variable.removeprefix(f"{prefix}_").lower() in known.model_fields, variable


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_says_what_it_answers_emits_and_consumes(service: str) -> None:
    page = (CHECKOUT / "services" / service / "README.md").read_text()
    rows = dict(re.findall(r"^\| ([A-Za-z ]+) \| (.*) \|$", page, re.MULTILINE))
    reference = CHECKOUT / "docs" / "reference"
    events = json.loads((reference / "asyncapi" / f"{service}.json").read_text())["operations"].values()
    for row, action in (("emits", "send"), ("consumes", "receive")):
        messages = (
            message for operation in events if operation["action"] == action for message in operation["messages"]
        )
        assert set(re.findall(r"`([\w.-]+\.v\d+)`", rows[row])) == {found["$ref"].split("/")[-1] for found in messages}
    paths = json.loads((reference / "openapi" / f"{service}.json").read_text())["paths"]
    routes = {(method.upper(), re.sub(r"{\w+}", "{}", path)) for path, methods in paths.items() for method in methods}
    said = re.findall(r"`([A-Z]+) (/[^`]+)`", rows["HTTP"])
    # The same below two paths.
    alike = rows.get("HTTP of the vault", "")
    said += [
        (method, f"{below}{path}")
        for method, path in re.findall(r"`([A-Z]+) …([^`]*)`", alike)
        for below in re.findall(r"`(/[^`]+)`", alike)
    ]
    assert {(method, re.sub(r"{\w+}", "{}", path)) for method, path in said} == routes
