"""The row on processes: which one is unlike the others?"""

from generator.model import LEGEND_BESIDE, SHADED, Panel, Query, Row
from generator.promql import Promql, finite
from generator.rows.common import fullness_steps, who

# So many lines can be told apart.
LINES = 8


def row(q: Promql) -> Row:
    """Return the worst processes of the time shown, chosen once and not at each step."""
    return Row(
        title="Which process is the odd one out?",
        height=7,
        collapsed=True,
        panels=(_fullest(q), _waiting(q), _nearest(q)),
    )


def _fullest(q: Promql) -> Panel:
    def used(window: str) -> str:
        held, limit = q.of("connections", 'state="checked_out"'), q.of("connections_limit")
        if window:
            held, limit = (f"max_over_time({each}{window})" for each in (held, limit))
        return f"max by ({q.process}) ({held}) / max by ({q.process}) ({limit})"

    # The limit at the end too: ranked at each step among the processes of that moment, a roll-out would show them all.
    ranked = f"topk({LINES}, {used('[$__range] @ end()')})"
    return Panel(
        kind="timeseries",
        title="Fullest processes",
        question=(
            f"Is one process full while others are calm? The {LINES} that were fullest at some moment of the time"
            " shown. One alone: an unlucky share of the load, or a request that never ends."
        ),
        unit="percentunit",
        width=8,
        queries=(Query(expr=f"{used('')} and on ({q.process}) {ranked}", legend=who(q)),),
        steps=fullness_steps(q, "transparent"),
        custom=SHADED | {"axisSoftMax": 1},
        options=LEGEND_BESIDE,
    )


def _waiting(q: Promql) -> Panel:
    pending = q.of("pending_checkouts")
    ranked = f"topk({LINES}, max by ({q.process}) (max_over_time({pending}[$__range] @ end())) > 0)"
    return Panel(
        kind="timeseries",
        title="Processes with the most callers waiting",
        question=f"Where do callers queue? The {LINES} processes in which most waited at once.",
        unit="short",
        width=8,
        queries=(Query(expr=f"max by ({q.process}) ({pending}) and on ({q.process}) {ranked}", legend=who(q)),),
        defaults={"decimals": 0, "noValue": "nobody has waited"},
        custom={"axisSoftMax": 1},
        options=LEGEND_BESIDE,
    )


def _nearest(q: Promql) -> Panel:
    by = f"{q.process}, protected"
    deadline = q.of("next_deadline_timestamp_seconds", 'state="idle"')
    left = f"min by ({by}) ({finite(deadline)} - time())"
    ranked = f"min by ({by}) {finite(f'{deadline} @ end()')}"
    return Panel(
        kind="timeseries",
        title="Processes nearest to the idle limit",
        question=(
            f"Which process has the connection that is closed next? The {LINES} that are nearest now, and how they"
            " came there. A straight fall is a connection that nobody takes; unless it is protected, the next"
            " request that takes it after 0 fails."
        ),
        unit="s",
        width=8,
        queries=(
            Query(
                expr=f"{left} and on ({by}) bottomk({LINES}, {ranked})", legend=f"{who(q)} protected={{{{protected}}}}"
            ),
        ),
        options=LEGEND_BESIDE,
    )
