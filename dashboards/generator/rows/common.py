"""What several rows draw alike."""

from generator.model import Json, Query, Steps
from generator.promql import Promql

A_MINUTE = "suffix:/min"
RUNNING_OUT: Steps = ((None, "red"), (0.1, "orange"), (0.25, "green"))
NAMED: Json = {"textMode": "value_and_name"}


def fullness_steps(q: Promql, least: str) -> Steps:
    """Return the thresholds of a pool's fullness; below them it is *least*."""
    orange, red = q.options.full
    return ((None, least), (orange, "orange"), (red, "red"))


def who(q: Promql) -> str:
    """Return the legend that names a process's pool."""
    return f"{{{{pool}}}} @ {{{{{q.options.instance}}}}}"


def percentiles(q: Promql, histogram: str, *shares: float, suffix: str = "") -> tuple[Query, ...]:
    """Return one query for each of *shares* (0.99 is p99) of *histogram*, a line for each pool."""
    return tuple(
        Query(expr=q.quantile(share, histogram), legend=f"{q.legend} p{share * 100:.0f}{suffix}") for share in shares
    )
