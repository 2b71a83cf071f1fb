"""Typed Prometheus metrics: what a metric is, and the list of all that exist.

The metrics themselves are defined in `replank.telemetry.metrics`, one constant each. This module gives that list three
things that prometheus_client does not: label names that a type checker knows, one place that refuses a badly named
metric, and a description to generate the reference page from.

Labels are the fields of a ``NamedTuple``, so that a wrong label is an error of the type checker, and a `TypeError` that
names it at run time::

    class Topic(NamedTuple):
        topic: str

    PUBLISHED = Counter("replank_outbox_published_events_total", "Events that Kafka acknowledged.", labels=Topic)
    PUBLISHED.labels(topic="shop.orders").inc()

``labels()`` costs a lookup under a lock: a hot loop keeps the series that it returns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, Literal, ParamSpec, overload

import prometheus_client
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from replank.errors import ConfigurationError

Labels = ParamSpec("Labels")
Unit = Literal["", "seconds", "bytes", "ratio"]

# One latency scale for everything that waits for a server: 0.5 ms to 10 s.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# For what may be behind by anything from milliseconds to a day: lag, age, retention.
LONG_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
BYTES: Final = tuple(float(4**power) for power in range(4, 16))  # 256 B to 1 GiB
ROWS: Final = (1.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)

_NAME: Final = re.compile(r"replank_[a-z0-9]+(_[a-z0-9]+)+")


class Metric(Generic[Labels]):
    """What every metric has: its name, help, unit, kind and label names."""

    kind: Literal["counter", "gauge", "histogram"]

    def __init__(self, name: str, help: str, unit: Unit, labels: Callable[Labels, object] | None) -> None:
        self.name = name
        self.help = help
        self.unit = unit
        self.label_names: Sequence[str] = getattr(labels, "_fields", ())
        self._labels = labels
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"the metric {name!r} is not named replank_<part>_<what>[_<unit>]")
        if (self.kind == "counter") != name.endswith("_total"):
            raise ConfigurationError(
                f"the metric {name!r} is a {self.kind}", fix="counters, and only they, end in _total"
            )
        if unit and not name.removesuffix("_total").endswith(f"_{unit}"):
            raise ConfigurationError(f"the metric {name!r} does not say that its unit is {unit}")
        if name in _metrics:
            raise ConfigurationError(f"the metric {name!r} is defined twice", fix="use the constant that exists")

    def _values(self, *args: Labels.args, **kwargs: Labels.kwargs) -> Iterable[Any]:
        if self._labels is None:
            raise TypeError(f"{self.name} has no labels")
        values = self._labels(*args, **kwargs)
        assert isinstance(values, tuple)  # noqa: S101 - the label class is a NamedTuple
        return values


class Counter(Metric[Labels]):
    """Something that only grows. Its name ends in ``_total``."""

    kind = "counter"

    @overload
    def __init__(self: Counter[[]], name: str, help: str, *, unit: Unit = "") -> None: ...
    @overload
    def __init__(self, name: str, help: str, *, labels: Callable[Labels, object], unit: Unit = "") -> None: ...
    def __init__(
        self, name: str, help: str, *, labels: Callable[Labels, object] | None = None, unit: Unit = ""
    ) -> None:
        super().__init__(name, help, unit, labels)
        self._series = prometheus_client.Counter(name, help, self.label_names, registry=REGISTRY)
        _metrics[name] = self

    def labels(self, *args: Labels.args, **kwargs: Labels.kwargs) -> prometheus_client.Counter:
        """The series with these label values."""
        return self._series.labels(*self._values(*args, **kwargs))

    def inc(self: Counter[[]], amount: float = 1) -> None:
        """Count ``amount`` more, where there are no labels."""
        self._series.inc(amount)


class Gauge(Metric[Labels]):
    """Something that goes up and down."""

    kind = "gauge"

    @overload
    def __init__(self: Gauge[[]], name: str, help: str, *, unit: Unit = "") -> None: ...
    @overload
    def __init__(self, name: str, help: str, *, labels: Callable[Labels, object], unit: Unit = "") -> None: ...
    def __init__(
        self, name: str, help: str, *, labels: Callable[Labels, object] | None = None, unit: Unit = ""
    ) -> None:
        super().__init__(name, help, unit, labels)
        self._series = prometheus_client.Gauge(name, help, self.label_names, registry=REGISTRY)
        _metrics[name] = self

    def labels(self, *args: Labels.args, **kwargs: Labels.kwargs) -> prometheus_client.Gauge:
        """The series with these label values."""
        return self._series.labels(*self._values(*args, **kwargs))

    def remove(self, *args: Labels.args, **kwargs: Labels.kwargs) -> None:
        """Forget one series: a shard that moved away must not be reported for ever."""
        self._series.remove(*self._values(*args, **kwargs))

    def set(self: Gauge[[]], value: float) -> None:
        """Set the value, where there are no labels."""
        self._series.set(value)

    def inc(self: Gauge[[]], amount: float = 1) -> None:
        """Add, where there are no labels."""
        self._series.inc(amount)

    def dec(self: Gauge[[]], amount: float = 1) -> None:
        """Subtract, where there are no labels."""
        self._series.dec(amount)


class Histogram(Metric[Labels]):
    """A distribution, counted in buckets. ``buckets`` are upper bounds, ascending."""

    kind = "histogram"

    @overload
    def __init__(self: Histogram[[]], name: str, help: str, *, buckets: Sequence[float], unit: Unit = "") -> None: ...
    @overload
    def __init__(
        self, name: str, help: str, *, labels: Callable[Labels, object], buckets: Sequence[float], unit: Unit = ""
    ) -> None: ...
    def __init__(
        self,
        name: str,
        help: str,
        *,
        labels: Callable[Labels, object] | None = None,
        buckets: Sequence[float],
        unit: Unit = "",
    ) -> None:
        super().__init__(name, help, unit, labels)
        self.buckets = buckets
        self._series = prometheus_client.Histogram(name, help, self.label_names, registry=REGISTRY, buckets=buckets)
        _metrics[name] = self

    def labels(self, *args: Labels.args, **kwargs: Labels.kwargs) -> prometheus_client.Histogram:
        """The series with these label values."""
        return self._series.labels(*self._values(*args, **kwargs))

    def observe(self: Histogram[[]], amount: float) -> None:
        """Count one observation, where there are no labels."""
        self._series.observe(amount)


_metrics: dict[str, Metric[...]] = {}


def metrics() -> Iterator[Metric[...]]:
    """All metrics that were defined in this process, by name."""
    return iter(sorted(_metrics.values(), key=lambda metric: metric.name))


def render_metrics(registry: CollectorRegistry = REGISTRY) -> tuple[bytes, str]:
    """The body and the content type of a ``/metrics`` answer, in the Prometheus text format."""
    return generate_latest(registry), CONTENT_TYPE_LATEST


def as_markdown() -> str:
    """The reference page of all metrics that are defined, as Markdown."""
    lines = [
        "# Metrics",
        "",
        "Every service serves these at `/metrics`. Made from `replank.telemetry.metrics` by `make docs`: do not edit.",
        "",
        "| metric | kind | unit | labels | meaning |",
        "|---|---|---|---|---|",
    ]
    for metric in metrics():
        labels = ", ".join(f"`{label}`" for label in metric.label_names)
        lines.append(f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"
