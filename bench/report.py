"""What every benchmark leaves behind: a JSON file, a table, and one last line that scripts can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(slots=True)
class Result:
    """One metric of one subject, with the value of every run. ``value`` is the median of the runs."""

    subject: str
    metric: str
    unit: str
    runs: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        return median(self.runs)


class Report:
    """Collects the runs of one benchmark, in the order in which subjects and metrics first appear."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._results: dict[tuple[str, str], Result] = {}
        self._notes: list[str] = []

    def add(self, subject: str, metric: str, value: float, unit: str) -> None:
        """Add the value of one run."""
        self._results.setdefault((subject, metric), Result(subject, metric, unit)).runs.append(value)

    def note(self, text: str) -> None:
        """Say under the table what a reader of the numbers must know: a subject left out, a run that failed."""
        self._notes.append(text)

    def value(self, subject: str, metric: str) -> float | None:
        """The median of the runs, or None when that was not measured."""
        result = self._results.get((subject, metric))
        return None if result is None else result.value

    def write(self, directory: Path = RESULTS) -> Path:
        """Write ``<name>.json``: a list of ``{subject, metric, value, unit, runs}``."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        rows = [
            {
                "subject": result.subject,
                "metric": result.metric,
                "value": result.value,
                "unit": result.unit,
                "runs": result.runs,
            }
            for result in self._results.values()
        ]
        path.write_text(json.dumps(rows, indent=1) + "\n")
        return path

    def print(self, console: Console) -> None:
        """Print metrics as rows and subjects as columns; a metric that a subject does not have stays empty."""
        subjects = list(dict.fromkeys(subject for subject, _ in self._results))
        metrics = {metric: result.unit for (_, metric), result in self._results.items()}
        table = Table(title=f"bench-{self.name} (median of the runs)")
        table.add_column("metric")
        table.add_column("unit")
        for subject in subjects:
            table.add_column(subject, justify="right")
        for metric, unit in metrics.items():
            cells = [self.value(subject, metric) for subject in subjects]
            table.add_row(metric, unit, *("" if cell is None else _readable(cell) for cell in cells))
        console.print(table)
        for note in self._notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)

    def last_line(self, metrics: Mapping[str, float | None]) -> str:
        """``bench-<name>: metric=value …``; a metric that was not measured is written ``n/a``, never left out."""
        pairs = (f"{name}={'n/a' if value is None else _plain(value)}" for name, value in metrics.items())
        return f"bench-{self.name}: {' '.join(pairs)}"


def _plain(value: float) -> str:
    if value == int(value) or abs(value) >= 1000:
        return str(round(value))
    return f"{value:.4g}"


def _readable(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return _plain(value)
