"""The row on checkouts: do requests get a connection, and how fast?"""

from generator.model import BARS, LEGEND_BESIDE, LOGARITHMIC, ZEROS_OUT_OF_LEGEND, Panel, Query, Row, dashed, fixed
from generator.promql import MET, Promql
from generator.rows.common import A_MINUTE, percentiles

REASONS = {"timeout": "red", "connect": "purple", "other": "dark-red", "cancelled": "#8e8e8e", "lost": "orange"}


def row(q: Promql) -> Row:
    """Return what a request sees of the pool: whether, how fast."""
    return Row(
        title="Do requests get a connection, and how fast?",
        height=5,
        panels=(_failures(q), _duration(q)),
    )


def _failures(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Failed or queueing checkouts",
        question=(
            "Why do callers fail? timeout: the pool stayed full for pool_timeout. connect: the server refused or"
            " is unreachable. lost: the connection was gone, see the row on losses. cancelled: the caller gave up,"
            " no failure of the pool's. The dashed line counts checkouts that found the pool at its limit, whether"
            " or not they got a connection in the end."
        ),
        unit=A_MINUTE,
        width=12,
        queries=(
            Query(
                expr=q.per_minute("checkout_failures_total", f"{q.pool}, reason"),
                legend=f"{{{{reason}}}} {q.legend}",
            ),
            Query(expr=q.per_minute("disconnects_total", q.pool, MET), legend=f"lost {q.legend}"),
            Query(expr=q.per_minute("checkout_waits_total"), legend=f"found it full {q.legend}"),
        ),
        custom=BARS,
        options=LEGEND_BESIDE,
        overrides=(
            *(fixed(f"/^{reason} /", colour) for reason, colour in REASONS.items()),
            dashed("/^found it full /"),
            ZEROS_OUT_OF_LEGEND,
        ),
    )


def _duration(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Time to get a connection",
        question=(
            "How long do callers wait? From asking to having: queueing, connecting and"
            " pinging, timeouts included. A gap: nobody asked."
        ),
        unit="s",
        width=12,
        queries=percentiles(q, "checkout_duration_seconds", 0.5, 0.95, 0.99),
        custom=LOGARITHMIC,
        options=LEGEND_BESIDE,
    )
