"""The error budget: callers who got no connection, or a lost one, among all who asked."""

from generator.options import FASTEST, Options
from generator.promql import MET, WITHOUT, recorded, series
from generator.rules.model import Alert, Record

FAILED = recorded("failed_checkouts", "rate5m")
ATTEMPTS = recorded("checkout_attempts", "rate5m")
# How many times faster than the objective allows, over a long window and a short one that says that it still goes on;
# at that rate a month's budget is gone within 2, 5 and 30 days.
FAST = ((FASTEST, "1h", "5m"), (6, "6h", "30m"))
SLOW = ((1, "3d", "6h"),)
# Fewer are no rate, whatever share of little traffic they are.
ENOUGH = 10


def _ratio(window: str) -> str:
    return recorded("failed_checkouts_per_attempts", f"ratio_rate{window}")


def records(options: Options) -> tuple[Record, ...]:
    """Return what the alert on the budget reads."""
    by = options.by_pool

    def rate(family: str, *matchers: str) -> str:
        return f"sum by ({by}) (rate({series(family, *matchers)}[5m]))"

    got, met, refused = (
        rate("checkouts_total"),
        rate("disconnects_total", MET),
        rate("disconnects_total", 'phase="ping_failed"'),
    )
    # Where callers who wait cannot be seen, there is no such family.
    without = f"(\n  {rate('checkout_failures_total', WITHOUT)}\n  or 0 * {got}\n)"
    # Sums divided by one another: in the mean of quotients, a quiet hour would count as much as a busy one.
    ratios = tuple(
        Record(
            title=_ratio(window),
            expr=f"sum_over_time({FAILED}[{window}])\n/ (sum_over_time({ATTEMPTS}[{window}]) > 0)",
        )
        for window in ("30m", "1h", "6h", "3d")
    )
    return (
        Record(title=FAILED, expr=f"{without}\n+ {met}"),
        Record(title=ATTEMPTS, expr=f"{got}\n+ {without}\n+ {refused}"),
        Record(title=_ratio("5m"), expr=f"{FAILED} / ({ATTEMPTS} > 0)"),
        *ratios,
    )


def alerts(options: Options) -> tuple[Alert, ...]:
    """Return the alert on the budget, in its two speeds."""
    return (
        _alert(
            options,
            burning=FAST,
            counted="1h",
            lasting="4m",
            severity="critical",
            window="fast",
            comment=(
                "Bad is: no connection in time or at all, and a lost one that a caller met, each failure once. Callers"
                " who gave up themselves are neither bad nor good. An outage of two minutes, as in a restart or a"
                " failover, is over before anybody could do something about it. Ten failures in an hour have to be"
                " there, so that three of twenty at night wake nobody; they are counted in steps of a minute, as a"
                " young job's few would otherwise be taken for those of a whole hour."
            ),
        ),
        _alert(
            options,
            burning=SLOW,
            counted="6h",
            lasting="1h",
            severity="warning",
            window="slow",
            comment="What wakes nobody and still uses up the month.",
        ),
    )


def _alert(  # noqa: PLR0913
    options: Options,
    *,
    burning: tuple[tuple[float, str, str], ...],
    counted: str,
    lasting: str,
    severity: str,
    window: str,
    comment: str,
) -> Alert:
    budget = 1 - options.objective
    pairs = "\n  or\n".join(
        f"  {_ratio(long)} > {factor * budget:.6g}\n  and {_ratio(short)} > {factor * budget:.6g}"
        for factor, long, short in burning
    )
    return Alert(
        title="SQLAlchemyPoolErrorBudgetBurn",
        comment=comment,
        expr=f"(\n{pairs}\n)\nand 60 * sum_over_time({FAILED}[{counted}:1m]) >= {ENOUGH}",
        lasting=lasting,
        severity=severity,
        labels={"window": window},
        summary="Requests of {{ $labels.job }} fail for want of a connection from pool {{ $labels.pool }}.",
        description=(
            "{{ $value | humanizePercentage }} of those who asked pool {{ $labels.pool }} of {{ $labels.job }} for a"
            f" connection got none, or a lost one; the objective allows {100 * budget:.4g}%. The dashboard's second row"
            " says why."
        ),
    )
