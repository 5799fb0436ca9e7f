"""The alerts on pools that have no connection left, and on those who keep them."""

from generator.options import Options
from generator.promql import finite, fullness, series
from generator.rules.model import Alert


def alerts(options: Options) -> tuple[Alert, ...]:
    """Return the symptoms first, and what leads to them after that."""
    return (_exhausted(options), _slow(options), _leaks(options), _unreturned(options))


def _exhausted(options: Options) -> Alert:
    by = options.by_pool
    full = fullness(series)
    return Alert(
        title="SQLAlchemyPoolExhausted",
        comment=(
            "Both, full and waited for, in one process at a time and at every evaluation of five minutes: a burst"
            " that a pool swallows is no exhaustion, and a pool that is full on purpose has nobody waiting. A pool"
            " without a limit is never full."
        ),
        expr=f"count by ({by}) (\n  ({series('pending_checkouts')} > 0)\n  and ({full} >= 1)\n)",
        lasting="5m",
        severity="critical",
        summary="Requests of {{ $labels.job }} queue for a connection from the full pool {{ $labels.pool }}.",
        description=(
            "At every evaluation of 5 minutes, some process of {{ $labels.job }} had every connection of pool {{"
            " $labels.pool }} checked out and callers waiting; {{ $value }} process(es) now. They fail after"
            " pool_timeout. The dashboard says which route has the connections."
        ),
    )


def _slow(options: Options) -> Alert:
    by = options.by_pool
    buckets = f"rate({series('checkout_duration_seconds_bucket')}[5m])"
    asked = f"rate({series('checkout_duration_seconds_count')}[5m])"
    return Alert(
        title="SQLAlchemyPoolCheckoutSlow",
        comment=(
            "Of fewer than one checkout in ten seconds, the slowest in a hundred is one of a whole quarter of an hour:"
            " that says nothing. Start-up, when every connection has to be opened, is over within ten minutes."
        ),
        expr=(
            f"histogram_quantile(0.99, sum by ({by}, le) ({buckets})) > {options.slow:g}\n"
            f"and sum by ({by}) ({asked}) > 0.1"
        ),
        lasting="10m",
        severity="warning",
        summary="Requests of {{ $labels.job }} wait long for a connection from pool {{ $labels.pool }}.",
        description=(
            "One checkout in a hundred from pool {{ $labels.pool }} of {{ $labels.job }} takes {{ $value |"
            f" humanizeDuration }}}} or longer (limit: {options.slow:g} s): queueing, connecting, pinging."
        ),
    )


def _leaks(options: Options) -> Alert:
    by = options.by_pool
    return Alert(
        title="SQLAlchemyPoolConnectionsLeaked",
        comment="Once is enough: it is a mistake in the code, and the same code runs again.",
        expr=f"sum by ({by}) (increase({series('leaks_total')}[30m])) > 0",
        severity="warning",
        summary="Code of {{ $labels.job }} drops connections of pool {{ $labels.pool }} without giving them back.",
        description=(
            'In the last 30 minutes, {{ printf "%.0f" $value }} connection(s) of pool {{ $labels.pool }} of {{'
            " $labels.job }} were not given back and found by the garbage collector. Until it comes, each is one less"
            " for everybody. Use every session and connection in a `with` block."
        ),
    )


def _unreturned(options: Options) -> Alert:
    by, one = options.by_pool, options.by_process
    since = series("longest_hold_timestamp_seconds")
    # Until the scrape, and not until now: what is given back in between has been out for less.
    out = f"max_over_time((timestamp({since}) - {finite(since)})[15m:1m])"
    return Alert(
        title="SQLAlchemyPoolConnectionsUnreturned",
        comment=(
            "A task that outlives its request and gives the connection back soon is a way to work. So the same process"
            " has to have had one out for more than a minute lately; lately, because others come and go beside it."
        ),
        expr=f"sum by ({by}) (\n  increase({series('unreturned_total')}[1h]) > 0\n  and on ({one}) {out} > 60\n)",
        severity="warning",
        summary="Requests of {{ $labels.job }} end and keep their connections of pool {{ $labels.pool }}.",
        description=(
            'In the last hour, {{ printf "%.0f" $value }} connection(s) of pool {{ $labels.pool }} of {{ $labels.job }}'
            " were still out when the request that took them had wholly ended, and one was out for more than a minute."
            " The application's log names the routes."
        ),
    )
