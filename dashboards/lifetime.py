"""The row on the life of connections: how old they get, and why they are opened and closed."""

from model import BARS, LEGEND_BESIDE, LOGARITHMIC, ZEROS_OUT_OF_LEGEND, Panel, Query, Row, dashed
from panels import A_MINUTE, LEGEND, percentiles
from promql import POOL, age, finite, of, per_minute

BY_REASON = f"{LEGEND} {{{{reason}}}}"

LIFETIME = Row(
    title="How old do connections get, and why are they replaced?",
    height=5,
    panels=(
        Panel(
            kind="timeseries",
            title="Connection age",
            question=(
                "How old do connections get? The oldest open one, the age of those that were"
                " closed, and pool_recycle (dashed). Closed far below pool_recycle: something else"
                " ends them, see the reasons on the right."
            ),
            unit="s",
            width=6,
            queries=(
                Query(
                    expr=f"max by ({POOL}) ({age('oldest_connection_timestamp_seconds')})",
                    legend=f"{LEGEND} oldest",
                ),
                *percentiles("connection_lifetime_seconds", 0.5, 0.95, suffix=" at close"),
                Query(
                    expr=f"min by ({POOL}) {finite(of('recycle_seconds'))}",
                    legend=f"{LEGEND} pool_recycle",
                ),
            ),
            custom=LOGARITHMIC,
            options=LEGEND_BESIDE,
            overrides=(dashed("/pool_recycle$/"),),
        ),
        Panel(
            kind="timeseries",
            title="Reconnects, by reason",
            question=(
                "Why are connections opened again? Bars: opened in place of one that was lost or"
                " retired. Dashed: all that were opened, first ones and overflow included."
            ),
            unit=A_MINUTE,
            width=6,
            queries=(
                Query(expr=per_minute("reconnects_total", f"{POOL}, reason"), legend=BY_REASON),
                Query(expr=per_minute("connects_total"), legend=f"{LEGEND} all opened"),
            ),
            custom=BARS,
            overrides=(dashed("/all opened$/"), ZEROS_OUT_OF_LEGEND),
        ),
        Panel(
            kind="timeseries",
            title="Closes, by reason",
            question=(
                "Why are connections closed? disconnect: a statement found it lost, so a user saw"
                " an error. pre_ping and guard: found in time. overflow: given back above"
                " pool_size; many of them mean that pool_size is too small."
            ),
            unit=A_MINUTE,
            width=6,
            queries=(Query(expr=per_minute("closes_total", f"{POOL}, reason"), legend=BY_REASON),),
            custom=BARS,
            overrides=(ZEROS_OUT_OF_LEGEND,),
        ),
        Panel(
            kind="timeseries",
            title="Invalidations, leaks, errors",
            question=(
                "Are connections given up or lost? hard: one connection, at once. soft: at its"
                " next checkout. pool: all others with it. leaked: never given back, found by the"
                " garbage collector. connect failed: an attempt to open one. internal error: a"
                " fault of the exporter itself, kept from the application; should be 0."
            ),
            unit=A_MINUTE,
            width=6,
            queries=(
                Query(
                    expr=per_minute("invalidations_total", f"{POOL}, kind"),
                    legend=f"{LEGEND} {{{{kind}}}}",
                ),
                Query(expr=per_minute("leaks_total"), legend=f"{LEGEND} leaked"),
                Query(expr=per_minute("connect_failures_total"), legend=f"{LEGEND} connect failed"),
                Query(expr=per_minute("internal_errors_total"), legend=f"{LEGEND} internal error"),
            ),
            custom=BARS,
            overrides=(ZEROS_OUT_OF_LEGEND,),
        ),
    ),
)
