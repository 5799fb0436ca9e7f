"""The alerts on connections that the server is about to close, has closed, or closed under somebody's hands."""

from generator.options import Options
from generator.promql import (
    AT_RISK,
    MET,
    UNEXPLAINED,
    UNPROTECTED_DEAD,
    hidden_limit,
    series,
)
from generator.rules.model import Alert
from generator.rules.remedies import AT_CHECKOUT, remedy


def alerts(options: Options) -> tuple[Alert, ...]:
    """Return those on what is coming."""
    return (_near(options), _dead(options))


def losses(options: Options) -> tuple[Alert, ...]:
    """Return those on what has happened again and again, which read a day of every process's counters."""
    return (_disconnects(options), _hidden(options))


def _near(options: Options) -> Alert:
    by = options.by_pool
    return Alert(
        title="SQLAlchemyPoolConnectionsNearServerTimeout",
        comment=(
            "With a limit of 60 s a connection is in the last tenth for 6 s, less than one scrape,"
            " and the next request ends it: a `for` would never be over. So the worst moment of the"
            " last 15 minutes counts. The step of 15 s sees every sample at that scrape interval or"
            " a longer one; without it the step would be the evaluation interval. The sum is"
            " inside: at one moment a connection is in one class, over time it passes through"
            " several. Idle connections only: no pool setting helps a held one, and one that is"
            " busy with a long statement looks silent too. Dead ones have an alert of their own."
        ),
        expr=(f"max_over_time(\n  sum by ({by}) ({series('timeout_risk_connections', AT_RISK)})[15m:15s]\n) > 0"),
        severity="warning",
        summary=("The server is about to close idle connections of pool {{ $labels.pool }} of {{ $labels.job }}."),
        description=(
            "In the last 15 minutes, up to {{ $value }} idle connection(s) of pool {{ $labels.pool"
            " }} of {{ $labels.job }} at once had less than 10% of their inactivity limit left, or"
            " were past it, and nothing replaces such a connection before a request gets it: once it"
            f" is closed, that request fails. Turn on {AT_CHECKOUT} or set pool_recycle below the"
            " limit."
        ),
    )


def _dead(options: Options) -> Alert:
    by = options.by_pool
    return Alert(
        title="SQLAlchemyPoolDeadConnections",
        comment=(
            "After a restart of the server, or a failover, every pool holds dead connections until its"
            " next request, which condemns them all: where requests come all the time, that is over"
            " within seconds and has no place here. Where they do not, somebody can still act before"
            " the next one. What is dead for less, again and again, is met by users: see below."
        ),
        expr=f"sum by ({by}) ({series('timeout_risk_connections', UNPROTECTED_DEAD)}) > 0",
        lasting="2m",
        severity="warning",
        summary=(
            "Dead connections lie in pool {{ $labels.pool }} of {{ $labels.job }}: the next request"
            " that gets one fails."
        ),
        description=(
            "{{ $value }} idle connection(s) of pool {{ $labels.pool }} of {{ $labels.job }} have been"
            " closed by the server or the network, and nothing replaces them before a request gets"
            " one. engine.dispose() in the process, or its restart, empties the pool now;"
            f" {AT_CHECKOUT} finds such connections in time from then on."
        ),
    )


def _met_again(options: Options) -> str:
    by = f"{options.by_pool}, cause, phase"
    at_once = series("disconnects_total", 'cause="inactivity"', MET)
    others = series("disconnects_total", 'cause!="inactivity"', MET)
    again = [
        f"    max by ({by}) (\n      changes({others}[{window}])\n      - resets({others}[{window}])\n    ) >= 3"
        for window in ("1h:5m", "1d:1h")
    ]
    return (
        f"sum by ({by}) (increase({at_once}[2h])) > 0\n"
        "or\n"
        f"  sum by ({by}) (increase({others}[2h])) > 0\n"
        "  and (\n" + "\n    or\n".join(again) + "\n  )"
    )


def _disconnects(options: Options) -> Alert:
    return Alert(
        title="SQLAlchemyPoolDisconnectErrors",
        comment=(
            "Inactivity comes back with the next quiet hour: once is enough. Everything else also happens"
            " once, in a restart, a failover or a KILL, and is over then. In one process that is one burst,"
            " in two stretches of time at the most, while other processes, with less to do, may meet"
            " theirs hours later. So what counts is one process that meets losses in three stretches of"
            " five minutes within an hour or, where requests are few, in three different hours of a day,"
            " the last of them a short while ago. changes() between the steps of a subquery counts"
            " stretches, not losses; resets() takes off a counter that began anew with its process."
        ),
        expr=_met_again(options),
        severity="warning",
        summary=(
            "Requests meet lost connections of pool {{ $labels.pool }} of {{ $labels.job }} (cause: {{"
            " $labels.cause }})."
        ),
        description=(
            'In the last 2 hours, {{ printf "%.0f" $value }} statement(s) or checkout(s) on pool {{'
            " $labels.pool }} of {{ $labels.job }} failed because the connection was lost; cause: {{"
            " $labels.cause }}. " + remedy()
        ),
    )


def _hidden(options: Options) -> Alert:
    by = options.by_pool
    lost = series("disconnects_total", UNEXPLAINED)
    return Alert(
        title="SQLAlchemyPoolHiddenLimit",
        comment=(
            "One KILL looks the same as a limit in between, and what it left is shown until something survives"
            " longer. A limit strikes again: so, beside what the dashboard calls a hidden limit, one process has to"
            " have met such losses in two different hours of a day. Those that nobody noticed count as well."
        ),
        expr=(f"({hidden_limit(series, by)})\nand max by ({by}) (changes({lost}[1d:1h]) - resets({lost}[1d:1h])) >= 2"),
        severity="warning",
        summary="Something closes connections of pool {{ $labels.pool }} of {{ $labels.job }} before its known limit.",
        description=(
            "Connections of pool {{ $labels.pool }} of {{ $labels.job }} that had been silent for {{ $value |"
            " humanizeDuration }} were lost although no limit that is known is as short, and none has survived"
            " longer: a load balancer, proxy or firewall in between may drop them. Tell watch() of it, as"
            " inactivity_limit, with guard=True or with pool_recycle below it."
        ),
    )
