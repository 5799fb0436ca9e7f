"""Every panel of the dashboard shows what really happened: a MariaDB, a served application and a Prometheus decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from panels_app import Pool, pools_of
from panels_scenes import FATES, Fate, dispose, invalidate_softly
from panels_stage import PATIENCE, Stage, staged
from panels_support import during, quantile, shows
from poolwatch.catalog import BY_FIELD
from poolwatch.demo.servers import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

pytestmark = pytest.mark.tooling


@pytest.fixture(scope="module")
def stage(mariadb: MariaDB, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Serve all pools of this module."""
    with staged(mariadb, pools_of(request.module) + [fate.pool for fate in FATES]) as stage:
        yield stage


FULL = Pool("full", options={"pool_size": 1, "max_overflow": 1})
HALF = Pool("half", options={"pool_size": 3, "max_overflow": 1})
QUEUED = Pool("queued", options={"pool_size": 1, "max_overflow": 0})
BOUNDLESS = Pool("boundless", options={"pool_size": 0})
ENDLESS = Pool("endless", options={"pool_size": 5, "max_overflow": -1})


@shows(
    "Callers waiting A",
    "Fullest process A",
    "Fullest process, by pool A",
    "Connections, against the limit E",
    "Connections, against the limit F",
    "Connections, against the limit G",
)
def test_a_full_pool(stage: Stage) -> None:
    """Protects the view of who waits, of the fullest pool and of its limits; no limit is neither full nor drawn."""
    pools = (HALF, FULL, ENDLESS)
    taken = [*stage.take(FULL, 2), *stage.take(HALF, 2), *stage.take(ENDLESS, 2)]
    taken += stage.take(QUEUED)
    callers = {
        pool: [stage.begin(connected, pool) for _ in range(count)] for pool, count in {FULL: 3, QUEUED: 2}.items()
    }
    for pool, waiting in callers.items():
        _until_pending(stage, pool, len(waiting))
    stage.scraped()
    assert {"": 0} == stage.ask("Callers waiting A", HALF)
    for pool in (FULL, QUEUED):
        assert {"": len(callers[pool])} == stage.ask("Callers waiting A", pool)
    assert {"": 5} == stage.ask("Callers waiting A")
    assert {"": 3} == stage.ask("Connections, against the limit G", *pools)
    assert {"full": 1} == stage.ask("Fullest process A", *pools)
    assert {"half": 0.5} == stage.ask("Fullest process A", HALF, ENDLESS)
    assert {"full": 1, "half": 0.5, "endless": 0} == stage.ask("Fullest process, by pool A", *pools)
    assert {"": 9} == stage.ask("Connections, against the limit E", *pools, BOUNDLESS)
    assert {"": 6} == stage.ask("Connections, against the limit F", *pools, BOUNDLESS)
    for caller in (*callers[FULL], *callers[QUEUED]):
        caller.cancel()
    stage.give_back(taken)
    assert {"": 0} == stage.until({"": 0}, "Callers waiting A")
    assert {"full": 0} == stage.until({"full": 0}, "Fullest process, by pool A", FULL)


def _until_pending(stage: Stage, pool: Pool, count: int) -> None:
    assert poll(lambda: stage.snapshot(pool).pending_checkouts == count, seconds=PATIENCE)


async def connected(engine: AsyncEngine) -> None:
    """Take a connection and give it back."""
    async with engine.connect():
        pass


BUSY = Pool("busy", options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.3})
REFUSED = Pool("refused", reachable=False)
CALM = Pool("calm")
UNUSED = Pool("unused")
IMPATIENT = Pool("impatient", options={"pool_size": 1, "max_overflow": 0})


