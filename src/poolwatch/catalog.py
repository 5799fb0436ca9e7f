"""The metric catalogue: every family this library exports, once.

The collector, the generated reference and the tests read this table. The fields of
:class:`~poolwatch.snapshot.PoolSnapshot` carry the names of the families without the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from poolwatch.labels import CAUSES, CHECKS, CLOSED, FAILURES, PHASES, REPLACED, RISKS, STATES

PREFIX = "sqlalchemy_pool_"

Kind = Literal["gauge", "counter", "histogram", "info"]
Merge = Literal["sum", "livesum", "livemin", "livemax", "liveall"]


@dataclass(frozen=True, slots=True)
class Label:
    """A label beside ``pool``, which every series carries.

    Attributes:
        name: As exported.
        values: Every value it can take, each exported from the start; empty where the values are not known
            beforehand (a server's limits, a slot's number).
    """

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """One family.

    Attributes:
        field: Its name without the prefix, and the field of the snapshot that holds its value.
        kind: ``info`` is a gauge whose labels are facts and whose value is 1.
        help: One sentence for the exposition and the reference.
        labels: Those beside ``pool``.
        buckets: Upper bounds in seconds, of histograms only.
        merge: How the values of several worker processes add up, in prometheus_client's terms.
        optional: The argument that it takes to have it exported; empty for none.
    """

    field: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    merge: Merge = "sum"
    optional: str = ""

    @property
    def name(self) -> str:
        """The family's name as exported."""
        return PREFIX + self.field


# Idle limits people really set: load balancers' 60 and 350 s, the defaults of proxies, MySQL's 8 hours.
_IDLE = (1.0, 10.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0)

_OWNER = (Label("method"), Label("route"))

