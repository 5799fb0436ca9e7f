"""What the dashboard reads instead of raw series where the fleet is too large for those."""

from generator.options import Options
from generator.promql import LIMITS, fullness, labels_of, recorded, series, share_left
from generator.rules.model import Record

RATED = (
    "checkouts_total",
    "checkout_waits_total",
    "checkout_failures_total",
    "connects_total",
    "connect_failures_total",
    "reconnects_total",
    "closes_total",
    "invalidations_total",
    "disconnects_total",
    "pre_pings_total",
    "pre_ping_seconds_total",
    "leaks_total",
    "unreturned_total",
    "internal_errors_total",
    "route_checkouts_total",
    "route_hold_seconds_total",
    "checkout_duration_seconds_bucket",
    "connect_duration_seconds_bucket",
    "hold_duration_seconds_bucket",
    "idle_duration_seconds_bucket",
    "connection_lifetime_seconds_bucket",
)
SUMMED = ("connections", "timeout_risk_connections", "pending_checkouts", *LIMITS)


def rates(options: Options) -> tuple[Record, ...]:
    """Return the counters and buckets of each pool, over all its processes."""
    return tuple(
        Record(
            title=recorded(family, "rate5m", *labels_of(family)),
            expr=f"sum by ({', '.join((options.by_pool, *labels_of(family)))}) (rate({series(family)}[5m]))",
        )
        for family in RATED
    )


def state(options: Options) -> tuple[Record, ...]:
    """Return the gauges of each pool: sums, and the process that is worst."""
    by = options.by_pool
    sums = tuple(
        Record(
            title=recorded(family, "sum", *labels_of(family)),
            expr=(
                f"sum by ({', '.join((by, *labels_of(family)))})"
                f" ({series(family)}{' < +Inf' if family in LIMITS else ''})"
            ),
        )
        for family in SUMMED
    )
    return (
        *sums,
        Record(title=recorded("connections_per_limit", "max"), expr=f"max by ({by}) ({fullness(series)})"),
        Record(
            title=recorded("next_deadline_per_limit", "min", "protected"),
            expr=f"min by ({by}, protected) ({share_left(series)})",
        ),
    )
