"""The row on routes in detail, for those who have asked for these families."""

from generator.model import BARS, LEGEND_BESIDE, STACK, ZEROS_OUT_OF_LEGEND, Panel, Query, Row
from generator.promql import WINDOW, Promql
from generator.rows.common import A_MINUTE
from generator.rows.routes import LEGEND, LINES, job_routes


def row(q: Promql) -> Row:
    """Return what routes hold at this moment, wait for and keep; it needs ``route_details=True``."""
    return Row(
        title="Which routes wait, and which do not give back? (only with route_details=True)",
        height=8,
        collapsed=True,
        panels=(_held(q), _waited(q), _kept(q)),
    )


def _held(q: Promql) -> Panel:
    held = q.of("route_connections")
    return _stacked(
        q,
        "Connections held now, by route",
        "Who has them at this moment? Unlike the mean above it shows a peak as high as it was when Prometheus looked."
        f" The {LINES} routes that held most in the time shown.",
        held,
        f"max_over_time({held}[$__range] @ end())",
    )


def _waited(q: Promql) -> Panel:
    waited = q.of("route_checkout_seconds_total")
    return _stacked(
        q,
        "Requests waiting, by route",
        "Who suffers? Requests of each route that wait for a connection, on average: queueing, connecting and pinging,"
        " those that gave up at pool_timeout included. A wait counts when it ends."
        f" The {LINES} routes that waited most in the time shown.",
        f"rate({waited}[{WINDOW}])",
        f"increase({waited}[$__range] @ end())",
    )


def _stacked(q: Promql, title: str, question: str, shown: str, ranked: str) -> Panel:
    """Return a panel of what is *shown* of the routes with the greatest *ranked*, chosen once for the whole time."""
    by = job_routes(q)
    first = f"on ({by}) topk({LINES}, sum by ({by}) ({ranked}))"
    return Panel(
        kind="timeseries",
        title=title,
        question=question,
        unit="short",
        width=9,
        queries=(Query(expr=f"sum by ({by}) ({shown}) and {first}", legend=LEGEND),),
        custom=STACK,
        options=LEGEND_BESIDE,
        overrides=(ZEROS_OUT_OF_LEGEND,),
    )


def _kept(q: Promql) -> Panel:
    kept = q.of("route_unreturned_total")
    return Panel(
        kind="timeseries",
        title="Not given back, by route",
        question=(
            "Whose code keeps connections? Still out when the request had wholly ended, background tasks too. With"
            " trace_checkouts=True the log says where in the code each was checked out."
        ),
        unit=A_MINUTE,
        width=6,
        queries=(Query(expr=f"60 * sum by ({job_routes(q)}) (rate({kept}[{WINDOW}])) > 0", legend=LEGEND),),
        custom=BARS,
        defaults={"noValue": "none"},
        overrides=(ZEROS_OUT_OF_LEGEND,),
    )
