"""The PromQL that panels, recording rules and alerts are made of.

Every function returns one expression. The dashboard's variables stand in it as `$name`, and every
selector of a panel carries all of them. The meaning of a metric is written down in the
library's catalogue and not repeated here.
"""

from collections.abc import Callable

from generator.options import DEFAULT, Options
from poolwatch.catalog import BY_FIELD, PREFIX

# Idle only. A held connection is cut as well, but nothing that acts at checkout can help it, and
# one that is busy with a long statement looks just as silent although it is not.
AT_RISK = 'state="idle", risk=~"imminent|expired"'
HELD_AT_RISK = 'state="checked_out", risk=~"imminent|expired"'
IDLE = 'state="idle"'
# What lies in the pool, closed already, and what of it the next checkout hands out all the same.
DEAD = 'state="dead"'
ALIVE = 'state!="dead"'
UNPROTECTED_DEAD = 'state="idle", risk="dead"'
# What a loss was to users: a failed statement or checkout, or nothing.
MET = 'phase=~"in_use|ping_failed"'
FOUND_IN_TIME = 'phase=~"pre_ping|guard|return"'
# Callers who went without; those who gave up themselves are no failure.
WITHOUT = 'reason=~"timeout|connect|other"'
# The limits of a connection that is in no transaction; others may be shorter, but do not apply.
IDLE_SOURCES = 'source=~"wait_timeout|idle_session_timeout|configured"'
# What a limit in between explains, and the server's own word does not.
UNEXPLAINED = 'cause=~"killed|network|unknown"'

# What may be without a limit, or nothing at all.
LIMITS = ("size", "connections_limit")
# Addresses that mean another machine on each host, and what stands there for a Unix socket.
LOCAL = "localhost([.:].*)?|127[.].*|.?::1(.?:.*)?|/.*"

# Of a process, by labels of its pools: what its server is called where several hosts are looked at.
SERVER_NAME = "instance_pool:sqlalchemy_pool_server:info"
SERVER_OPEN = "server:sqlalchemy_pool_connections:sum"
SERVER_LIMIT = "server:sqlalchemy_pool_connections_limit:sum"
SERVER_MAXIMUM = "server:sqlalchemy_pool_server_max_connections:min"

WINDOW = "$__rate_interval"

# What returns the series of a family that matchers select: everybody's, or those that are chosen.
Select = Callable[..., str]


def name(family: str) -> str:
    """Return the full name of a metric *family*."""
    return PREFIX + family


def finite(expression: str) -> str:
    """Drop what is +Inf: an empty moment, or a limit that is not set."""
    return f"({expression} < +Inf)"


def series(family: str, *matchers: str) -> str:
    """Return the series of *family* that *matchers* select: of everybody, as rules ask for them."""
    return f"{name(family)}{{{', '.join(matchers)}}}" if matchers else name(family)


def labels_of(family: str) -> tuple[str, ...]:
    """Return the labels of *family* beside ``pool``; that of a histogram's buckets included."""
    if family.endswith("_bucket"):
        return ("le",)
    if family.endswith(("_count", "_sum")) and family not in BY_FIELD:
        return ()
    return tuple(label.name for label in BY_FIELD[family].labels)


def recorded(family: str, operation: str, *labels: str) -> str:
    """Return the name of what is recorded of *family*: the labels it keeps, what it is, what was done."""
    return f"{'_'.join(('job_pool', *labels))}:{name(family)}:{operation}"


def _choice(label: str) -> str:
    """Return the matcher for what is chosen at the top of the dashboard."""
    return f'{label}=~"${label}"'


def _sum(by: str, expression: str) -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def fullness(of: Select) -> str:
    """Return the share of its limit that each process has handed out; 0 where there is no limit."""
    checked_out = of("connections", 'state="checked_out"')
    return f"{checked_out} / ignoring (state) {of('connections_limit')}"


def idle_limit(of: Select) -> str:
    """Return the idle limit of each process; nothing where there is none or none is known."""
    return finite(f"min without (source) ({of('inactivity_limit_seconds', IDLE_SOURCES)})")


def left(of: Select, *matchers: str) -> str:
    """Return the seconds until the next inactivity limit, below 0 where it has passed."""
    return f"{finite(of('next_deadline_timestamp_seconds', *matchers))} - time()"


