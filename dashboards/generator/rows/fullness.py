"""The row on the pool's limit: is it full, and who has it?"""

from generator.model import LEGEND_BESIDE, LOGARITHMIC, SHADED, STACK, Panel, Query, Row, dashed, fixed
from generator.promql import Promql
from generator.rows.common import fullness_steps, percentiles
from generator.rows.routes import held

STATES = {"checked_out": "blue", "dead": "red", "condemned": "purple", "idle": "green"}


def row(q: Promql) -> Row:
    """Return how full the pools are, for how long connections are held, and by which routes."""
    return Row(
        title="Is the pool full, and who has it?",
        height=5,
        panels=(_share(q), _connections(q), _hold(q), held(q, "Who has the connections", 6, 7)),
    )


def _share(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Fullest process, by pool",
        question=(
            "Which pool is full, in the process where it is fullest? An average over processes"
            " would hide the one whose callers wait."
        ),
        unit="percentunit",
        width=4,
        queries=(Query(expr=q.fullest(), legend=q.legend),),
        steps=fullness_steps(q, "transparent"),
        custom=SHADED | {"axisSoftMax": 1},
    )


def _connections(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Connections, against the limit",
        question=(
            "How full is the pool? All connections of the chosen pools by state. condemned:"
            " the next checkout replaces it. dead: the server has closed it. Dashed: pool_size,"
            " and pool_size + max_overflow, without pools that have no limit; and who waits: counted when scraped,"
            " so what is short is seen by chance."
        ),
        unit="short",
        width=7,
        queries=(
            *(
                Query(expr=q.summed("connections", "", f'state="{state}"'), legend=state.replace("_", " "))
                for state in STATES
            ),
            Query(expr=q.summed("size"), legend="pool_size"),
            Query(expr=q.summed("connections_limit"), legend="limit"),
            Query(expr=q.summed("pending_checkouts"), legend="callers waiting"),
        ),
        custom=STACK,
        options=LEGEND_BESIDE,
        defaults={"decimals": 0},
        overrides=(
            *(fixed(state.replace("_", " "), colour) for state, colour in STATES.items()),
            dashed("pool_size", color={"mode": "fixed", "fixedColor": "text"}),
            dashed("limit", color={"mode": "fixed", "fixedColor": "red"}),
            dashed("callers waiting", color={"mode": "fixed", "fixedColor": "orange"}),
        ),
    )


def _hold(q: Promql) -> Panel:
    return Panel(
        kind="timeseries",
        title="Time a connection is held",
        question=(
            "For how long is a connection out? Those that were given back, and (dashed) the one that is out the"
            " longest now. Rising: slow queries, locks, or other work done meanwhile; it fills a pool without more"
            " traffic."
        ),
        unit="s",
        width=6,
        queries=(
            *percentiles(q, "hold_duration_seconds", 0.5, 0.95),
            Query(
                expr=f"max by ({q.pool}) ({q.age('longest_hold_timestamp_seconds')})",
                legend=f"{q.legend} out now",
            ),
        ),
        custom=LOGARITHMIC,
        options=LEGEND_BESIDE,
        overrides=(dashed("/ out now$/"),),
    )
