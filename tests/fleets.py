"""A fleet that never was: its processes, and what they would have exported for a while, from the catalogue."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import product
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.utils import floatToGoString

from poolwatch.catalog import CATALOG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from poolwatch.catalog import Metric

# Seconds between scrapes.
INTERVAL = 60
# So many processes differ; more repeat them.
KINDS = 53
# Events in a second; of everything else there are few. A route holds what adds up to a few connections.
RATES = {
    "checkouts_total": 20.0,
    "checkout_duration_seconds": 20.0,
    "hold_duration_seconds": 20.0,
    "idle_duration_seconds": 20.0,
    "pre_pings_total": 18.0,
    "pre_ping_seconds_total": 0.01,
    "route_checkouts_total": 3.0,
    "route_hold_seconds_total": 0.8,
}
RARE = 0.02
# Each value of a label has so much less than the one before it: none are equal, and an order by rate is certain.
FALLING = 0.85

Labels = tuple[tuple[str, str], ...]
Column = list[float]


class Pool(NamedTuple):
    """How a pool is set up, and what its server allows.

    Attributes:
        most: ``pool_size + max_overflow``; ``inf`` for none.
        limits: The server's inactivity limits, by source; empty where they are unknown.
    """

    name: str = "main"
    server: str = "db:3306"
    most: float = 15
    recycle: float = inf
    limits: tuple[tuple[str, float], ...] = (("wait_timeout", 600.0), ("idle_transaction_timeout", inf))

    @property
    def idle_limit(self) -> float:
        """The limit of a connection that is in no transaction."""
        return min((limit for source, limit in self.limits if source != "idle_transaction_timeout"), default=inf)


class Job(NamedTuple):
    """Processes that are alike.

    Attributes:
        labels: Of each of them; ``instance`` comes on top.
        replaced: How many of them a roll-out replaces meanwhile, one after the other.
        young: How many scrapes ago they were all started; 0 for before the first.
    """

    labels: Mapping[str, str]
    processes: int
    pools: tuple[Pool, ...] = (Pool(),)
    replaced: int = 0
    young: int = 0


class Process(NamedTuple):
    """A process, the labels of its series as they are written, and the scrapes that met it: from, and up to."""

    number: int
    labels: str
    pools: tuple[Pool, ...]
    first: int
    last: int


class Fleet:
    """*jobs*, each process with *routes* routes, scraped *scrapes* times until the Unix time *end*.

    *unsteady* is the share by which traffic differs from one scrape to the next; at 0 every counter is a straight line.
    """

    def __init__(self, jobs: tuple[Job, ...], *, end: int, scrapes: int, routes: int = 30, unsteady: float = 0) -> None:
        self.moments = [end - INTERVAL * i for i in reversed(range(scrapes))]
        self.processes = list(_processes(jobs, scrapes))
        self._routes = [("GET", f"/api/v1/resource-{i:02}/{{id}}") for i in range(routes)]
        self._unsteady = unsteady
        self._column = lru_cache(maxsize=None)(self._made)

    def text(self) -> Iterator[str]:
        """Yield what all of them exported, as OpenMetrics, one series in each part: families stand together."""
        for metric in CATALOG:
            if not metric.optional:
                yield from self._family(metric)
            self._column.cache_clear()
        yield "# EOF\n"

    def series(self, pool: Pool) -> int:
        """Return how many series a process exports of *pool*."""
        return sum(len(list(self._labels(metric, pool))) for metric in CATALOG if not metric.optional)

    def samples(self) -> int:
        """Return how many samples all series have."""
        scrapes = ((pool, each.last - each.first) for each in self.processes for pool in each.pools)
        series = {pool: self.series(pool) for each in self.processes for pool in each.pools}
        return sum(series[pool] * number for pool, number in scrapes)

    def _family(self, metric: Metric) -> Iterator[str]:
        for process in self.processes:
            for pool in process.pools:
                for place, (suffix, labels) in enumerate(self._labels(metric, pool)):
                    tails = self._column(metric, suffix, labels, place, pool, process.number % KINDS)
                    beside = "".join(f',{key}="{value}"' for key, value in labels)
                    head = f'{metric.name}{suffix}{{{process.labels},pool="{pool.name}"{beside}}} '
                    yield head + head.join(tails[process.first : process.last])

    def _labels(self, metric: Metric, pool: Pool) -> Iterator[tuple[str, Labels]]:
        """Yield the series of one process: what follows the family's name, and the labels beside ``pool``."""
        names = tuple(label.name for label in metric.labels)
        rows: list[tuple[str, ...]]
        if metric.kind == "histogram":
            yield from (("_bucket", (("le", bound),)) for bound in map(floatToGoString, (*metric.buckets, inf)))
            yield from (("_count", ()), ("_sum", ()))
            return
        if metric.kind == "info":
            known = {"server": pool.server, "dialect": "mysql", "driver": "aiomysql", "pool_class": "AsyncQueuePool"}
            rows = [tuple(known.get(name, "false") for name in names)]
        elif "route" in names:
            rows = list(self._routes)
        elif names == ("source",):
            rows = [(source,) for source, _ in pool.limits]
        else:
            rows = list(product(*(label.values for label in metric.labels)))
        for row in rows:
            labels = tuple(zip(names, row, strict=True))
            # Nothing replaces a connection that is out.
            if labels != (("state", "checked_out"), ("protected", "true")):
                yield "", labels

    def _made(self, metric: Metric, suffix: str, labels: Labels, place: int, pool: Pool, kind: int) -> list[str]:
        """Return what stands behind a series' labels, at each scrape."""
        if metric.kind in {"counter", "histogram"}:
            values = self._counted(metric, suffix, place, pool, kind)
        else:
            chance = random.Random(f"{metric.field} {labels} {pool.name} {kind}")  # noqa: S311
            gauge = GAUGES.get(metric.field, _few)
            values = [gauge(pool, dict(labels), chance, now) for now in self.moments]
        return [f"{value:.14g} {now}\n" for value, now in zip(values, self.moments, strict=True)]

    def _counted(self, metric: Metric, suffix: str, place: int, pool: Pool, kind: int) -> Column:
        # Of one pool in one process, all events follow the same traffic: buckets stay cumulative.
        chance = random.Random(f"{metric.field} {pool.name} {kind}")  # noqa: S311
        rate = RATES.get(metric.field, RARE) * chance.uniform(0.5, 1.5)
        low, middle = 1 - self._unsteady, rate * INTERVAL
        total, counted = rate * 7200, []
        for _ in self.moments:
            total += middle * chance.uniform(low, 2 - low)
            counted.append(total)
        if suffix == "_bucket":
            # The greatest bound holds all.
            share = (1 - 0.7 ** (place + 1)) if place < len(metric.buckets) else 1.0
        elif suffix == "_sum":
            share = 0.05
        else:
            share = 1.0 if suffix else FALLING**place
        return [round(share * value, 3) for value in counted]


