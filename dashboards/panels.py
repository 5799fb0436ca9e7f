"""What the dashboard shows: the rows from the top, each panel with the question that it answers."""

from model import (
    BARS,
    LEGEND_BESIDE,
    LOGARITHMIC,
    SHADED,
    STACK,
    ZEROS_OUT_OF_LEGEND,
    Json,
    Panel,
    Query,
    Row,
    dashed,
    fixed,
    override,
    thresholds,
)
from promql import (
    AT_RISK,
    HELD_AT_RISK,
    MET,
    POOL,
    PROCESS,
    UNPROTECTED_DEAD,
    closed,
    finite,
    fullness,
    left,
    of,
    per_minute,
    protected_dead,
    quantile,
    share_left,
    total,
)

LEGEND = "{{job}}/{{pool}}"
WHO = "{{pool}} @ {{instance}}"
A_MINUTE = "suffix:/min"
UNPROTECTED = ('state="idle"', 'protected="false"')
FULL = ((None, "green"), (0.8, "orange"), (0.95, "red"))
RUNNING_OUT = ((None, "red"), (0.1, "orange"), (0.25, "green"))
NAMED: Json = {"textMode": "value_and_name"}
SPARKLINE: Json = {"graphMode": "area"}
STATES = {"checked_out": "blue", "dead": "red", "condemned": "purple", "idle": "green"}


def percentiles(histogram: str, *shares: float, suffix: str = "") -> tuple[Query, ...]:
    """Return one query for each of *shares* (0.99 is p99) of *histogram*, a line for each pool."""
    return tuple(
        Query(expr=quantile(share, histogram), legend=f"{LEGEND} p{share * 100:.0f}{suffix}") for share in shares
    )


def _worst(expression: str, by: str = PROCESS) -> Query:
    return Query(expr=f"topk(1, max by ({by}) ({expression}))", legend=WHO, instant=True)


FAILED = f"sum(rate({of('checkout_failures_total')}[$__rate_interval]))"
HANDED_OUT = f"sum(rate({of('checkouts_total')}[$__rate_interval]))"

NOW = Row(
    title="",
    height=3,
    panels=(
        Panel(
            kind="stat",
            title="Callers waiting",
            question=(
                "Is anyone waiting? Callers inside pool.connect() at this moment: queueing,"
                " connecting or pinging. One for a moment is traffic; a number that stays is a full"
                " pool or a slow database."
            ),
            unit="short",
            width=3,
            queries=(Query(expr=total("pending_checkouts"), legend="waiting"),),
            steps=((None, "green"), (1, "orange")),
            options=SPARKLINE,
        ),
        Panel(
            kind="stat",
            title="Checkouts that fail",
            question=(
                "Does anyone go without? Share of the callers who got no connection. Orange from 1"
                " in 1000, red from 1 in 100. The reasons are below."
            ),
            unit="percentunit",
            width=3,
            queries=(Query(expr=f"{FAILED} / ({HANDED_OUT} + {FAILED} > 0)", legend="failed"),),
            steps=((None, "green"), (0.001, "orange"), (0.01, "red")),
            defaults={"noValue": "no checkouts"},
            options=SPARKLINE,
        ),
        Panel(
            kind="stat",
            title="Losses users met",
            question=(
                "Did anyone get a lost connection? Statements and checkouts that failed because the"
                " server or the network had closed the connection, in the time shown. When, why, and"
                " how many were found in time stands below."
            ),
            unit="short",
            width=3,
            queries=(
                Query(expr=f"sum(increase({of('disconnects_total', MET)}[$__range]))", legend="met", instant=True),
            ),
            steps=((None, "green"), (0.5, "red")),
            defaults={"decimals": 0},
        ),
        Panel(
            kind="stat",
            title="Fullest process",
            question=(
                "How full is the fullest pool? Connections handed out, as a share of pool_size +"
                " max_overflow, in the process where it is highest. At 100% the next caller waits."
                " A pool without a limit counts as 0%."
            ),
            unit="percentunit",
            width=4,
            queries=(_worst(fullness()),),
            steps=FULL,
            options=NAMED,
        ),
        Panel(
            kind="stat",
            title="Next unprotected close in",
            question=(
                "When will the server close an idle connection that nothing replaces first? Time"
                " left, and what that is of the limit. Below 0: the limit has passed; 0: it has closed"
                " one already. The next request that gets it fails. 'no deadline': nothing idle is"
                " unprotected, or no limit is known."
            ),
            unit="s",
            width=4,
            queries=(
                Query(expr=f"min({left(*UNPROTECTED)} or {closed()})", legend="left", instant=True),
                Query(expr=f"min({share_left('false')} or {closed()})", legend="of the limit", instant=True),
            ),
            defaults={"noValue": "no deadline", "decimals": 0},
            options=NAMED | {"orientation": "horizontal"},
            overrides=(override("of the limit", unit="percentunit", thresholds=thresholds(RUNNING_OUT)),),
        ),
        Panel(
            kind="stat",
            title="About to be closed",
            question=(
                "How many connections have less than 10% of their inactivity limit left, or are past"
                " it, with nothing to replace them? idle: a request that takes one after the limit"
                " fails; an alert counts these. held: a caller keeps one without using it, and its"
                " next statement fails; only a shorter hold helps."
            ),
            unit="short",
            width=3,
            queries=(
                Query(expr=total("timeout_risk_connections", AT_RISK), legend="idle", instant=True),
                Query(
                    expr=total("timeout_risk_connections", HELD_AT_RISK),
                    legend="held",
                    instant=True,
                ),
            ),
            steps=((None, "green"), (1, "red")),
            options=NAMED | {"orientation": "horizontal"},
        ),
        Panel(
            kind="stat",
            title="Dead in the pool",
            question=(
                "How many connections lie in the pools although the server or the network has closed"
                " them? unprotected: the next request that gets one fails; an alert counts these."
                " protected: pre-ping, recycling, the guard or an invalidation replaces it first."
            ),
            unit="short",
            width=4,
            queries=(
                Query(expr=total("timeout_risk_connections", UNPROTECTED_DEAD), legend="unprotected", instant=True),
                Query(expr=protected_dead(), legend="protected", instant=True),
            ),
            steps=((None, "green"), (1, "red")),
            options=NAMED | {"orientation": "horizontal"},
            overrides=(override("protected", thresholds=thresholds(((None, "green"), (1, "purple")))),),
        ),
    ),
)

