"""The row on one process: what does each of its connections do?"""

from generator.model import COLOURED, LEGEND_BESIDE, Panel, Query, Row, columns, dashed, override, thresholds
from generator.promql import IDLE_SOURCES, Promql, finite

# Above the limit of most pools; the newest of more are left out.
SLOTS = 25


def row(q: Promql) -> Row:
    """Return each connection of the process that is chosen as ``$detail``; it needs ``per_connection=True``."""
    return Row(
        title="What does each connection of $detail do? (only with per_connection=True)",
        height=9,
        collapsed=True,
        panels=(_silence(q), _table(q)),
    )


def _of(q: Promql, family: str, *matchers: str) -> str:
    return q.of(family, f'{q.options.instance}="$detail"', *matchers)


def _silence(q: Promql) -> Panel:
    by = f"{q.process}, slot"
    heard = _of(q, "connection_last_activity_timestamp_seconds")
    # Chosen once for the whole time shown: slots are numbered anew only when a connection is opened.
    latest = f"topk({SLOTS}, max by ({by}) (max_over_time({heard}[$__range] @ end())))"
    return Panel(
        kind="timeseries",
        title="Silence of each connection",
        question=(
            "Which connection climbs towards the red line? Seconds since the server last heard from it; at the"
            " dashed line it closes the connection. A saw-tooth is a connection in use. A line that climbs and never"
            " falls is one that nobody takes: the pool is larger than its traffic."
        ),
        unit="s",
        width=14,
        queries=(
            Query(expr=f"time() - max by ({by}) ({heard}) and on ({by}) {latest}", legend="{{pool}} #{{slot}}"),
            Query(
                expr=f"min by ({q.process}) ({finite(_of(q, 'inactivity_limit_seconds', IDLE_SOURCES))})",
                legend="{{pool}} limit",
            ),
        ),
        options=LEGEND_BESIDE,
        overrides=(dashed("/ limit$/", color={"mode": "fixed", "fixedColor": "red"}),),
    )


def _table(q: Promql) -> Panel:
    by = f"{q.process}, slot"
    left, silent, age = (
        f"max by ({by}) ({_of(q, f'connection_{what}_timestamp_seconds')})"
        for what in ("deadline", "last_activity", "created")
    )
    nearest = f"bottomk({SLOTS}, ({left} < +Inf) - time())"
    names = {
        "pool": "Pool",
        "slot": "Slot",
        "Value #A": "Closed in",
        "Value #B": "Silent for",
        "Value #C": "Age",
    }
    return Panel(
        kind="table",
        title="Each connection",
        question=(
            "How old is each connection, how long silent, and when does the server close it unless it is used"
            " before? The nearest come first; those without a limit come last."
        ),
        unit="s",
        width=10,
        queries=tuple(
            Query(expr=expr, instant=True)
            for expr in (nearest, f"bottomk({SLOTS}, time() - {silent})", f"bottomk({SLOTS}, time() - {age})")
        ),
        defaults={"noValue": "", "decimals": 0},
        options={"sortBy": [{"displayName": "Closed in", "desc": False}]},
        overrides=(
            override("Slot", unit="none", custom__width=60),
            override(
                "Closed in",
                thresholds=thresholds(((None, "red"), (0, "text"))),
                custom__cellOptions=COLOURED,
            ),
        ),
        transformations=columns(names, *(label for label in q.options.process if label != "pool")),
    )
