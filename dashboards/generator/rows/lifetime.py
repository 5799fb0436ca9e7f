"""The row on the life of connections: how old they get, and why they are opened and closed."""

from generator.model import BARS, LOGARITHMIC, ZEROS_OUT_OF_LEGEND, Panel, Query, Row, dashed
from generator.promql import Promql, finite
from generator.rows.common import A_MINUTE, percentiles


def row(q: Promql) -> Row:
    """Return what opens connections and what ends them."""
    return Row(
        title="How old do connections get, and why are they replaced?",
        height=7,
        collapsed=True,
        panels=(_age(q), _reconnects(q), _closes(q), _trouble(q), _connecting(q)),
    )


def _age(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Connection age",
        question=(
            "How old do connections get? The oldest open one, the age of those that were"
            " closed, and pool_recycle (dashed). Closed far below pool_recycle: something else"
            " ends them, see the reasons on the right."
        ),
        unit="s",
        width=5,
        queries=(
            Query(
                expr=f"max by ({q.pool}) ({q.age('oldest_connection_timestamp_seconds')})",
                legend=f"{q.legend} oldest",
            ),
            *percentiles(q, "connection_lifetime_seconds", 0.5, 0.95, suffix=" at close"),
            Query(
                expr=f"min by ({q.pool}) {finite(q.of('recycle_seconds'))}",
                legend=f"{q.legend} pool_recycle",
            ),
        ),
        custom=LOGARITHMIC,
        overrides=(dashed("/pool_recycle$/"),),
    )


def _reconnects(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Reconnects, by reason",
        question=(
            "Why are connections opened again? Bars: opened in place of one that was lost or"
            " retired; guard_dead and guard_deadline: the guard found it closed, or about to reach its"
            " limit. Dashed: all that were opened, first ones and overflow included."
        ),
        unit=A_MINUTE,
        width=5,
        queries=(
            Query(expr=q.per_minute("reconnects_total", "reason"), legend="{{reason}}"),
            Query(expr=q.per_minute("connects_total", ""), legend="all opened"),
        ),
        custom=BARS,
        overrides=(dashed("all opened"), ZEROS_OUT_OF_LEGEND),
    )


def _closes(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Closes, by reason",
        question=(
            "Why are connections closed? disconnect: a statement found it lost, so a user saw"
            " an error. pre_ping and guard_dead: found lost in time. guard_deadline: about to reach"
            " its limit. overflow: given back above pool_size; many of them mean that pool_size is"
            " too small."
        ),
        unit=A_MINUTE,
        width=5,
        queries=(Query(expr=q.per_minute("closes_total", "reason"), legend="{{reason}}"),),
        custom=BARS,
        overrides=(ZEROS_OUT_OF_LEGEND,),
    )


def _trouble(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Invalidations and errors",
        question=(
            "Are connections given up? hard: one connection, at once. soft: at its"
            " next checkout. pool: all others with it. connect failed: an attempt to open one. internal error: a"
            " fault of the exporter itself, kept from the application; should be 0."
        ),
        unit=A_MINUTE,
        width=5,
        queries=(
            Query(
                expr=q.per_minute("invalidations_total", f"{q.pool}, kind"),
                legend=f"{q.legend} {{{{kind}}}}",
            ),
            Query(expr=q.per_minute("connect_failures_total"), legend=f"{q.legend} connect failed"),
            Query(expr=q.per_minute("internal_errors_total"), legend=f"{q.legend} internal error"),
        ),
        custom=BARS,
        overrides=(ZEROS_OUT_OF_LEGEND,),
    )


def _connecting(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Time to open a connection",
        question=(
            "What does a new connection cost? TCP, TLS, login and what the application does when it connects."
            " Whoever finds no idle one waits for it. Not seen where the engine has a custom creator."
        ),
        unit="s",
        width=4,
        queries=percentiles(q, "connect_duration_seconds", 0.5, 0.99),
        custom=LOGARITHMIC,
    )
