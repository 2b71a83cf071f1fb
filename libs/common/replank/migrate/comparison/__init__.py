"""Comparing a key-value store with the tables that it becomes: everything, samples, and single keys; and mending them.

What a comparison can and cannot catch is in ``docs/reference/comparison.md``, a test for every row of it.
"""

from replank.migrate.comparison.model import (
    INCONSISTENT,
    ComparisonSettings,
    Findings,
    Kind,
    Mismatch,
    Progress,
    consistency,
)
from replank.migrate.comparison.repair import Repaired, repair
from replank.migrate.comparison.sample import Sampler, sample
from replank.migrate.comparison.settle import check
from replank.migrate.comparison.sides import Sides, opened
from replank.migrate.comparison.walk import Comparison, Report
from replank.migrate.topics import Direction

__all__ = [
    "INCONSISTENT",
    "Comparison",
    "ComparisonSettings",
    "Direction",
    "Findings",
    "Kind",
    "Mismatch",
    "Progress",
    "Repaired",
    "Report",
    "Sampler",
    "Sides",
    "check",
    "consistency",
    "opened",
    "repair",
    "sample",
]