@shows(
    "Fail for want of a connection A",
    "Failed or queueing checkouts A",
    "Failed or queueing checkouts C",
    *(f"Time to get a connection {letter}" for letter in "ABC"),
    "Invalidations and errors B",
)
def test_callers_who_get_no_connection(stage: Stage) -> None:
    """Protects the count of failed checkouts, each under its own reason, and the time that callers lost."""
    stage.use(CALM)
    stage.take(IMPATIENT)
    caller = stage.begin(connected, IMPATIENT)
    _until_pending(stage, IMPATIENT, 1)
    caller.cancel()
    _until_pending(stage, IMPATIENT, 0)
    stage.use(BUSY)
    stage.take(BUSY)
    for _ in range(3):
        with pytest.raises(NoConnectionError):
            stage.take(BUSY)
    for _ in range(2):
        with pytest.raises(OperationalError):
            stage.take(REFUSED)
    stage.scraped()
    reasons = {"busy timeout": 3, "refused connect": 2, "impatient cancelled": 1}
    for pool, (reason, count) in zip((BUSY, REFUSED, IMPATIENT), reasons.items(), strict=True):
        assert {reason} == stage.raised("Failed or queueing checkouts A", pool)
        assert {reason: count} == stage.raw("checkout_failures_total", pool)
    assert set(reasons) == stage.raised("Failed or queueing checkouts A", BUSY, REFUSED, IMPATIENT, CALM)
    assert {"busy", "impatient"} == stage.raised("Failed or queueing checkouts C", BUSY, REFUSED, IMPATIENT, CALM)
    assert {"busy": 3} == stage.raw("checkout_waits_total", BUSY)
    assert {"refused"} == stage.raised("Invalidations and errors B", BUSY, REFUSED, IMPATIENT)
    assert {"refused": 2} == stage.raw("connect_failures_total", REFUSED)
    for share, pools in ((3 / 5, [BUSY]), (1, [REFUSED]), (5 / 8, [BUSY, REFUSED, IMPATIENT]), (0, [CALM])):
        assert {"": pytest.approx(share)} == stage.ask("Fail for want of a connection A", *pools)
    assert {} == stage.ask("Fail for want of a connection A", UNUSED)
    durations = stage.snapshot(BUSY).checkout_duration_seconds
    assert durations is not None
    for letter, share in {"A": 0.5, "B": 0.95, "C": 0.99}.items():
        shown = stage.ask(f"Time to get a connection {letter}", BUSY, REFUSED)
        assert {"busy": pytest.approx(quantile(share, durations))} == shown
        assert shown["busy"] > 0.25


STATES = Pool("states")
OTHERS = Pool("others")
RECYCLED = Pool("recycled", options={"pool_recycle": 600})


@shows(*(f"Connections, against the limit {letter}" for letter in "ABCD"))
def test_connections_by_state(stage: Stage) -> None:
    """Protects the stack of states: held, fit, condemned by age or by hand, and closed by the server."""
    stage.use(RECYCLED)
    stage.pass_time(RECYCLED, 601)
    for pool in (STATES, OTHERS):
        _, _, condemned, idle, doomed = stage.take(pool, 5)
        number = stage.identify(doomed)
        invalidate_softly(condemned)
        stage.give_back([condemned, idle, doomed])
        stage.mariadb.kill(number)
    for letter, count in {"A": 4, "B": 2, "C": 2, "D": 2}.items():
        panel = f"Connections, against the limit {letter}"
        for expected, pools in ({"": count}, [STATES, OTHERS]), ({"": letter == "C"}, [RECYCLED]):
            assert expected == stage.until(expected, panel, *pools), letter


AGED = Pool("aged")


