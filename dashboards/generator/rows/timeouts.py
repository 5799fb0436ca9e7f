"""The row on inactivity limits: what the server closes next, and what protects it."""

from generator.model import (
    COLOURED,
    LEGEND_BESIDE,
    LOGARITHMIC,
    SHADED,
    STACK,
    ZEROS_OUT_OF_LEGEND,
    Json,
    Panel,
    Query,
    Row,
    columns,
    dashed,
    fixed,
    override,
    thresholds,
)
from generator.options import UID
from generator.promql import Promql, finite, left, share_left
from generator.rows.common import RUNNING_OUT, percentiles

# From the worst class to the best: in a stack the first lies on the axis, where even one is seen.
RISKS = {
    "dead": "dark-red",
    "expired": "red",
    "imminent": "orange",
    "soon": "yellow",
    "unknown": "#8e8e8e",
    "dead, protected": "dark-purple",
    "protected": "blue",
    "safe": "green",
}


def row(q: Promql) -> Row:
    """Return which connections are closed next, how many are near, and how near real traffic lets them come."""
    return Row(
        title="Which connections will the server close next, and does anything protect them?",
        height=6,
        panels=(_table(q), _share(q), _risks(q), _idle(q)),
    )


def _in_class(q: Promql, risk: str) -> str:
    closed = q.protected_dead(by=q.pool)
    if risk == "dead, protected":
        return closed
    of_class = q.summed("timeout_risk_connections", q.pool, f'risk="{risk}"')
    return f"{of_class} - ({closed})" if risk == "protected" else of_class


def _table(q: Promql) -> Panel:
    # Of each kind, so that the many that something protects cannot hide the few that nothing does.
    nearest = f"bottomk by (state, protected) (3, min by ({q.next}) ({left(q.of)}))"
    shares = (
        f"min by ({q.next}) ({share_left(q.of, protected)}) and on ({q.next}) {nearest}"
        for protected in ('protected="false"', 'protected="true"')
    )
    held: Json = {"type": "value", "options": {"checked_out": {"text": "held"}, "idle": {"text": "idle"}}}
    names = {
        "Value #A": "Time left",
        "Value #B": "Unprotected",
        "Value #C": "Protected",
        "state": "State",
        "pool": "Pool",
        q.options.instance: "Process",
        "job": "Job",
    }
    return Panel(
        kind="table",
        title="Closed next by the server",
        question=(
            "Which connections does the server close next, and does anything protect them? The"
            " nearest to its limit in each process. The share of the limit that is left stands"
            " under Unprotected (the next request that takes it fails) or under Protected"
            " (pre-ping, recycling or the guard replaces it first). Below 0: the limit has passed."
            " A held connection is never protected and has no share: in a transaction, a shorter"
            " limit may apply."
        ),
        unit="s",
        width=9,
        queries=tuple(Query(expr=expr, instant=True) for expr in (nearest, *shares)),
        defaults={"noValue": ""},
        options={"sortBy": [{"displayName": "Time left", "desc": False}]},
        overrides=(
            override("Time left", decimals=0, custom__width=86),
            override(
                "Unprotected",
                unit="percentunit",
                decimals=0,
                thresholds=thresholds(RUNNING_OUT),
                custom__cellOptions=COLOURED,
                custom__width=104,
            ),
            fixed(
                "Protected",
                "blue",
                unit="percentunit",
                decimals=0,
                custom__cellOptions=COLOURED,
                custom__width=86,
            ),
            override("State", mappings=[held], custom__width=58),
            override("Pool", custom__width=75),
            override("Process", custom__width=155, links=[_detail(q)]),
        ),
        transformations=columns(names, "protected", *q.options.labels),
    )


def _detail(q: Promql) -> Json:
    """Return a link that leaves every other choice as it is."""
    kept = "&".join(f"${{{name}:queryparam}}" for name in ("datasource", *q.variables))
    url = f"/d/{UID}?var-detail=${{__value.raw}}&{kept}&${{__url_time_range}}"
    return {"title": "Each connection of this process", "url": url, "targetBlank": False}


def _share(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Share of the idle limit left",
        question=(
            "Is a pool drifting towards its limit? The idle connection nearest to it, as a share of the limit, so"
            " that 60 s and 8 h compare. A saw-tooth that turns above the shaded part is healthy. An unprotected"
            " line that falls through 0 means that the next request on it fails; protected ones may. Exact to one"
            " scrape: a busy connection seems to age for so long."
        ),
        unit="percentunit",
        width=5,
        queries=(
            Query(expr=q.least_share_left("false"), legend=f"{q.legend} unprotected"),
            Query(expr=q.least_share_left("true"), legend=f"{q.legend} protected"),
        ),
        steps=((None, "red"), (0.1, "orange"), (0.25, "transparent")),
        custom=SHADED | {"lineWidth": 2},
        defaults={"max": 1},
        overrides=(dashed("/ protected$/"),),
    )


def _risks(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Connections by timeout risk",
        question=(
            "How many are at risk? Every connection, idle or held, is in one class. safe: more than a quarter of"
            " its limit left, or no limit. protected: less, but it is replaced before anyone gets it. soon: a"
            " quarter or less. imminent: a tenth or less. expired: past the limit. dead: closed already, and the"
            " next request that gets it fails. dead, protected: closed, but replaced first. unknown: no limit read."
        ),
        unit="short",
        width=5,
        queries=tuple(Query(expr=_in_class(q, risk), legend=f"{risk} {q.legend}") for risk in RISKS),
        custom=STACK,
        options=LEGEND_BESIDE,
        defaults={"decimals": 0},
        overrides=(*(fixed(f"/^{risk} /", colour) for risk, colour in RISKS.items()), ZEROS_OUT_OF_LEGEND),
    )


def _idle(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Idle time at checkout, and limits",
        question=(
            "How close does real traffic come to the limit? How long connections had been idle when they were"
            " handed out, and, dashed, each limit by its source. When p99 comes near the line, an unprotected pool"
            " breaks in the next quiet hour."
        ),
        unit="s",
        width=5,
        queries=(
            *percentiles(q, "idle_duration_seconds", 0.99),
            Query(
                expr=f"min by ({q.pool}, source) {finite(q.of('inactivity_limit_seconds'))}",
                legend=f"{q.legend} {{{{source}}}}",
            ),
        ),
        custom=LOGARITHMIC,
        overrides=(dashed("/(_timeout|configured)$/"),),
    )
