"""The row on settings: how is each pool configured, and what is wrong with that?"""

from generator.model import COLOURED, Json, Panel, Query, Row, columns, override
from generator.promql import Promql, finite, idle_limit

ON_OFF: Json = {
    "type": "value",
    "options": {"true": {"text": "on", "color": "green"}, "false": {"text": "off", "color": "text"}},
}
WIDTHS = {
    "Pool": 90,
    "Processes": 90,
    "pool_size": 80,
    "Limit": 60,
    "pool_recycle": 100,
    "pool_timeout": 105,
    "Idle limit": 80,
    "Pre-ping": 80,
    "Guard": 65,
    "LIFO": 55,
    "Driver": 85,
    "Server": 140,
}
# Rows that can be read; narrow the choice above for others.
ROWS = 25


def row(q: Promql) -> Row:
    """Return the settings as they are, and the checks that fail."""
    return Row(
        title="How is each pool configured?",
        height=8,
        collapsed=True,
        panels=(_settings(q), _problems(q)),
    )


def _settings(q: Promql) -> Panel:
    facts = f"{q.pool}, server, driver, pre_ping, guard, lifo"
    names = {
        "pool": "Pool",
        "Value #A": "Processes",
        "Value #B": "pool_size",
        "Value #C": "Limit",
        "Value #D": "pool_recycle",
        "Value #E": "pool_timeout",
        "Value #F": "Idle limit",
        "pre_ping": "Pre-ping",
        "guard": "Guard",
        "lifo": "LIFO",
        "driver": "Driver",
        "server": "Server",
        "job": "Job",
    }
    processes = f"topk({ROWS}, count by ({facts}) ({q.of('info')}))"
    # The facts of a pool on the right of each number, so that one row holds both.
    facts_of = f"* on ({q.pool}) group_right () ({processes} > bool 0)"
    numbers = (
        f"max by ({q.pool}) ({finite(q.of('size'))})",
        f"max by ({q.pool}) ({finite(q.of('connections_limit'))})",
        f"min by ({q.pool}) ({finite(q.of('recycle_seconds'))})",
        f"min by ({q.pool}) ({finite(q.of('checkout_timeout_seconds'))})",
        f"min by ({q.pool}) ({idle_limit(q.of)})",
    )
    return Panel(
        kind="table",
        title="Settings",
        question=(
            "What is each pool set to, and what does its server allow? A pool in several rows: its processes are"
            " set up in different ways, as in the middle of a roll-out. Empty: off, without a limit, or unknown."
            " Limit: pool_size + max_overflow. Of several values, the largest size and the shortest time."
        ),
        unit="short",
        width=17,
        queries=tuple(
            Query(expr=expr, instant=True) for expr in (processes, *(f"{number} {facts_of}" for number in numbers))
        ),
        defaults={"noValue": "", "decimals": 0},
        options={"sortBy": [{"displayName": "Pool", "desc": False}]},
        overrides=(
            override("/^(pool_recycle|pool_timeout|Idle limit)$/", unit="suffix:s"),
            override("/^(Pre-ping|Guard|LIFO)$/", mappings=[ON_OFF], custom__cellOptions=COLOURED),
            *(override(column, custom__width=width) for column, width in WIDTHS.items()),
        ),
        transformations=columns(names),
    )


def _problems(q: Promql) -> Panel:
    names = {"check": "Check", "pool": "Pool", "Value": "Processes", "job": "Job"}
    failing = f"count by ({q.pool}, check) ({q.of('config_problem')} == 1)"
    return Panel(
        kind="table",
        title="Checks that fail",
        question=(
            "What is set up in a way that will fail some day, or costs for nothing? Each check and the number of"
            " processes in which it fails; the runbook says what to change."
        ),
        unit="short",
        width=7,
        queries=(Query(expr=f"topk({ROWS}, {failing})", instant=True),),
        steps=((None, "orange"),),
        defaults={"noValue": "none", "decimals": 0},
        options={"sortBy": [{"displayName": "Processes", "desc": True}]},
        overrides=(
            override("Processes", custom__cellOptions=COLOURED, custom__width=95),
            override("Check", custom__width=175),
        ),
        transformations=columns(names),
    )
