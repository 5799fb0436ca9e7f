"""The row on routes: which of them has the connections."""

from generator.model import BARS, LEGEND_BESIDE, STACK, ZEROS_OUT_OF_LEGEND, Panel, Query, Row, columns, override
from generator.promql import Promql
from generator.rows.common import A_MINUTE

BY = "method, route"
LEGEND = "{{method}} {{route}} {{job}}"
# So many lines can be told apart, and so many rows read.
LINES, ROWS = 6, 20


def row(q: Promql) -> Row:
    """Return who uses the connections, for those who write the routes."""
    return Row(
        title="Which routes have the connections, and who keeps them?",
        height=8,
        collapsed=True,
        panels=(_table(q), _unreturned(q), _traffic(q)),
    )


def job_routes(q: Promql) -> str:
    """Return the labels that name a route of a job's."""
    return ", ".join((*q.options.labels, "job", BY))


def held(q: Promql, title: str, lines: int, width: int) -> Panel:
    """Return the panel that names the routes which hold the most, chosen once for the whole time shown."""
    by = job_routes(q)
    rate = q.rate("route_hold_seconds_total", by)
    # Ranked at each step of the graph instead, the lines would come and go.
    ranked = f"topk({lines}, {q.increase('route_hold_seconds_total', by, at=' @ end()')})"
    return Panel(
        kind="timeseries",
        title=title,
        question=(
            "Who has the pool? Connections that each route holds on average, those of hanging requests included."
            " The widest band is what fills it. none: outside of any request. unmatched: a request that no route"
            f" took. The {lines} that held the most in the time shown; the rest are in the row on routes."
        ),
        unit="short",
        width=width,
        queries=(Query(expr=f"{rate} and on ({by}) {ranked}", legend=LEGEND),),
        custom=STACK,
        options=LEGEND_BESIDE,
        defaults={"noValue": "no request used a pool"},
        overrides=(ZEROS_OUT_OF_LEGEND,),
    )


def _table(q: Promql) -> Panel:
    seconds, checkouts = (
        q.increase(family, f"{q.pool}, {BY}") for family in ("route_hold_seconds_total", "route_checkouts_total")
    )
    top = f"topk({ROWS}, {seconds})"
    here = f"on ({q.pool}, {BY})"
    names = {
        "method": "Method",
        "route": "Route",
        "Value #A": "Held",
        "Value #B": "Checkouts",
        "Value #C": "Each for",
        "pool": "Pool",
        "job": "Job",
    }
    return Panel(
        kind="table",
        title="Routes that hold the most",
        question=(
            "Which route has the pool? Over the time shown. Held: connections that it holds on average. Each for:"
            " how long it keeps one. Much of it for few checkouts: it does something else meanwhile. Many short"
            " ones: a session for each query."
        ),
        unit="short",
        width=14,
        queries=(
            Query(expr=f"{top} / $__range_s", instant=True),
            Query(expr=f"{checkouts} and {here} {top}", instant=True),
            Query(expr=f"{top} / {here} ({checkouts} > 0)", instant=True),
        ),
        defaults={"noValue": "", "decimals": 2},
        options={"sortBy": [{"displayName": "Held", "desc": True}]},
        overrides=(
            override("Method", custom__width=90),
            override("Held", custom__width=90),
            override("Checkouts", unit="none", decimals=0, custom__width=100),
            override("Each for", unit="s", custom__width=90),
            override("Pool", custom__width=110),
            override("Job", custom__width=110),
        ),
        transformations=columns(names),
    )


def _unreturned(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Not given back",
        question=(
            "Who does not give back? unreturned: its request had wholly ended, background tasks too, and the"
            " connection was still out; the log names the route. leaked: nobody held it any more, and the garbage"
            " collector found it. Both drain the pool."
        ),
        unit=A_MINUTE,
        width=5,
        queries=(
            Query(expr=q.per_minute("unreturned_total"), legend=f"{q.legend} unreturned"),
            Query(expr=q.per_minute("leaks_total"), legend=f"{q.legend} leaked"),
        ),
        custom=BARS,
        overrides=(ZEROS_OUT_OF_LEGEND,),
    )


def _traffic(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Checkouts",
        question=(
            "How much is asked of the pools? Connections handed out. Many more than requests: several sessions in"
            " a request, or one for each query."
        ),
        unit="suffix: /s",
        width=5,
        queries=(Query(expr=q.rate("checkouts_total"), legend=q.legend),),
    )
