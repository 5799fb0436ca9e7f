"""Fixed-bucket histograms whose writers never lock, wait or compute."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """What a histogram held when it was read.

    Attributes:
        bounds: Upper bounds in ascending order, without ``+Inf``; an observation equal to one belongs to it.
        cumulative: For each bound, how many observations were at or below it.
        count: All observations, those above the last bound included.
        sum: Their total, in the unit of the observations.
    """

    bounds: tuple[float, ...]
    cumulative: tuple[int, ...]
    count: int
    sum: float

    def __add__(self, other: HistogramSnapshot) -> HistogramSnapshot:
        """Merge two histograms of the same bounds; raises ValueError where they differ."""
        if self.bounds != other.bounds:
            msg = f"cannot add histograms of bounds {self.bounds} and {other.bounds}"
            raise ValueError(msg)
        return HistogramSnapshot(
            self.bounds,
            tuple(a + b for a, b in zip(self.cumulative, other.cumulative, strict=True)),
            self.count + other.count,
            self.sum + other.sum,
        )


class Histogram:
    """Counts observations into fixed buckets.

    ``observe`` is the ``append`` of the list ``backlog``: safe in any thread and inside the garbage collector. Whoever
    reads calls ``fold`` first, one caller at a time.
    """

    __slots__ = ("_bounds", "_count", "_cumulative", "_sum", "backlog", "observe")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        if not bounds or any(low >= high for low, high in pairwise(bounds)):
            msg = f"bounds must be strictly ascending and not empty, got {bounds!r}"
            raise ValueError(msg)
        self._bounds = bounds
        self._cumulative = [0] * len(bounds)
        self._count = 0
        self._sum = 0.0
        self.backlog: list[float] = []
        self.observe: Callable[[float], None] = self.backlog.append

    def clear(self) -> None:
        """Forget all observations."""
        self.backlog.clear()
        self._cumulative = [0] * len(self._bounds)
        self._count = 0
        self._sum = 0.0

    def fold(self) -> None:
        """Move the waiting observations into the buckets; one below zero (a clock set back) counts as zero."""
        batch = taken(self.backlog)
        batch.sort()
        below_zero = bisect_left(batch, 0.0)
        batch[:below_zero] = [0.0] * below_zero
        for index, bound in enumerate(self._bounds):
            self._cumulative[index] += bisect_right(batch, bound)
        self._count += len(batch)
        self._sum += sum(batch)

    def snapshot(self) -> HistogramSnapshot:
        """Return what has been folded so far."""
        return HistogramSnapshot(self._bounds, tuple(self._cumulative), self._count, self._sum)


def taken(backlog: list[T]) -> list[T]:
    """Return what is in *backlog*, and take no more than that off it: others append meanwhile."""
    batch = backlog[:]
    del backlog[: len(batch)]
    return batch