def share_left(of: Select, *matchers: str) -> str:
    """Return what `left` is of the idle limit of the same process, for its idle connections.

    Held ones have no share: in a transaction a shorter limit may apply than the one divided by.
    """
    numerator = left(of, IDLE, *matchers)
    return f"({numerator}) / ignoring (state, protected) group_left () {idle_limit(of)}"


def silences(of: Select, by: str) -> tuple[str, str, str]:
    """Return the longest silence survived, the shortest that was fatal, and the known limit."""
    return (
        f"max by ({by}) ({of('longest_survived_inactivity_seconds')})",
        f"min by ({by}) ({of('shortest_fatal_inactivity_seconds')})",
        f"min by ({by}) ({idle_limit(of)})",
    )


def hidden_limit(of: Select, by: str) -> str:
    """Return the silence that was fatal where only a limit that nobody told us of explains it so well.

    None is as short as ten seconds; a KILL finds many a connection that has been idle for less.
    """
    survived, fatal, known = silences(of, by)
    return f"{fatal} >= 10 unless {fatal} <= {survived} unless {fatal} > 0.9 * {known}"


def server_of(options: Options, *matchers: str) -> str:
    """Return 1 for each pool of a process, with the name of its server in the label ``server``.

    A server at a local address is another one on each host, and one without a dot in its name, in Kubernetes, another
    in each namespace. An unknown one is no server. Where workers were reloaded onto another host, a pool has two in
    one process; one of them counts.
    """
    process = options.by_process

    def info(*more: str) -> str:
        return series("info", *matchers, *more)

    dotless = ('server!~".*[.].*"', f'server!~"unknown|{LOCAL}"')
    # The widest of the labels around job that does not keep servers apart anyway.
    inner = next((label for label in options.labels if label not in options.server_labels), None)
    within = [info(*dotless)]
    if inner:
        inside = info(*dotless, f'{inner}!=""')
        within = [f'label_join({inside}, "server", "/", "{inner}", "server")', info(*dotless, f'{inner}=""')]
    local = info(f'server=~"{LOCAL}"')
    host = f'label_replace({local}, "host", "$1", "instance", "(.+?)(:[0-9]+)?")'
    either = "\n    or ".join(
        (
            info('server=~".*[.].*"', f'server!~"{LOCAL}"'),
            *within,
            f'label_join({host}, "server", " at ", "server", "host")',
        )
    )
    return f"topk by ({process}) (1,\n  max by ({process}, server) (\n    {either}\n  )\n)"


def servers(of: Select, options: Options, name: str) -> tuple[str, str, str]:
    """Return what is open, possible and accepted at each server; *name* has the label ``server`` of each process."""
    each = (
        # What lies dead in a pool is not open on the server.
        ("sum", f"sum without (state) ({of('connections', ALIVE)})"),
        ("sum", f"{of('connections_limit')} < +Inf"),
        ("min", of("server_max_connections")),
    )
    process = options.by_process
    open_, possible, accepted = (
        f"{operation} by ({options.by_server}) (\n"
        f"  max by ({process}) ({expression})\n"
        f"  * on ({process}) group_left (server) {name}\n)"
        for operation, expression in each
    )
    return open_, possible, accepted


