"""The row on servers: do all pools together fit into what they accept?"""

from generator.model import COLOURED, LEGEND_BESIDE, Panel, Query, Row, columns, dashed, override, thresholds
from generator.promql import SERVER_LIMIT, SERVER_MAXIMUM, SERVER_OPEN, Promql, server_of, servers


def row(q: Promql) -> Row:
    """Return what each server has open and may get, over all jobs that use it."""
    return Row(
        title="Does the fleet fit into the database?",
        height=8,
        collapsed=True,
        panels=(_servers(q), _shares(q), _reporting(q)),
    )


def _expressions(q: Promql) -> tuple[str, str, str]:
    """Return what is open, what is possible and what is accepted, for each server."""
    if q.options.recorded:
        records = (SERVER_OPEN, SERVER_LIMIT, SERVER_MAXIMUM)
        open_, possible, accepted = (f"max by ({q.options.by_server}) ({q.at(record)})" for record in records)
        return open_, possible, accepted
    return servers(q.of, q.options, server_of(q.options, *q.chosen))


def _servers(q: Promql) -> Panel:
    letters = ("open", "possible", "max_connections")
    where = "".join(f" {{{{{label}}}}}" for label in q.options.server_labels)
    return Panel(
        kind="timeseries",
        title="Connections of each server",
        question=(
            "How near is a server to its max_connections? open: held by the chosen pools. possible: if every"
            " process filled its pools; those without a limit are left out. Choose all jobs, since all of them share"
            " the server. Other clients of it are not counted. Past the dashed line it refuses: 1040, or 53300."
        ),
        unit="short",
        width=10,
        queries=tuple(
            Query(expr=expr, legend=f"{{{{server}}}} {letter}{where}")
            for expr, letter in zip(_expressions(q), letters, strict=True)
        ),
        options=LEGEND_BESIDE,
        defaults={"decimals": 0},
        overrides=(dashed("/ max_connections\\b/"),),
    )


def _shares(q: Promql) -> Panel:
    open_, possible, accepted = _expressions(q)
    steps = ((None, "green"), (0.8 * q.options.server_full, "orange"), (q.options.server_full, "red"))
    names = {
        "server": "Server",
        "Value #A": "Open",
        "Value #B": "Possible",
        "Value #C": "Accepts",
        **{label: label.capitalize() for label in q.options.server_labels},
    }
    return Panel(
        kind="table",
        title="Share of max_connections",
        question=(
            "Which server is nearest to refusing? Open and possible connections as a share of max_connections."
            " Possible above 100%: it fits only as long as not everything is busy at once."
        ),
        unit="percentunit",
        width=8,
        queries=tuple(
            Query(expr=expr, instant=True)
            for expr in (f"{open_} / ({accepted})", f"{possible} / ({accepted})", accepted)
        ),
        steps=steps,
        defaults={"noValue": "unknown", "decimals": 0},
        options={"sortBy": [{"displayName": "Open", "desc": True}]},
        overrides=(
            override("Open", custom__cellOptions=COLOURED, custom__width=80),
            override(
                "Possible",
                custom__cellOptions=COLOURED,
                custom__width=90,
                thresholds=thresholds(((None, "text"), (1.0000001, "orange"))),
            ),
            override("Accepts", unit="none", custom__width=90),
        ),
        transformations=columns(names),
    )


def _reporting(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Processes that report",
        question=(
            "How many processes have each pool? A drop is a roll-out, a crash, or a scrape that fails; whoever"
            " does not report is in no other panel."
        ),
        unit="short",
        width=6,
        queries=(Query(expr=f"count by (job, pool) ({q.of('size')})", legend=q.legend),),
        defaults={"decimals": 0},
    )