@shows("Idle time at checkout, and limits A", *(f"Connection age {x}" for x in "ABCD"))
def test_times(stage: Stage) -> None:
    """Protects the ages and idle times, and that what never happened is absent instead of NaN."""
    stage.use(AGED)
    stage.pass_time(AGED, 100)
    stage.use(AGED)
    stage.pass_time(AGED, 1000)
    stage.do(dispose, AGED)
    opened = during(stage.use, AGED)
    younger = during(stage.use, YOUNGER)
    stage.scraped()
    # One observation of 100 s, in the bucket from 60 to 300, and one of 1100 s, in that from 600 to 1800.
    assert {"aged": pytest.approx(60 + 0.99 * 240)} == stage.ask("Idle time at checkout, and limits A", AGED, YOUNGER)
    for letter, share in {"B": 0.5, "C": 0.95}.items():
        expected = {"aged": pytest.approx(600 + share * 1200)}
        assert expected == stage.ask(f"Connection age {letter}", AGED, YOUNGER)
    oldest = stage.ask("Connection age A", AGED, YOUNGER, UNUSED, around="time() - ({})")
    assert {"aged", "younger"} == oldest.keys()
    assert opened.holds(oldest["aged"])
    assert younger.holds(oldest["younger"])
    assert {"younger": 3600} == stage.ask("Connection age D", AGED, YOUNGER)


YOUNGER = Pool("younger", options={"pool_recycle": 3600})


@pytest.fixture(scope="module")
def ended(stage: Stage) -> None:
    """Let connections end in every way that the library tells apart, each in a pool of its own."""
    for fate in FATES:
        fate.act(stage, fate.pool)
        stage.use(fate.pool)
    stage.scraped()


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.pool.name)
@shows(
    "Closes, by reason A",
    "Reconnects, by reason A",
    "Reconnects, by reason B",
    "Invalidations and errors A",
    "Not given back B",
)
@pytest.mark.usefixtures("ended")
def test_why_connections_end(stage: Stage, fate: Fate) -> None:
    """Protects the reasons: what happened shows under its own name, once each time, and nothing else does."""
    pool = fate.pool
    for panel, family, counts in (
        ("Closes, by reason A", "closes_total", fate.closes),
        ("Reconnects, by reason A", "reconnects_total", fate.reconnects),
        ("Invalidations and errors A", "invalidations_total", fate.invalidations),
    ):
        values = BY_FIELD[family].labels[0].values
        # Reasons add up over pools; kinds of invalidations do not.
        rows = {value: value if family != "invalidations_total" else f"{value} {pool.name}" for value in values}
        assert set(rows.values()) == stage.ask(panel, pool).keys()
        assert {rows[value] for value in counts} == stage.raised(panel, pool)
        assert {_row(family, pool.name, value): count for value, count in counts.items()} == stage.raw(family, pool)
    closed = sum(stage.ask("Closes, by reason A", pool).values()) / sum(fate.closes.values())
    opened = closed * stage.snapshot(pool).connects_total
    # Asked a moment later, Prometheus extrapolates a little further.
    assert {"": pytest.approx(opened, rel=0.3)} == stage.ask("Reconnects, by reason B", pool)
    leaks = {pool.name: 1} if "leaked" in fate.closes else {}
    assert leaks.keys() == stage.raised("Not given back B", pool)
    assert leaks == stage.raw("leaks_total", pool)


def _row(family: str, pool: str, value: str) -> str:
    # Values stand in the order of the labels' names.
    names = sorted(("pool", BY_FIELD[family].labels[0].name))
    return " ".join(pool if name == "pool" else value for name in names)


FAULTY = Pool("faulty")


@shows("Invalidations and errors C")
def test_an_error_of_our_own(stage: Stage) -> None:
    """Protects users from a fault in the library that nobody sees: what it kept to itself is drawn."""

    async def interrupted(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            info = (await connection.get_raw_connection()).record_info
            assert info is not None
            kept = {**info}
            assert kept
            info.update(dict.fromkeys(kept, object()))
            await connection.execute(text("SELECT 1"))
            info.update(kept)

    stage.do(interrupted, FAULTY)
    stage.scraped()
    assert {"faulty"} == stage.raised("Invalidations and errors C", FAULTY, CALM)
    assert {"faulty": stage.snapshot(FAULTY).internal_errors_total} == stage.raw("internal_errors_total", FAULTY)