CATALOG: tuple[Metric, ...] = (
    Metric(
        "connections",
        "gauge",
        "Open connections by state: checked_out; idle and fit to be handed out; condemned (the next checkout replaces"
        " it: older than pool_recycle, or invalidated); dead (idle, and already closed by the server or the network).",
        (Label("state", STATES),),
        merge="livesum",
    ),
    Metric(
        "timeout_risk_connections",
        "gauge",
        "Open connections by how near their inactivity limit is: safe (over 25 % left, or no limit), unknown (limit"
        " not known); below 25 % or dead: protected (the next checkout replaces it), else soon (25 % left or less),"
        " imminent (10 % or less), expired, dead.",
        (Label("state", ("checked_out", "idle")), Label("risk", RISKS)),
        merge="livesum",
    ),
    Metric(
        "pending_checkouts",
        "gauge",
        "Callers inside pool.connect(): queueing, connecting or pinging.",
        merge="livesum",
    ),
    Metric(
        "size",
        "gauge",
        "pool_size; +Inf where it is 0, which SQLAlchemy takes as unlimited; NullPool 0, StaticPool and"
        " AssertionPool 1.",
        merge="livesum",
    ),
    Metric(
        "connections_limit",
        "gauge",
        "Most connections the pool may open: pool_size + max_overflow, +Inf if unlimited.",
        merge="livesum",
    ),
    Metric(
        "recycle_seconds",
        "gauge",
        "pool_recycle, the age at which a checkout replaces a connection; +Inf when off.",
        merge="livemin",
    ),
    Metric(
        "checkout_timeout_seconds",
        "gauge",
        "pool_timeout, the longest wait for a connection; +Inf when there is none.",
        merge="livemin",
    ),
    Metric(
        "info",
        "info",
        "What is watched: always 1.",
        (
            Label("dialect"),
            Label("driver"),
            Label("pool_class"),
            Label("server"),
            Label("pre_ping"),
            Label("guard"),
            Label("lifo"),
        ),
        merge="livemax",
    ),
    Metric(
        "next_deadline_timestamp_seconds",
        "gauge",
        "Unix time at which the first connection reaches its inactivity limit unless used before, dead ones left out;"
        " +Inf when none will. protected: the next checkout replaces it.",
        (Label("state", ("idle", "checked_out")), Label("protected", ("false", "true"))),
        merge="livemin",
    ),
    Metric(
        "oldest_connection_timestamp_seconds",
        "gauge",
        "Unix time at which the oldest open connection was established; +Inf when none is open.",
        merge="livemin",
    ),
    Metric(
        "longest_hold_timestamp_seconds",
        "gauge",
        "Unix time at which the longest-held connection was checked out; +Inf when none is.",
        merge="livemin",
    ),
    Metric(
        "connection_created_timestamp_seconds",
        "gauge",
        "Unix time at which the connection in this slot was established.",
        (Label("slot"),),
        merge="liveall",
        optional="per_connection=True",
    ),
    Metric(
        "connection_last_activity_timestamp_seconds",
        "gauge",
        "Unix time at which the server last heard from the connection in this slot.",
        (Label("slot"),),
        merge="liveall",
        optional="per_connection=True",
    ),
    Metric(
        "connection_deadline_timestamp_seconds",
        "gauge",
        "Unix time at which the connection in this slot reaches its inactivity limit unless used before.",
        (Label("slot"),),
        merge="liveall",
        optional="per_connection=True",
    ),
    Metric(
        "inactivity_limit_seconds",
        "gauge",
        "Seconds without activity after which a connection is dropped, by where the limit was found: the smallest over"
        " the live connections, +Inf where the server sets none, absent where unknown.",
        (Label("source"),),
        merge="livemin",
    ),
    Metric(
        "server_max_connections",
        "gauge",
        "The server's max_connections; absent while unknown.",
        merge="livemin",
    ),
    Metric(
        "longest_survived_inactivity_seconds",
        "gauge",
        "Longest inactivity after which a connection still worked; absent until there was one.",
        merge="livemax",
    ),
    Metric(
        "shortest_fatal_inactivity_seconds",
        "gauge",
        "Shortest inactivity after which a connection was found lost without the server having said why and before any"
        " known limit; absent until there was one. Above the longest survived and below the limit: something in between"
        " drops connections.",
        merge="livemin",
    ),
    Metric(
        "config_problem",
        "gauge",
        "1 for a problem with the pool's settings, 0 for none or where a fact is unknown: recycle_unprotected (nothing"
        " replaces idle connections before their limit), recycle_churn (pool_recycle so short that connections are"
        " replaced for nothing), guard_and_pre_ping (pings for nothing), pre_ping_broken (it does not work with this"
        " driver and event loop), lifo_tail (pool_use_lifo leaves idle connections to their limit), unlimited_overflow"
        " (a queue without a limit), process_over_server (the pool's limit is above the server's max_connections),"
        " fleet_over_server (WEB_CONCURRENCY times that limit is), limit_unknown (neither the server nor the operator"
        " told the inactivity limit, and nothing makes up for it), hidden_limit (something in between drops connections"
        " before any known limit), pool_cannot_queue (a pool class for tests, or a negative pool_timeout, before a"
        " server).",
        (Label("check", CHECKS),),
        merge="livemax",
    ),
    Metric("checkouts_total", "counter", "Connections handed out."),
    Metric("checkout_waits_total", "counter", "Checkouts asked for while the pool was at its limit."),
    Metric(
        "checkout_failures_total",
        "counter",
        "Callers who got no connection: timeout (the pool stayed full), connect (refused or unreachable; other where"
        " the engine has a custom creator), cancelled, other. Those whose ping failed are in disconnects_total alone.",
        (Label("reason", FAILURES),),
    ),
    Metric("connects_total", "counter", "Connections established."),
    Metric(
        "connect_failures_total",
        "counter",
        "Attempts to connect that ended in an error; cancelled ones and those of a custom creator are not among them.",
    ),
    Metric(
        "reconnects_total",
        "counter",
        "Connections established in place of one that was lost or retired, by why that one was closed.",
        (Label("reason", REPLACED),),
    ),
    Metric("closes_total", "counter", "Connections closed, by reason.", (Label("reason", CLOSED),)),
    Metric(
        "invalidations_total",
        "counter",
        "Invalidations: hard (closed at once), soft (closed at its next checkout), pool (one event condemned all"
        " others; the hard one that caused it is counted too).",
        (Label("kind", ("hard", "soft", "pool")),),
    ),
    Metric(
        "disconnects_total",
        "counter",
        "Connections found lost. cause: inactivity (silent for its limit), killed (closed in order while the server"
        " lived: KILL, or something in between), shutdown, network (reset, or broken off), unknown. phase: in_use (a"
        " statement failed), ping_failed (the ping's error reached the caller); and what no caller saw: pre_ping,"
        " guard, return (when it was given back).",
        (Label("cause", CAUSES), Label("phase", PHASES)),
    ),
    Metric("pre_pings_total", "counter", "Pings that pool_pre_ping sent."),
    Metric("pre_ping_seconds_total", "counter", "Seconds that pings of pool_pre_ping took."),
    Metric("leaks_total", "counter", "Connections never given back that the garbage collector found."),
    Metric(
        "unreturned_total",
        "counter",
        "Connections still out when the request that took them had wholly ended, background tasks included; 0 without"
        " the middleware.",
    ),
    Metric("internal_errors_total", "counter", "Errors inside poolwatch that were kept from the application."),
    Metric(
        "checkout_duration_seconds",
        "histogram",
        "Time from asking for a connection to having it, pool timeouts included: queueing, connecting, pinging.",
        buckets=(0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0),
    ),
    Metric(
        "connect_duration_seconds",
        "histogram",
        "Time to establish a connection; not observed where the engine has a custom creator.",
        buckets=(0.002, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0),
    ),
    Metric(
        "hold_duration_seconds",
        "histogram",
        "Time from checkout to return, whichever way it ended.",
        buckets=(0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0),
    ),
    Metric(
        "idle_duration_seconds",
        "histogram",
        "How long a connection had been idle when it was handed out.",
        buckets=_IDLE,
    ),
    Metric(
        "connection_lifetime_seconds",
        "histogram",
        "Age of a connection when it was closed.",
        buckets=(1.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0),
    ),
    Metric(
        "route_checkouts_total",
        "counter",
        "Connections handed out to requests of this route, by its full template; unmatched: no route; other: beyond the"
        " middleware's max_routes; none: outside a request.",
        _OWNER,
    ),
    Metric(
        "route_hold_seconds_total",
        "counter",
        "Seconds that requests of this route held connections, those still held included: its rate is how many the"
        " route holds on average.",
        _OWNER,
    ),
    Metric(
        "route_checkout_seconds_total",
        "counter",
        "Seconds that requests of this route waited for connections, pool timeouts included: queueing, connecting,"
        " pinging. Its rate is how many wait on average.",
        _OWNER,
        optional="route_details=True",
    ),
    Metric(
        "route_connections",
        "gauge",
        "Connections that requests of this route hold now.",
        _OWNER,
        merge="livesum",
        optional="route_details=True",
    ),
    Metric(
        "route_unreturned_total",
        "counter",
        "Connections still out when the request of this route that took them had wholly ended.",
        _OWNER,
        optional="route_details=True",
    ),
)
BY_FIELD = {metric.field: metric for metric in CATALOG}