PRESSURE = Row(
    title="",
    height=6,
    panels=(
        Panel(
            kind="timeseries",
            title="Callers waiting, by pool",
            question=(
                "Which pool has callers inside pool.connect()? Counted when scraped, so what is"
                " shorter is seen by chance; the times on the right miss nothing."
            ),
            unit="short",
            width=4,
            queries=(Query(expr=f"sum by ({POOL}) ({of('pending_checkouts')})", legend=LEGEND),),
            custom={"fillOpacity": 20, "axisSoftMax": 1},
            defaults={"decimals": 0},
        ),
        Panel(
            kind="timeseries",
            title="Failed or queueing checkouts",
            question=(
                "Why do callers get no connection? timeout: the pool stayed full for pool_timeout."
                " connect: the server refused or is unreachable. cancelled: the caller gave up. The"
                " dashed line counts checkouts that found the pool at its limit, whether or not"
                " they got a connection in the end."
            ),
            unit=A_MINUTE,
            width=5,
            queries=(
                Query(
                    expr=per_minute("checkout_failures_total", f"{POOL}, reason"),
                    legend=f"{LEGEND} {{{{reason}}}}",
                ),
                Query(expr=per_minute("checkout_waits_total"), legend=f"{LEGEND} found it full"),
            ),
            custom=BARS,
            overrides=(dashed("/found it full$/"), ZEROS_OUT_OF_LEGEND),
        ),
        Panel(
            kind="timeseries",
            title="Time to get a connection",
            question=(
                "How long do callers wait? From asking to having: queueing, connecting and"
                " pinging, timeouts included. A gap: nobody asked."
            ),
            unit="s",
            width=5,
            queries=percentiles("checkout_duration_seconds", 0.5, 0.95, 0.99),
            custom=LOGARITHMIC,
            options=LEGEND_BESIDE,
        ),
        Panel(
            kind="timeseries",
            title="Connections, against the limit",
            question=(
                "How full is the pool? All connections of the chosen pools by state. condemned:"
                " the next checkout replaces it. dead: the server has closed it. Dashed: pool_size,"
                " and pool_size + max_overflow, without pools that have no limit."
            ),
            unit="short",
            width=5,
            queries=(
                *(
                    Query(
                        expr=total("connections", f'state="{state}"'),
                        legend=state.replace("_", " "),
                    )
                    for state in STATES
                ),
                Query(expr=f"sum({finite(of('size'))})", legend="pool_size"),
                Query(expr=f"sum({finite(of('connections_limit'))})", legend="limit"),
            ),
            custom=STACK,
            options=LEGEND_BESIDE,
            defaults={"decimals": 0},
            overrides=(
                *(fixed(state.replace("_", " "), colour) for state, colour in STATES.items()),
                dashed("pool_size", color={"mode": "fixed", "fixedColor": "text"}),
                dashed("limit", color={"mode": "fixed", "fixedColor": "red"}),
            ),
        ),
        Panel(
            kind="timeseries",
            title="Share of the limit, fullest process",
            question=(
                "Which pool is full, in the process where it is fullest? An average over processes"
                " would hide the one whose callers wait."
            ),
            unit="percentunit",
            width=5,
            queries=(Query(expr=f"max by ({POOL}) ({fullness()})", legend=LEGEND),),
            steps=((None, "transparent"), *FULL[1:]),
            custom=SHADED | {"axisSoftMax": 1},
        ),
    ),
)
