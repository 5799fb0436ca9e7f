"""One line of what the metrics say."""

from __future__ import annotations

import time
import urllib.request
from math import inf
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from poolwatch.catalog import PREFIX
from poolwatch.labels import REPLACED

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

HEADER = """\
                      connections           next one   at risk     checkouts   user  reconnects
    time users    wait  out idle dead max   closes in  soon now   done failed errors  by reason"""

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


def line(metrics: Metrics, *, now: float, traffic: str, errors: int) -> str:
    """Return the line that stands under :data:`HEADER`.

    Args:
        metrics: What was scraped.
        now: The Unix time of the scrape.
        traffic: What the users are doing.
        errors: How many of their requests were answered with an error.
    """

    def connections(state: str) -> int:
        return metrics.sum("connections", state=state)

    def risk(name: str) -> int:
        return metrics.sum("timeout_risk_connections", risk=name)

    deadline = metrics.least("next_deadline_timestamp_seconds", protected="false")
    limit = metrics.least("inactivity_limit_seconds")
    closes = "-" if inf in (deadline, limit) else f"{max(deadline - now, 0):.0f} of {limit:.0f} s"
    counts = {reason: metrics.sum("reconnects_total", reason=reason) for reason in REPLACED}
    reconnects = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "0"
    return (
        f"{time.strftime('%H:%M:%S', time.localtime(now))} {traffic:<9}"
        f"{metrics.sum('pending_checkouts'):4d}"
        f"{connections('checked_out'):5d}{connections('idle'):5d}{connections('dead'):5d}"
        f"{metrics.sum('connections_limit'):4d}  {closes:>10}"
        f"{risk('soon'):6d}{risk('imminent') + risk('expired'):4d}"
        f"{metrics.sum('checkouts_total'):7d}{metrics.sum('checkout_failures_total'):7d}{errors:7d}  {reconnects}"
    )
