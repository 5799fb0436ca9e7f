"""The PromQL that panels, recording rules and alerts are made of.

Every function returns one expression. The dashboard's variables stand in it as `$name`, and every
selector of a panel carries all of them. The meaning of a metric is written down in the
library's catalogue and not repeated here.
"""

from generator.options import DEFAULT, Options
from poolwatch.catalog import BY_FIELD, PREFIX

# Idle only. A held connection is cut as well, but neither pre-ping nor recycling can help it, and
# one that is busy with a long statement looks just as silent although it is not.
AT_RISK = 'state="idle", risk=~"imminent|expired"'
HELD_AT_RISK = 'state="checked_out", risk=~"imminent|expired"'
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


def _sum(by: str, expression: str) -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def fullness(connections: str, limit: str) -> str:
    """Return the share of its limit that each process has handed out; 0 where there is no limit."""
    return f"{connections} / ignoring (state) {limit}"


def hidden_limit(fatal: str, survived: str, known: str) -> str:
    """Return the silence that was fatal where only a limit that nobody told us of explains it so well.

    None is as short as ten seconds; a KILL finds many a connection that has been idle for less.
    """
    return f"{fatal} >= 10 unless {fatal} <= {survived} unless {fatal} > 0.9 * {known}"


def server_of(options: Options, *matchers: str) -> str:
    """Return 1 for each pool of a process, with the name of its server in the label ``server``.

    A server at a local address is another one on each host, and one without a dot in its name, in Kubernetes, another
    in each namespace. An unknown one is no server. Where workers were reloaded onto another host, a pool has two in
    one process; one of them counts.
    """
    process = ", ".join(options.process)

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


def per_server(expression: str, options: Options, name: str) -> str:
    """Return *expression*, the most that a pool of a process shows of it, with the label ``server`` that *name* has."""
    process = ", ".join(options.process)
    return f"max by ({process}) ({expression}) * on ({process}) group_left (server) {name}"


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
        self.chosen = tuple(f'{variable}=~"${variable}"' for variable in self.variables)
        self.pool = ", ".join((*options.labels, "job", "pool"))
        self.process = ", ".join(options.process)
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
        chosen = [f'{x}=~"${x}"' for x in self.variables if x != self.options.instance]
        return f"{record}{{{', '.join([*chosen, *matchers])}}}"

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

    def left(self, *matchers: str) -> str:
        """Return the seconds until the next inactivity limit, below 0 where it has passed."""
        return f"{finite(self.of('next_deadline_timestamp_seconds', *matchers))} - time()"

    def idle_limit(self) -> str:
        """Return the idle limit of each process; nothing where there is none or none is known."""
        return finite(f"min without (source) ({self.of('inactivity_limit_seconds', IDLE_SOURCES)})")

    def share_left(self, protected: str) -> str:
        """Return what `left` is of the idle limit of the same process, for its idle connections.

        Held ones have no share: in a transaction a shorter limit may apply than the one divided by.
        """
        numerator = self.left('state="idle"', f'protected="{protected}"')
        return f"({numerator}) / ignoring (state, protected) group_left () {self.idle_limit()}"

    def least_share_left(self, protected: str) -> str:
        """Return the least of `share_left` in each pool."""
        if self.options.recorded:
            record = recorded("next_deadline_per_limit", "min", "protected")
            chosen = f'protected="{protected}"'
            return f"min by ({self.pool}) ({self.kept(record, chosen)})"
        return f"min by ({self.pool}) ({self.share_left(protected)})"

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

    def fullness(self) -> str:
        """Return the share of its limit that each process has handed out; 0 where there is no limit."""
        return fullness(self.of("connections", 'state="checked_out"'), self.of("connections_limit"))

    def fullest(self) -> str:
        """Return the greatest `fullness` in each pool."""
        if self.options.recorded:
            return f"max by ({self.pool}) ({self.kept(recorded('connections_per_limit', 'max'))})"
        return f"max by ({self.pool}) ({self.fullness()})"

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
        chosen = ", ".join(f'{label}=~"${label}"' for label in self.options.server_labels)
        return f"{record}{{{chosen}}}" if chosen else record
