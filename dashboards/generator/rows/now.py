"""The first row: does anyone hurt now?"""

from generator.model import Panel, Query, Row, override, thresholds
from generator.promql import AT_RISK, HELD_AT_RISK, IDLE, MET, UNPROTECTED_DEAD, Promql, fullness, left, share_left
from generator.rows.common import NAMED, RUNNING_OUT, fullness_steps, who

UNPROTECTED = 'protected="false"'
TWO = NAMED | {"orientation": "horizontal"}


def row(q: Promql) -> Row:
    """Return the numbers that somebody who was woken looks at first; the left ones are what users feel."""
    return Row(title="", height=3, panels=(*_felt(q), *_coming(q)))


def _felt(q: Promql) -> tuple[Panel, ...]:
    budget = 1 - q.options.objective
    return (
        Panel(
            kind="stat",
            title="Fail for want of a connection",
            question=(
                "Does anyone hurt? Share of the callers who got no connection (the pool stayed full, the server"
                " refused) or a lost one. Who gave up by himself does not count. Orange from what the objective"
                f" allows, {budget:.2%}, red from ten times that. The reasons are below."
            ),
            unit="percentunit",
            width=4,
            # For now only: over a range, the last share there was would stand there long after the last caller.
            queries=(Query(expr=f"({q.failed()}) / ({q.attempts()} > 0)", legend="failed", instant=True),),
            steps=((None, "green"), (round(budget, 9), "orange"), (round(10 * budget, 9), "red")),
            defaults={"noValue": "nobody asks"},
        ),
        Panel(
            kind="stat",
            title="Losses users met",
            question=(
                "Did anyone get a lost connection? Statements and checkouts that failed because the"
                " server or the network had closed the connection, in the time shown. When, why, and"
                " how many were found in time stands below."
            ),
            unit="short",
            width=3,
            queries=(Query(expr=q.increase("disconnects_total", "", MET), legend="met", instant=True),),
            steps=((None, "green"), (0.5, "red")),
            defaults={"decimals": 0},
        ),
        Panel(
            kind="stat",
            title="Callers waiting",
            question=(
                "Is anyone waiting? Callers inside pool.connect() at this moment: queueing,"
                " connecting or pinging. One for a moment is traffic; a number that stays is a full"
                " pool or a slow database."
            ),
            unit="short",
            width=3,
            queries=(Query(expr=q.summed("pending_checkouts"), legend="waiting", instant=True),),
            steps=((None, "green"), (1, "orange")),
            defaults={"noValue": "nobody reports"},
        ),
        Panel(
            kind="stat",
            title="Fullest process",
            question=(
                "How full is the fullest pool? Connections handed out, as a share of pool_size +"
                " max_overflow, in the process where it is highest. At 100% the next caller waits."
                " A pool without a limit counts as 0%."
            ),
            unit="percentunit",
            width=4,
            queries=(Query(expr=f"topk(1, max by ({q.process}) ({fullness(q.of)}))", legend=who(q), instant=True),),
            steps=fullness_steps(q, "green"),
            options=NAMED,
        ),
    )


def _coming(q: Promql) -> tuple[Panel, ...]:
    return (
        Panel(
            kind="stat",
            title="Next unprotected close in",
            question=(
                "When will the server close an idle connection that nothing replaces first? Time"
                " left, and what that is of the limit. Below 0: the limit has passed; 0: it has closed"
                " one already. The next request that gets it fails. 'no deadline': nothing idle is"
                " unprotected, or no limit is known."
            ),
            unit="s",
            width=4,
            queries=(
                Query(expr=f"min({left(q.of, IDLE, UNPROTECTED)} or {q.closed()})", legend="left", instant=True),
                Query(
                    expr=f"min({share_left(q.of, UNPROTECTED)} or {q.closed()})", legend="of the limit", instant=True
                ),
            ),
            defaults={"noValue": "no deadline", "decimals": 0},
            options=TWO,
            overrides=(override("of the limit", unit="percentunit", thresholds=thresholds(RUNNING_OUT)),),
        ),
        Panel(
            kind="stat",
            title="Near the limit, or dead",
            question=(
                "How many connections will fail the next one to use them? idle: less than 10% of the inactivity limit"
                " left, or past it, and nothing replaces them first. dead: closed already, the next request that gets"
                " one fails. held: a caller keeps one without using it, and its next statement fails; only a shorter"
                " hold helps. Alerts count the first two."
            ),
            unit="short",
            width=6,
            queries=(
                Query(expr=q.summed("timeout_risk_connections", "", AT_RISK), legend="idle", instant=True),
                Query(expr=q.summed("timeout_risk_connections", "", UNPROTECTED_DEAD), legend="dead", instant=True),
                Query(expr=q.summed("timeout_risk_connections", "", HELD_AT_RISK), legend="held", instant=True),
            ),
            steps=((None, "green"), (1, "red")),
            options=NAMED,
            overrides=(override("held", thresholds=thresholds(((None, "green"), (1, "orange")))),),
        ),
    )
