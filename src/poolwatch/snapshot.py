"""What a pool looks like at one moment: frozen facts, and the arithmetic of inactivity limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from poolwatch.labels import RISKS, STATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from poolwatch.histogram import HistogramSnapshot

# Shares of the limit that are left.
SOON = 0.25
IMMINENT = 0.10


@dataclass(frozen=True, slots=True)
class Connection:
    """One open connection.

    Attributes:
        state: One of ``checked_out``, ``idle``, ``condemned``, ``dead``.
        created: Unix time at which it was established.
        held_since: Unix time at which it was checked out; ``None`` while it is not.
        last_activity: Unix time at which the server last heard from it; ``None`` if that was before we watched.
        limit: Seconds of inactivity after which it is dropped; ``inf`` for never, ``None`` if unknown.
        protected: The next checkout replaces it instead of handing it out dead.
    """

    state: str
    created: float
    held_since: float | None
    last_activity: float | None
    limit: float | None
    protected: bool

    @property
    def deadline(self) -> float | None:
        """Unix time at which it reaches its limit unless used before; ``inf`` for never, ``None`` if unknown."""
        if self.limit is None or self.last_activity is None:
            return None
        return self.last_activity + self.limit

    def risk(self, now: float) -> str:
        """Return the class of ``timeout_risk_connections`` at the Unix time *now*."""
        if self.state == "dead":
            return "protected" if self.protected else "dead"
        if self.deadline is None or self.limit is None:
            return "unknown"
        left = 1.0 if self.limit == inf else (self.deadline - now) / self.limit
        if left > SOON:
            return "safe"
        if self.protected:
            return "protected"
        return "expired" if left <= 0 else "imminent" if left <= IMMINENT else "soon"


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """One pool at one moment. Each field is the family of that name in the metric catalogue.

    Mappings are keyed by label value, or by a tuple of them where a family has two labels. Moments are Unix times;
    ``inf`` where there is none. ``None`` means unknown, or not to be had with this pool. Families that nobody has asked
    for are empty.
    """

    connections: Mapping[str, int]
    timeout_risk_connections: Mapping[tuple[str, str], int]
    pending_checkouts: int | None
    size: float
    connections_limit: float
    recycle_seconds: float
    checkout_timeout_seconds: float
    info: Mapping[str, str]
    next_deadline_timestamp_seconds: Mapping[tuple[str, str], float]
    oldest_connection_timestamp_seconds: float
    longest_hold_timestamp_seconds: float
    inactivity_limit_seconds: Mapping[str, float]
    server_max_connections: int | None
    longest_survived_inactivity_seconds: float | None
    shortest_fatal_inactivity_seconds: float | None
    config_problem: Mapping[str, int]
    checkouts_total: int
    checkout_waits_total: int | None
    checkout_failures_total: Mapping[str, int] | None
    connects_total: int
    connect_failures_total: int | None
    reconnects_total: Mapping[str, int]
    closes_total: Mapping[str, int]
    invalidations_total: Mapping[str, int]
    disconnects_total: Mapping[tuple[str, str], int]
    pre_pings_total: int
    pre_ping_seconds_total: float
    leaks_total: int
    unreturned_total: int
    internal_errors_total: int
    checkout_duration_seconds: HistogramSnapshot | None
    connect_duration_seconds: HistogramSnapshot
    hold_duration_seconds: HistogramSnapshot
    idle_duration_seconds: HistogramSnapshot
    connection_lifetime_seconds: HistogramSnapshot
    route_checkouts_total: Mapping[tuple[str, str], int]
    route_hold_seconds_total: Mapping[tuple[str, str], float]
    route_checkout_seconds_total: Mapping[tuple[str, str], float] = field(default_factory=dict)
    route_connections: Mapping[tuple[str, str], int] = field(default_factory=dict)
    route_unreturned_total: Mapping[tuple[str, str], int] = field(default_factory=dict)
    connection_created_timestamp_seconds: Mapping[str, float] = field(default_factory=dict)
    connection_last_activity_timestamp_seconds: Mapping[str, float] = field(default_factory=dict)
    connection_deadline_timestamp_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Census:
    """The gauges that follow from a list of connections; the fields are :class:`PoolSnapshot`'s."""

    connections: Mapping[str, int]
    timeout_risk_connections: Mapping[tuple[str, str], int]
    next_deadline_timestamp_seconds: Mapping[tuple[str, str], float]
    oldest_connection_timestamp_seconds: float
    longest_hold_timestamp_seconds: float


def census(connections: Iterable[Connection], now: float) -> Census:
    """Count *connections* at the Unix time *now*; every state and class is present, at 0 where empty."""
    states = dict.fromkeys(STATES, 0)
    risks = {(state, risk): 0 for state in ("checked_out", "idle") for risk in RISKS}
    deadlines = {("idle", "false"): inf, ("idle", "true"): inf, ("checked_out", "false"): inf}
    oldest = longest = inf
    for each in connections:
        states[each.state] += 1
        state = "checked_out" if each.state == "checked_out" else "idle"
        risks[state, each.risk(now)] += 1
        oldest = min(oldest, each.created)
        if each.held_since is not None:
            longest = min(longest, each.held_since)
        if each.deadline is not None and each.state != "dead":
            key = (state, "true" if each.protected else "false")
            deadlines[key] = min(deadlines[key], each.deadline)
    return Census(states, risks, deadlines, oldest, longest)