def _processes(jobs: tuple[Job, ...], scrapes: int) -> Iterator[Process]:
    number = 0
    for job in jobs:
        for i in range(job.processes + job.replaced):
            labels = {**job.labels, "instance": f"10.{len(job.labels)}.{i // 250}.{i % 250}:8000"}
            # One by one in the middle of the time, each of the first goes and another comes at the end of the list.
            moved = scrapes // 4 + i % job.processes * scrapes // 2 // max(job.replaced, 1)
            last = moved if i < job.replaced else scrapes
            first = moved if i >= job.processes else scrapes - job.young if job.young else 0
            written = ",".join(f'{key}="{value}"' for key, value in labels.items())
            yield Process(number, written, job.pools, first, last)
            number += 1


def _few(_pool: Pool, _labels: dict[str, str], chance: random.Random, _now: int) -> float:
    return max(0, chance.randint(-4, 3))


def _connections(pool: Pool, labels: dict[str, str], chance: random.Random, _now: int) -> float:
    most = {"checked_out": min(pool.most, 15), "idle": 5}.get(labels["state"], 1)
    return chance.randint(0, int(most))


def _next_deadline(pool: Pool, labels: dict[str, str], chance: random.Random, now: int) -> float:
    # Most are protected; for some nothing is there.
    none = chance.random() < (0.7 if labels["protected"] == "false" else 0.2)
    return inf if none else now + round(pool.idle_limit * chance.uniform(-0.01, 1), 3)


GAUGES: dict[str, Callable[[Pool, dict[str, str], random.Random, int], float]] = {
    "connections": _connections,
    "size": lambda pool, *_: min(pool.most, 10),
    "connections_limit": lambda pool, *_: pool.most,
    "recycle_seconds": lambda pool, *_: pool.recycle,
    "checkout_timeout_seconds": lambda *_: 30,
    "info": lambda *_: 1,
    "next_deadline_timestamp_seconds": _next_deadline,
    "oldest_connection_timestamp_seconds": lambda _pool, _labels, _chance, now: now - now % 86400,
    "longest_hold_timestamp_seconds": lambda _pool, _labels, chance, now: (
        inf if chance.random() < 0.2 else now - round(chance.expovariate(1), 3)
    ),
    "inactivity_limit_seconds": lambda pool, labels, *_: dict(pool.limits)[labels["source"]],
    "server_max_connections": lambda *_: 20000,
    "longest_survived_inactivity_seconds": lambda _pool, _labels, chance, _now: chance.randint(100, 300),
    "shortest_fatal_inactivity_seconds": lambda _pool, _labels, chance, _now: chance.randint(310, 400),
    "config_problem": lambda _pool, _labels, chance, _now: chance.randint(0, 1),
}
