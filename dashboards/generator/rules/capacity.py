"""What the fleet's pools take of a server, and the alerts on that and on settings."""

from generator.options import Options
from generator.promql import SERVER_LIMIT, SERVER_MAXIMUM, SERVER_NAME, SERVER_OPEN, series, server_of, servers
from generator.rules.model import Alert, Record

EVALUATE = (
    "These have to be evaluated where the series of every process that uses a server are: in the one Prometheus that"
    " scrapes them all, or else in the ruler above (Thanos, Mimir, VictoriaMetrics). In one of several that scrape a"
    " part each, they would divide a part of the connections by all that the server accepts, and stay silent."
)


def records(options: Options) -> tuple[Record, ...]:
    """Return what each server is called, and what of it is open, possible and accepted."""
    open_, possible, accepted = servers(series, options, SERVER_NAME)
    return (
        Record(title=SERVER_NAME, expr=server_of(options)),
        Record(title=SERVER_OPEN, expr=open_),
        Record(title=SERVER_LIMIT, expr=possible),
        Record(title=SERVER_MAXIMUM, expr=accepted),
    )


def alerts(options: Options) -> tuple[Alert, ...]:
    """Return those on a server that is nearly full, and on a fleet that could fill it."""
    return (
        Alert(
            title="SQLAlchemyPoolServerNearlyFull",
            comment="Only what reports is counted, so this is late rather than early.",
            expr=f"{SERVER_OPEN} / {SERVER_MAXIMUM} > {options.server_full:g}",
            lasting="5m",
            severity="critical",
            summary="Connection pools hold nearly every connection that {{ $labels.server }} accepts.",
            description=(
                "The pools that report hold {{ $value | humanizePercentage }} of max_connections of {{ $labels.server"
                " }}. Beyond that it refuses everybody: 1040 on MySQL and MariaDB, 53300 on PostgreSQL."
            ),
            kept="servers",
        ),
        Alert(
            title="SQLAlchemyPoolFleetOverServer",
            comment=(
                "Arithmetic, true on most fleets that never peak at once: a hint. In a roll-out, old and new processes"
                " are both there; that is over within the hour. Pools without a limit are left out."
            ),
            expr=f"{SERVER_LIMIT} / {SERVER_MAXIMUM} > 1",
            lasting="1h",
            severity="info",
            summary="Connection pools may together open more connections than {{ $labels.server }} accepts.",
            description=(
                "If every process filled its pools, they would need {{ $value | humanizePercentage }} of"
                " max_connections of {{ $labels.server }}."
            ),
            kept="servers",
        ),
    )


def problems(options: Options) -> tuple[Alert, ...]:
    """Return the alert on checks that fail; what has an alert of its own is left out."""
    failing = series("config_problem", 'check!~"hidden_limit|fleet_over_server"')
    return (
        Alert(
            title="SQLAlchemyPoolConfigProblem",
            comment="A cause and no symptom: a hint. While a roll-out mends it, old processes still have it.",
            expr=f"max by ({options.by_pool}, check) ({failing}) > 0",
            lasting="30m",
            severity="info",
            summary=(
                "A check on the settings of pool {{ $labels.pool }} of {{ $labels.job }} fails: {{ $labels.check }}."
            ),
            description=(
                "Check {{ $labels.check }} fails for pool {{ $labels.pool }} of {{ $labels.job }}; the runbook says"
                " what it means and what to change."
            ),
        ),
    )
