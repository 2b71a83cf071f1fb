"""There is one registry of metrics: typed, well named, documented, and nobody goes around it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from mypy import api as mypy
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from replank.errors import ConfigurationError
from replank.telemetry import metrics, registry
from replank.telemetry.registry import Counter, Gauge, Histogram, as_markdown, render_metrics

ROOT = Path(__file__).resolve().parents[3]
DEFINITIONS = ROOT / "libs/common/replank/telemetry/metrics.py"


class Topic(NamedTuple):
    topic: str


@pytest.fixture(autouse=True)
def forget_new_metrics() -> Iterator[None]:
    before = dict(registry._metrics)
    yield
    for name in registry._metrics.keys() - before.keys():
        REGISTRY.unregister(registry._metrics.pop(name)._series)  # type: ignore[attr-defined]


def test_a_metric_is_served_with_its_labels() -> None:
    counter = Counter("replank_test_sent_total", "Sent.", labels=Topic)
    counter.labels(topic="shop").inc(2)
    body, content_type = render_metrics()
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    (sample,) = [s for s in families["replank_test_sent"].samples if s.name == "replank_test_sent_total"]
    assert (sample.labels, sample.value) == ({"topic": "shop"}, 2.0)
    assert content_type.startswith("text/plain")


def test_a_series_that_is_removed_is_not_served() -> None:
    gauge = Gauge("replank_test_depth", "Depth.", labels=Topic)
    gauge.labels("a").set(1)
    gauge.labels("b").set(1)
    gauge.remove(topic="a")
    body = render_metrics()[0].decode()
    assert 'replank_test_depth{topic="b"}' in body
    assert 'replank_test_depth{topic="a"}' not in body


def test_a_wrong_label_is_named_at_run_time() -> None:
    counter = Counter("replank_test_wrong_total", "Wrong.", labels=Topic)
    with pytest.raises(TypeError, match="partition"):
        counter.labels(partition="1")  # type: ignore[call-arg]


def test_a_wrong_label_is_an_error_of_the_type_checker(tmp_path: Path) -> None:
    use = tmp_path / "use.py"
    use.write_text(
        "from replank.telemetry import metrics\n"
        "metrics.SPANS_DROPPED.labels(reason='shutdown').inc()\n"
        "metrics.SPANS_EXPORTED.inc()\n"
        "metrics.SPANS_DROPPED.labels(reasn='shutdown').inc()\n"
        "metrics.SPANS_DROPPED.inc()\n"
    )
    out, _, status = mypy.run(
        ["--strict", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"), str(use)]
    )
    assert status == 1
    assert [line.split(":")[1] for line in out.splitlines() if ": error:" in line] == ["4", "5"], out


@pytest.mark.parametrize(
    ("define", "complaint"),
    [
        (lambda: Counter("shop_orders_total", "x"), "is not named replank_"),
        (lambda: Counter("replank_shop_orders", "x"), "end in _total"),
        (lambda: Gauge("replank_shop_orders_total", "x"), "end in _total"),
        (lambda: Histogram("replank_shop_wait", "x", buckets=(1.0,), unit="seconds"), "does not say that its unit"),
        (lambda: Counter("replank_telemetry_exported_spans_total", "x"), "defined twice"),
    ],
)
def test_a_badly_named_metric_is_refused(define: object, complaint: str) -> None:
    assert callable(define)
    with pytest.raises(ConfigurationError, match=complaint):
        define()


def test_the_reference_page_is_up_to_date() -> None:
    defined = {metric.name for metric in registry.metrics()}
    assert defined
    page = (ROOT / "docs/reference/metrics.md").read_text()
    assert page == as_markdown(), "run `make docs`"


def sources() -> Iterator[Path]:
    for folder in ("libs", "services", "deploy", "examples"):
        yield from (ROOT / folder).rglob("*.py")


def test_nothing_else_constructs_a_metric() -> None:
    kinds = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum", "Metric"}
    allowed = {DEFINITIONS, DEFINITIONS.with_name("registry.py")}
    offenders = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path not in allowed
        for node in ast.walk(ast.parse(path.read_text()))
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "prometheus_client"
            and kinds.intersection(name.name for name in node.names)
        )
        or (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "prometheus_client" for name in node.names))
    ]
    assert offenders == []


def test_every_metric_is_used() -> None:
    names = [name for name, value in vars(metrics).items() if isinstance(value, registry.Metric)]
    assert "SPANS_EXPORTED" in names
    texts = [path.read_text() for path in sources() if path != DEFINITIONS]
    assert [name for name in names if not any(f"metrics.{name}" in text for text in texts)] == []
