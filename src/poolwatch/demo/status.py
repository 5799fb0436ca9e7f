"""What the metrics say of the pools, side by side, and what has just happened to them."""

from __future__ import annotations

import time
import urllib.request
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from poolwatch.catalog import PREFIX
from poolwatch.demo.traffic import POOLS
from poolwatch.labels import REPLACED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.samples import Sample

    from poolwatch.demo.traffic import Tally

_GUARD = "guard_"

_LEFT = "    time users    "
_WIDTH = 43
_ABOVE = f"{'connections':>14}{'next':>8}{'user errors':>12}"
_COLUMNS = f"{'out':>4}{'idle':>5}{'dead':>5}{'closes':>8}{'lost':>7}{'busy':>5}{'replaced':>9}"
HEADER = "\n".join(
    " |".join(parts).rstrip()
    for parts in (
        (" " * len(_LEFT), *(f" {f'{name.upper()} ':-<{_WIDTH - 1}}" for name in POOLS)),
        (" " * len(_LEFT), *(f"{_ABOVE:<{_WIDTH}}" for _ in POOLS)),
        (_LEFT, *(_COLUMNS for _ in POOLS)),
    )
)

# What is on this machine is not asked for through a proxy.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def scrape(url: str) -> str:
    """Return the text at *url*; raises OSError if there is none to be had."""
    with _direct.open(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


class Metrics:
    """The samples of one scrape, whose *text* is Prometheus's."""

    def __init__(self, text: str) -> None:
        self._samples = [each for family in text_string_to_metric_families(text) for each in family.samples]

    def _matching(self, name: str, labels: dict[str, str]) -> list[Sample]:
        wanted = labels.items()
        return [each for each in self._samples if each.name == PREFIX + name and wanted <= each.labels.items()]

    def sum(self, name: str, **labels: str) -> int:
        """Add up the series of the family *name*, without its prefix, that have these *labels*."""
        return int(sum(each.value for each in self._matching(name, labels)))

    def least(self, name: str, **labels: str) -> float:
        """Return the smallest value of those series; ``inf`` if there is none."""
        return min((each.value for each in self._matching(name, labels)), default=inf)


@dataclass(frozen=True)
class Standing:
    """How one pool and its users stand.

    Attributes:
        out: Connections handed out.
        idle: Connections in the pool that are open.
        dead: Those that the server has closed.
        left: Seconds until the server closes the next one; ``inf`` where that is unknown or never.
        limit: Of how many seconds; ``inf`` likewise.
        users: What the users have got.
        replaced: Connections established in place of others, by reason; reasons without one are left out.
    """

    out: int
    idle: int
    dead: int
    left: float
    limit: float
    users: Tally
    replaced: Mapping[str, int]

    @property
    def by_guard(self) -> int:
        """How many the guard had replaced."""
        return sum(count for reason, count in self.replaced.items() if reason.startswith(_GUARD))


def standing(metrics: Metrics, pool: str, users: Tally, *, now: float) -> Standing:
    """Return how *pool* stands, from what was scraped at the Unix time *now* and what its *users* have got."""

    def connections(state: str) -> int:
        return metrics.sum("connections", pool=pool, state=state)

    counts = {reason: metrics.sum("reconnects_total", pool=pool, reason=reason) for reason in REPLACED}
    return Standing(
        out=connections("checked_out"),
        idle=connections("idle") + connections("condemned"),
        dead=connections("dead"),
        left=max(metrics.least("next_deadline_timestamp_seconds", pool=pool) - now, 0.0),
        limit=metrics.least("inactivity_limit_seconds", pool=pool),
        users=replace(users),
        replaced={reason: count for reason, count in counts.items() if count},
    )


def line(pools: Iterable[Standing], *, now: float, traffic: str) -> str:
    """Return the line that stands under :data:`HEADER`.

    Args:
        pools: How they stand, in the header's order.
        now: The Unix time of that.
        traffic: What the users are doing.
    """
    parts = [
        f"{each.out:4d}{each.idle:5d}{each.dead:5d}{_closes(each):>8}"
        f"{each.users.lost:7d}{each.users.busy:5d}{sum(each.replaced.values()):9d}"
        for each in pools
    ]
    return " |".join((f"{time.strftime('%H:%M:%S', time.localtime(now))} {traffic:<9}", *parts))


def _closes(pool: Standing) -> str:
    if inf in (pool.left, pool.limit):
        return "-"
    if pool.limit < 1000:  # noqa: PLR2004
        return f"{pool.left:.0f}/{pool.limit:.0f}s"
    return f"{pool.left / 3600:.1f}/{pool.limit / 3600:.3g}h"


def news(name: str, before: Standing, after: Standing) -> list[str]:
    """Return lines that say what has happened to the pool *name*; none if nothing has."""
    told = []
    lost = after.users.lost - before.users.lost
    if lost:
        told.append(f"{_count(lost, 'user')} got: {after.users.error}")
    other = after.users.other - before.users.other
    if other:
        told.append(f"{_count(other, 'user')} got another error: {after.users.error}")
    fresh = {reason: count - before.replaced.get(reason, 0) for reason, count in after.replaced.items()}
    for guard, how in ((True, "replaced before a user met them, nothing was sent to find out"), (False, "replaced")):
        reasons = [f"{count} {why}" for why, count in fresh.items() if count and why.startswith(_GUARD) == guard]
        if reasons:
            told.append(f"{how}: {', '.join(reasons)}")
    return [f"{' ' * 9}{name}: {each}" for each in told]


def summary(name: str, pool: Standing) -> str:
    """Return in a line what the users of the pool *name* have got in the end."""
    users = pool.users
    other = f", {users.other} another error" if users.other else ""
    guard = f", {pool.by_guard} by the guard" if pool.by_guard else ""
    return (
        f"  {name:<8} {users.requests:5d} requests: {users.lost} lost their connection, {users.busy} found none free"
        f"{other}; {_count(sum(pool.replaced.values()), 'connection')} replaced{guard}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
