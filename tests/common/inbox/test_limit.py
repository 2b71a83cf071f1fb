"""When a subscription stops rather than let more events die."""

from __future__ import annotations

import pytest

from replank.errors import ConfigurationError
from replank.inbox import DlqLimit
from replank.inbox.limit import DlqGauge


def test_a_run_of_deaths_is_limited_and_a_life_ends_it() -> None:
    gauge = DlqGauge(DlqLimit(max_run=2, window=1000))
    assert [gauge.died() for _ in range(2)] == [None, None]
    assert "3 events in a row" in (gauge.died() or "")
    gauge.lived()
    assert gauge.died() is None


def test_a_ratio_of_deaths_is_limited_once_the_window_is_full() -> None:
    gauge = DlqGauge(DlqLimit(max_ratio=0.5, window=10, max_run=100))
    for _ in range(4):
        gauge.lived()
        assert gauge.died() is None
    gauge.lived()
    assert gauge.died() is None  # 5 of 10
    assert "6 of the last 10" in (gauge.died() or "")
    assert "6 of the last 10" in (gauge.died() or ""), "what was refused is not counted"
    gauge.lived(5)
    assert gauge.died() is None


def test_nothing_applied_is_no_life() -> None:
    gauge = DlqGauge(DlqLimit(max_run=1))
    assert gauge.died() is None
    gauge.lived(0)
    assert gauge.died() is not None


def test_no_death_at_all_can_be_asked_for() -> None:
    assert DlqGauge(DlqLimit(max_run=0)).died() is not None


@pytest.mark.parametrize(("ratio", "window", "run"), [(1.1, 100, 10), (-0.1, 100, 10), (0.5, 0, 10), (0.5, 100, -1)])
def test_limits_that_make_no_sense_are_refused(ratio: float, window: int, run: int) -> None:
    with pytest.raises(ConfigurationError, match="makes no sense"):
        DlqLimit(max_ratio=ratio, window=window, max_run=run)
