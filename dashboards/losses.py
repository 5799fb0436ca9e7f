"""The row on lost connections: what ended them, who noticed, which limits were met, and what pre-ping costs."""

from model import (
    BARS,
    LEGEND_BESIDE,
    PLAIN,
    ZEROS_OUT_OF_LEGEND,
    Json,
    Panel,
    Query,
    Row,
    fixed,
    override,
)
from panels import A_MINUTE, LEGEND
from promql import FOUND_IN_TIME, POOL, idle_limit, mean, of, per_minute

CAUSES = {
    "inactivity": "orange",
    "killed": "red",
    "shutdown": "purple",
    "network": "blue",
    "unknown": "#8e8e8e",
}
COLOURS = (*(fixed(f"/^{cause} /", colour) for cause, colour in CAUSES.items()), ZEROS_OUT_OF_LEGEND)
BY_CAUSE = f"{{{{cause}}}} {LEGEND}"

FATAL = f"min by ({POOL}) ({of('shortest_fatal_inactivity_seconds')})"
SURVIVED = f"max by ({POOL}) ({of('longest_survived_inactivity_seconds')})"
KNOWN = f"min by ({POOL}) ({idle_limit()})"
# What a limit that nobody told us of explains, and nothing else does so well. None is as short as ten seconds; a KILL
# finds many a connection that has been idle for less.
HIDDEN = f"{FATAL} >= 10 unless {FATAL} <= {SURVIVED} unless {FATAL} > 0.9 * {KNOWN}"
COLUMNS = {
    "pool": "Pool",
    "Value #A": "Survived",
    "Value #B": "Fatal",
    "Value #C": "Hidden limit",
    "Value #D": "Known limit",
    "job": "Job",
}


def _lost(phases: str, legend: str) -> Query:
    return Query(expr=per_minute("disconnects_total", f"{POOL}, cause", phases), legend=legend)


def _limits() -> Panel:
    columns: Json = {
        "excludeByName": {"Time": True},
        "indexByName": {column: i for i, column in enumerate(COLUMNS)},
        "renameByName": COLUMNS,
    }
    return Panel(
        kind="table",
        title="Silence survived, and fatal",
        question=(
            "Is the known limit the real one? The longest silence after which a connection still"
            " worked, the shortest after which one was lost for no known reason, and the known"
            " limit. Hidden limit: fatal was longer than all that was survived and well below the"
            " known limit, so a load balancer, proxy or firewall in between may close connections"
            " after that time; inactivity_limit tells the library of it. A longer silence that is"
            " survived refutes it."
        ),
        # Not "6.58 mins": limits are known, and set, in seconds.
        unit="suffix:s",
        width=8,
        queries=tuple(Query(expr=expr, instant=True) for expr in (SURVIVED, FATAL, HIDDEN, KNOWN)),
        defaults={"noValue": "", "decimals": 0},
        custom={
            "align": "auto",
            "minWidth": 55,
            "cellOptions": {"type": "auto"},
            "filterable": False,
        },
        options={"sortBy": [{"displayName": "Hidden limit", "desc": True}]},
        overrides=(
            override("Pool", custom__width=80),
            override("Survived", custom__width=86),
            override("Fatal", custom__width=70),
            fixed("Hidden limit", "red", custom__cellOptions={"type": "color-text"}, custom__width=104),
            override("Known limit", custom__width=104),
        ),
        transformations=({"id": "merge", "options": {}}, {"id": "organize", "options": columns}),
    )


LOSSES = Row(
    title="Why are connections lost, and who notices?",
    height=6,
    panels=(
        Panel(
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
            queries=(_lost('phase="in_use"', BY_CAUSE), _lost('phase="ping_failed"', f"{BY_CAUSE} ping")),
            custom=BARS,
            options=LEGEND_BESIDE,
            overrides=COLOURS,
        ),
        Panel(
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
            queries=(_lost(FOUND_IN_TIME, BY_CAUSE),),
            custom=BARS,
            options=LEGEND_BESIDE,
            overrides=COLOURS,
        ),
        _limits(),
        Panel(
            kind="timeseries",
            title="What pre-ping costs",
            question=(
                "What does pool_pre_ping cost? Bars: pings, one for each checkout of a connection"
                " that lay in the pool. Lines, on the right: how long one takes on average, which"
                " every such caller waits."
            ),
            unit="suffix: /s",
            width=5,
            queries=(
                Query(
                    expr=f"sum by ({POOL}) (rate({of('pre_pings_total')}[$__rate_interval]))",
                    legend=f"{LEGEND} pings",
                ),
                Query(expr=mean("pre_ping_seconds_total", "pre_pings_total"), legend=f"{LEGEND} ping time"),
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
        ),
    ),
)
