"""The row on lost connections: what ended them, who noticed, which limits were met, and what pre-ping costs."""

from generator.model import (
    BARS,
    COLOURED,
    LEGEND_BESIDE,
    PLAIN,
    ZEROS_OUT_OF_LEGEND,
    Panel,
    Query,
    Row,
    columns,
    fixed,
    override,
)
from generator.promql import FOUND_IN_TIME, Promql, hidden_limit, silences
from generator.rows.common import A_MINUTE

CAUSES = {
    "inactivity": "orange",
    "killed": "red",
    "shutdown": "purple",
    "network": "blue",
    "unknown": "#8e8e8e",
}
COLOURS = (*(fixed(f"/^{cause} /", colour) for cause, colour in CAUSES.items()), ZEROS_OUT_OF_LEGEND)

COLUMNS = {
    "pool": "Pool",
    "Value #A": "Survived",
    "Value #B": "Fatal",
    "Value #C": "Hidden limit",
    "Value #D": "Known limit",
    "job": "Job",
}


def row(q: Promql) -> Row:
    """Return what ended connections, who met that, which limits it points at, and what pre-ping pays."""
    return Row(
        title="Why are connections lost, and who notices?",
        height=7,
        collapsed=True,
        panels=(_met(q), _in_time(q), _limits(q), _pings(q)),
    )


def _lost(q: Promql, phases: str, suffix: str = "") -> Query:
    legend = f"{{{{cause}}}} {q.legend}{suffix}"
    return Query(expr=q.per_minute("disconnects_total", f"{q.pool}, cause", phases), legend=legend)


def _limits(q: Promql) -> Panel:
    survived, fatal, known = silences(q.of, q.pool)
    queries = (survived, fatal, hidden_limit(q.of, q.pool), known)
    return Panel(
        kind="table",
        title="Silence survived, and fatal",
        question=(
            "Is the known limit the real one? The longest silence after which a connection still"
            " worked, the shortest after which one was lost for no known reason, and the known"
            " limit. Hidden limit: fatal was longer than all that was survived and well below the"
            " known limit, so a load balancer, proxy or firewall in between may close connections"
            " after that time; inactivity_limit tells the library of it, and with guard=True they are"
            " replaced before. A longer silence that is survived refutes it."
        ),
        # Not "6.58 mins": limits are known, and set, in seconds.
        unit="suffix:s",
        width=8,
        queries=tuple(Query(expr=expr, instant=True) for expr in queries),
        defaults={"noValue": "", "decimals": 0},
        options={"sortBy": [{"displayName": "Hidden limit", "desc": True}]},
        overrides=(
            override("Pool", custom__width=80),
            override("Survived", custom__width=86),
            override("Fatal", custom__width=70),
            fixed("Hidden limit", "red", custom__cellOptions=COLOURED, custom__width=104),
            override("Known limit", custom__width=104),
        ),
        transformations=columns(COLUMNS),
    )


def _met(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Connections found lost, by users",
        question=(
            "Which losses did users meet, and what caused them? inactivity: silent for its"
            " limit. killed: closed while the server lived, by KILL or by something in between."
            " shutdown: the server went. network: reset, or broken off. unknown: the driver does"
            " not tell. A statement failed; or, where the legend ends in 'ping', pool_pre_ping"
            " met it and its own error reached the caller."
        ),
        unit=A_MINUTE,
        width=6,
        queries=(_lost(q, 'phase="in_use"'), _lost(q, 'phase="ping_failed"', " ping")),
        custom=BARS,
        options=LEGEND_BESIDE,
        overrides=COLOURS,
    )


def _in_time(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Connections found lost, in time",
        question=(
            "Which losses did nobody notice? Found by pre-ping or the guard and replaced before"
            " the connection was handed out, or found when it was given back, after the work was"
            " done. The causes are those on the left. Without protection, the next request would"
            " have failed."
        ),
        unit=A_MINUTE,
        width=5,
        queries=(_lost(q, FOUND_IN_TIME),),
        custom=BARS,
        options=LEGEND_BESIDE,
        overrides=COLOURS,
    )


def _pings(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="What pre-ping costs",
        question=(
            "What does pool_pre_ping cost? Bars: pings, one for each checkout of a connection"
            " that lay in the pool. Lines, on the right: how long one takes on average, which"
            " every such caller waits. The guard, watch(engine, guard=True), sends nothing."
        ),
        unit="suffix: /s",
        width=5,
        queries=(
            Query(
                expr=q.rate("pre_pings_total"),
                legend=f"{q.legend} pings",
            ),
            Query(expr=q.mean("pre_ping_seconds_total", "pre_pings_total"), legend=f"{q.legend} ping time"),
        ),
        custom=BARS | {"fillOpacity": 30},
        overrides=(
            override(
                "/ ping time$/",
                unit="s",
                custom__axisPlacement="right",
                custom__axisSoftMax=0.001,
                custom__drawStyle="line",
                custom__fillOpacity=0,
                custom__lineWidth=2,
                custom__stacking=PLAIN,
            ),
            ZEROS_OUT_OF_LEGEND,
        ),
    )
