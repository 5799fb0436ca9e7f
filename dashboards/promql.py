"""The PromQL that panels and alerts are made of.

Every function returns one expression. The dashboard's variables stand in it as `$name`, and every
selector of a panel carries all of them. The meaning of a metric is written down in the
library's catalogue and not repeated here.
"""

PREFIX = "sqlalchemy_pool_"
VARIABLES = ("cluster", "namespace", "job", "instance", "pool")
POOL = "job, pool"
PROCESS = "job, instance, pool"
NEXT = f"{PROCESS}, state, protected"

# Idle only. A held connection is cut as well, but neither pre-ping nor recycling can help it, and
# one that is busy with a long statement looks just as silent although it is not.
AT_RISK = 'state="idle", risk=~"imminent|expired"'
HELD_AT_RISK = 'state="checked_out", risk=~"imminent|expired"'
# What lies in the pool, closed already, and what of it the next checkout hands out all the same.
DEAD = 'state="dead"'
UNPROTECTED_DEAD = 'state="idle", risk="dead"'
# What a loss was to users: a failed statement or checkout, or nothing.
MET = 'phase=~"in_use|ping_failed"'
FOUND_IN_TIME = 'phase=~"pre_ping|guard|return"'
# The limits of a connection that is in no transaction; others may be shorter, but do not apply.
IDLE_SOURCES = 'source=~"wait_timeout|idle_session_timeout|configured"'


def name(family: str) -> str:
    """Return the full name of a metric *family*."""
    return PREFIX + family


def of(family: str, *matchers: str) -> str:
    """Return the series of *family* that the dashboard's variables and *matchers* select."""
    chosen = [f'{variable}=~"${variable}"' for variable in VARIABLES]
    return f"{name(family)}{{{', '.join([*chosen, *matchers])}}}"


def finite(expression: str) -> str:
    """Drop what is +Inf: an empty moment, or a limit that is not set."""
    return f"({expression} < +Inf)"


def total(family: str, *matchers: str) -> str:
    """Return the sum of the gauge *family* over everything chosen."""
    return f"sum({of(family, *matchers)})"


def per_minute(counter: str, by: str = POOL, *matchers: str) -> str:
    """Return how often *counter* rises in a minute: per second, rare events read as 0.0003."""
    return f"60 * sum by ({by}) (rate({of(counter, *matchers)}[$__rate_interval]))"


def quantile(share: float, histogram: str) -> str:
    """Return a quantile of *histogram* for each pool; nothing (not NaN) where nothing happened."""
    rate = f"rate({of(histogram + '_bucket')}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by (le, {POOL}) ({rate})) >= 0"


def left(*matchers: str) -> str:
    """Return the seconds until the next inactivity limit, below 0 where it has passed."""
    return f"{finite(of('next_deadline_timestamp_seconds', *matchers))} - time()"


def mean(seconds: str, count: str, by: str = POOL) -> str:
    """Return what the counter *seconds* rises by for each of *count*; nothing (not NaN) where nothing happened."""
    rates = [f"sum by ({by}) (rate({of(counter)}[$__rate_interval]))" for counter in (seconds, count)]
    return f"{rates[0]} / ({rates[1]} > 0)"


def idle_limit() -> str:
    """Return the idle limit of each process; nothing where there is none or none is known."""
    return finite(f"min without (source) ({of('inactivity_limit_seconds', IDLE_SOURCES)})")


def share_left(protected: str) -> str:
    """Return what `left` is of the idle limit of the same process, for its idle connections.

    Held ones have no share: in a transaction a shorter limit may apply than the one divided by.
    """
    numerator = left('state="idle"', f'protected="{protected}"')
    return f"({numerator}) / ignoring (state, protected) group_left () {idle_limit()}"


def closed() -> str:
    """Return 0 for each process with an idle connection that is closed already, with nothing to replace it."""
    return f"({of('timeout_risk_connections', UNPROTECTED_DEAD)} > 0) * 0"


def protected_dead(by: str = "") -> str:
    """Return how many connections are closed already, but replaced before a request gets one."""
    grouped = f"sum by ({by})" if by else "sum"
    unprotected = of("timeout_risk_connections", UNPROTECTED_DEAD)
    return f"{grouped} ({of('connections', DEAD)}) - {grouped} ({unprotected})"


def age(family: str) -> str:
    """Return the seconds since the moment that *family* holds."""
    return f"time() - {finite(of(family))}"


def fullness() -> str:
    """Return the share of its limit that each process has handed out; 0 where there is no limit."""
    checked_out = of("connections", 'state="checked_out"')
    return f"{checked_out} / ignoring (state) {of('connections_limit')}"
