"""Bucket arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolwatch.histogram import Histogram

BOUNDS = st.lists(st.floats(0, 100), min_size=1, max_size=10, unique=True).map(lambda each: tuple(sorted(each)))
BATCHES = st.lists(st.lists(st.floats(-1, 200)))


@given(bounds=BOUNDS, batches=BATCHES)
def test_agrees_with_a_plain_count(bounds: tuple[float, ...], batches: list[list[float]]) -> None:
    """Each bucket holds what is at or below its bound, however often the backlog is folded in between."""
    histogram = Histogram(bounds)
    for batch in batches:
        for seconds in batch:
            histogram.observe(seconds)
        histogram.fold()
    everything = [max(0.0, seconds) for batch in batches for seconds in batch]
    snapshot = histogram.snapshot()
    assert tuple(sum(seconds <= bound for seconds in everything) for bound in bounds) == snapshot.cumulative
    assert len(everything) == snapshot.count
    assert sum(everything) == pytest.approx(snapshot.sum)


def test_sum_of_two() -> None:
    """Two histograms of the same bounds add up; of different ones they do not."""
    one, two, other = Histogram((1.0, 2.0)), Histogram((1.0, 2.0)), Histogram((1.0,))
    one.observe(0.5)
    two.observe(1.5)
    for each in (one, two):
        each.fold()
    both = one.snapshot() + two.snapshot()
    assert ((1, 2), 2, 2.0) == (both.cumulative, both.count, both.sum)
    with pytest.raises(ValueError, match="bounds"):
        both + other.snapshot()


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0)])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    """Bounds that do not ascend are refused by name."""
    with pytest.raises(ValueError, match="ascending"):
        Histogram(bounds)