class Promql:
    """The expressions of panels, as *options* want them.

    Where they are to read what is recorded, a rate is that of five minutes, whatever the panel's width.

    Attributes:
        variables: The dashboard's variables, from the widest choice to the narrowest.
        chosen: The matchers of those.
        pool: The labels that name a pool, as alerts keep them apart.
        process: Those that name it in one process.
        legend: What to call a pool.
        options: As given.
    """

    def __init__(self, options: Options = DEFAULT) -> None:
        self.options = options
        self.variables = (*options.labels, "job", options.instance, "pool")
        self.chosen = tuple(map(_choice, self.variables))
        self.pool = options.by_pool
        self.process = options.by_process
        # Optional labels last: where there are none, nothing but a space is left of them.
        self.legend = " ".join(("{{job}}/{{pool}}", *(f"{{{{{label}}}}}" for label in reversed(options.labels))))

    @property
    def next(self) -> str:
        """The labels that name one of a process's next deadlines."""
        return f"{self.process}, state, protected"

    def of(self, family: str, *matchers: str) -> str:
        """Return the series of *family* that the dashboard's variables and *matchers* select."""
        return series(family, *self.chosen, *matchers)

    def kept(self, record: str, *matchers: str) -> str:
        """Return the same of a recorded series; those know no processes."""
        chosen = map(_choice, (label for label in self.variables if label != self.options.instance))
        return f"{record}{{{', '.join((*chosen, *matchers))}}}"

    def rate(self, counter: str, by: str | None = None, *matchers: str) -> str:
        """Return how often *counter* rises in a second, *by* pool unless said otherwise; by nothing at all if empty."""
        by = self.pool if by is None else by
        if self.options.recorded:
            return _sum(by, self.kept(recorded(counter, "rate5m", *labels_of(counter)), *matchers))
        return _sum(by, f"rate({self.of(counter, *matchers)}[{WINDOW}])")

    def increase(self, counter: str, by: str, *matchers: str, at: str = "") -> str:
        """Return by how much *counter* rose in the time shown; *at* is the moment that this ends at, for ranking."""
        if self.options.recorded:
            kept = self.kept(recorded(counter, "rate5m", *labels_of(counter)), *matchers)
            # In steps of a minute: a young pool's mean would otherwise be taken for that of the whole time.
            return f"60 * {_sum(by, f'sum_over_time({kept}[$__range:1m]{at})')}"
        return _sum(by, f"increase({self.of(counter, *matchers)}[$__range]{at})")

    def per_minute(self, counter: str, by: str | None = None, *matchers: str) -> str:
        """Return how often *counter* rises in a minute: per second, rare events read as 0.0003."""
        return f"60 * {self.rate(counter, by, *matchers)}"

    def summed(self, gauge: str, by: str = "", *matchers: str) -> str:
        """Return the sum of *gauge* over processes; a limit's is that of those that have one."""
        if self.options.recorded:
            return _sum(by, self.kept(recorded(gauge, "sum", *labels_of(gauge)), *matchers))
        each = self.of(gauge, *matchers)
        return _sum(by, f"{each} < +Inf" if gauge in LIMITS else each)

    def quantile(self, share: float, histogram: str) -> str:
        """Return a quantile of *histogram* for each pool; nothing (not NaN) where nothing happened."""
        return f"histogram_quantile({share}, {self.rate(f'{histogram}_bucket', f'le, {self.pool}')}) >= 0"

    def mean(self, seconds: str, count: str) -> str:
        """Return what the counter *seconds* rises by for each of *count*; nothing (not NaN) where nothing happened."""
        return f"{self.rate(seconds)} / ({self.rate(count)} > 0)"

    def least_share_left(self, protected: str) -> str:
        """Return the least of `share_left` in each pool."""
        chosen = f'protected="{protected}"'
        if self.options.recorded:
            record = recorded("next_deadline_per_limit", "min", "protected")
            return f"min by ({self.pool}) ({self.kept(record, chosen)})"
        return f"min by ({self.pool}) ({share_left(self.of, chosen)})"

    def closed(self) -> str:
        """Return 0 for each process with an idle connection that is closed already, with nothing to replace it."""
        return f"({self.of('timeout_risk_connections', UNPROTECTED_DEAD)} > 0) * 0"

    def protected_dead(self, by: str = "") -> str:
        """Return how many connections are closed already, but replaced before a request gets one."""
        dead, unprotected = (
            self.summed(family, by, matcher)
            for family, matcher in (("connections", DEAD), ("timeout_risk_connections", UNPROTECTED_DEAD))
        )
        return f"{dead} - {unprotected}"

    def age(self, family: str) -> str:
        """Return the seconds since the moment that *family* holds."""
        return f"time() - {finite(self.of(family))}"

    def fullest(self) -> str:
        """Return the greatest `fullness` in each pool."""
        if self.options.recorded:
            return f"max by ({self.pool}) ({self.kept(recorded('connections_per_limit', 'max'))})"
        return f"max by ({self.pool}) ({fullness(self.of)})"

    def failed(self) -> str:
        """Return how many callers in a second got no connection, or a lost one: each failure once."""
        without = self.rate("checkout_failures_total", "", WITHOUT)
        return f"({without} or vector(0)) + {self.rate('disconnects_total', '', MET)}"

    def attempts(self) -> str:
        """Return how many callers in a second asked for a connection; who gave up is not among them."""
        without = self.rate("checkout_failures_total", "", WITHOUT)
        refused = self.rate("disconnects_total", "", 'phase="ping_failed"')
        return f"{self.rate('checkouts_total', '')} + ({without} or vector(0)) + {refused}"

    def at(self, record: str) -> str:
        """Return a recorded series of servers, which know neither jobs nor pools."""
        chosen = ", ".join(map(_choice, self.options.server_labels))
        return f"{record}{{{chosen}}}" if chosen else record
