"""Turns snapshots into prometheus_client families, through the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from poolwatch.catalog import CATALOG
from poolwatch.histogram import HistogramSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric as Family

    from poolwatch.catalog import Metric
    from poolwatch.snapshot import PoolSnapshot


class Source(Protocol):
    """One watched pool, as the collector sees it."""

    @property
    def name(self) -> str:
        """The value of the label ``pool``."""

    def collect(self) -> PoolSnapshot | None:
        """Return the pool's present snapshot; ``None`` if there is nothing to say. Never raises."""


class PoolCollector(Collector):
    """Yields the families of every pool that *sources* returns at a scrape."""

    def __init__(self, sources: Callable[[], Iterable[Source]]) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Family]:
        """Name the families without reading a pool; the registry asks when we register."""
        return [_family(metric) for metric in CATALOG]

    def collect(self) -> Iterator[Family]:
        """Read every pool once and yield the families that have a series."""
        snapshots = [(source.name, source.collect()) for source in self._sources()]
        for metric in CATALOG:
            family = _family(metric)
            for name, snapshot in snapshots:
                if snapshot is not None:
                    _fill(family, metric, name, snapshot)
            if family.samples:
                yield family


def _family(metric: Metric) -> Family:
    labels = ("pool", *(label.name for label in metric.labels))
    match metric.kind:
        case "counter":
            return CounterMetricFamily(metric.name, metric.help, labels=labels)
        case "histogram":
            return HistogramMetricFamily(metric.name, metric.help, labels=labels)
        case _:
            return GaugeMetricFamily(metric.name, metric.help, labels=labels)


def _fill(family: Family, metric: Metric, pool: str, snapshot: PoolSnapshot) -> None:
    value = getattr(snapshot, metric.field)
    if value is None:
        return
    if isinstance(value, HistogramSnapshot):
        bounds = (*map(floatToGoString, value.bounds), "+Inf")
        buckets = list(zip(bounds, (*value.cumulative, value.count), strict=True))
        family.add_metric((pool,), buckets, value.sum)  # type: ignore[attr-defined]
    elif metric.kind == "info":
        family.add_metric((pool, *(value[label.name] for label in metric.labels)), 1)  # type: ignore[attr-defined]
    elif metric.labels:
        for labels, number in value.items():
            family.add_metric((pool, *((labels,) if isinstance(labels, str) else labels)), number)  # type: ignore[attr-defined]
    else:
        family.add_metric((pool,), value)  # type: ignore[attr-defined]
