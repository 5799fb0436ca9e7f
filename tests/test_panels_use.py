"""The panels and alerts on who has the connections: routes that hold them, keep them, and what others wait for."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from generator.rules.model import Record
from panels_app import HOLD, KEEP, Pool, pools_of
from panels_scenes import leaked
from panels_stage import PATIENCE, RATE_MINUTES, RULES, Stage, staged
from panels_support import during, quantile, shows
from poolwatch.demo.servers import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

pytestmark = pytest.mark.tooling

ORDERS = "/shops/north/orders/7"
HELD, ROUTES = "Who has the connections", "Routes that hold the most"
KEPT = "Not given back"
NOW, WAITED, KEPT_BY = (f"{what}, by route" for what in ("Connections held now", "Requests waiting", "Not given back"))
ONE = {"pool_size": 1, "max_overflow": 0}

HOGGED = Pool("hogged", options={"pool_size": 3, "max_overflow": 0})
BUSY = Pool("busy", options=ONE | {"pool_timeout": 0.6})
KEEPING = Pool("keeping")
LEAKING = Pool("leaking")
CALM = Pool("calm")
QUICK = Pool("quick")
CUT = Pool("cut")


@pytest.fixture(scope="module")
def stage(mariadb: MariaDB, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Serve all pools of this module."""
    with staged(mariadb, pools_of(request.module)) as stage:
        yield stage


async def ask_in_vain(engine: AsyncEngine) -> None:
    """Ask for a connection that somebody else has, for ever."""
    async with engine.connect():
        while True:
            with pytest.raises(NoConnectionError):
                await engine.connect()


@pytest.fixture(scope="module", autouse=True)
def begun(stage: Stage) -> Iterator[None]:
    """Begin what takes its time before the first test: a pool that one route holds, and callers who wait in vain."""
    vain = stage.begin(ask_in_vain, BUSY)
    stage.use(CALM)
    stage.ask_for("GET", ORDERS, HOGGED)
    assert poll(lambda: stage.snapshot(HOGGED).connections["checked_out"] == 1, seconds=PATIENCE)
    # The series of a route begin with its first request: what follows is what Prometheus sees of them.
    stage.scraped()
    for _ in range(5):
        stage.ask_for("GET", ORDERS, HOGGED)
    assert poll(lambda: stage.snapshot(HOGGED).pending_checkouts == 3, seconds=PATIENCE)
    yield
    vain.cancel()


@shows(f"{HELD} A", f"{ROUTES} A", f"{ROUTES} B", f"{ROUTES} C", "Fullest process A", f"{NOW} A", f"{WAITED} A")
def test_a_pool_that_one_route_holds(stage: Stage) -> None:
    """Protects the answer to "who has the pool": the template of the route, while its requests still hang."""
    for _ in range(4):
        stage.use(CALM)
    stage.scraped()
    assert {HOLD} == stage.ask(f"{HELD} A", HOGGED).keys()
    assert {"none none"} == stage.ask(f"{HELD} A", CALM).keys()
    method, route = HOLD.split()
    hogged, calm = f"{method} hogged {route}", "none calm none"
    held, counted, seconds = (stage.ask(f"{ROUTES} {letter}", HOGGED, CALM) for letter in "ABC")
    assert {hogged, calm} == held.keys() == counted.keys() == seconds.keys()
    # Counted from the first sample on; in so short a time, Prometheus extrapolates by half as much again.
    assert 2 <= counted[hogged] <= 3.5
    assert 4 <= counted[calm] <= 7
    for row in (hogged, calm):
        assert held[row] * RATE_MINUTES * 60 == pytest.approx(counted[row] * seconds[row], rel=0.3)
    assert seconds[hogged] > 10 * seconds[calm]
    assert {"hogged": 1} == stage.ask("Fullest process A", HOGGED, CALM)
    assert {HOLD: 3} == stage.ask(f"{NOW} A", HOGGED)
    waited = stage.ask(f"{WAITED} A", HOGGED)
    (total,) = stage.snapshot(HOGGED).route_checkout_seconds_total.values()
    assert {HOLD} == waited.keys()
    # Of those who have begun to wait since the first sample; three will wait for ever.
    assert 0 < waited[HOLD] * RATE_MINUTES * 60 < 2 * total


def test_the_alert_on_an_exhausted_pool(stage: Stage) -> None:
    """Protects those who queue: it fires where all is handed out and somebody waits, and nowhere else."""
    stage.take(QUICK)
    assert fires(stage, "SQLAlchemyPoolExhausted", HOGGED)
    assert not stage.firing("SQLAlchemyPoolExhausted", "pool") & {"calm", "quick"}


@shows(f"{KEPT} A", f"{KEPT} B", f"{KEPT_BY} A", "Time a connection is held C")
def test_connections_that_are_kept(stage: Stage) -> None:
    """Protects the pool from draining: what a request keeps, and what nobody gives back, each under its own name."""
    stage.ask_for("POST", "/keep", KEEPING).result(PATIENCE)
    out = during(stage.ask_for("POST", "/keep", CUT).result, PATIENCE)
    leaked(stage, LEAKING)
    # A request is judged a moment after its end.
    assert poll(lambda: stage.snapshot(KEEPING).unreturned_total == 1, seconds=PATIENCE)
    stage.scraped()
    pools = (KEEPING, LEAKING, CALM)
    assert {"keeping"} == stage.raised(f"{KEPT} A", *pools)
    assert {"keeping": 1} == stage.raw("unreturned_total", KEEPING)
    assert {"leaking"} == stage.raised(f"{KEPT} B", *pools)
    assert {"leaking": 1} == stage.raw("leaks_total", LEAKING)
    assert {KEEP} == stage.ask(f"{KEPT_BY} A", KEEPING).keys()
    assert KEEP.split()[1] in " ".join(stage.raw("route_checkouts_total", KEEPING))
    longest = stage.ask("Time a connection is held C", CUT, CALM, around="time() - ({})")
    assert {"cut"} == longest.keys()
    assert longest["cut"] <= out.end
    stage.pass_time(KEEPING, 61)
    assert fires(stage, "SQLAlchemyPoolConnectionsUnreturned", KEEPING)
    assert fires(stage, "SQLAlchemyPoolConnectionsLeaked", LEAKING)
    # One that is out for a short while is a task that outlives its request.
    assert {"keeping"} == stage.firing("SQLAlchemyPoolConnectionsUnreturned", "pool")
    assert "calm" not in stage.firing("SQLAlchemyPoolConnectionsLeaked", "pool")


@shows(
    *(f"Time a connection is held {x}" for x in "AB"), *(f"Time to open a connection {x}" for x in "AB"), "Checkouts A"
)
def test_times_and_traffic(stage: Stage) -> None:
    """Protects the times that a pool's size follows from, and the traffic that they are compared with."""
    for _ in range(3):
        stage.use(QUICK)
    stage.scraped()
    snapshot = stage.snapshot(QUICK)
    for title, histogram, shares in (
        ("Time a connection is held", snapshot.hold_duration_seconds, {"A": 0.5, "B": 0.95}),
        ("Time to open a connection", snapshot.connect_duration_seconds, {"A": 0.5, "B": 0.99}),
    ):
        for letter, share in shares.items():
            expected = {"quick": pytest.approx(quantile(share, histogram))}
            assert expected == stage.ask(f"{title} {letter}", QUICK)
    rate = stage.one("Checkouts A", QUICK)
    assert snapshot.checkouts_total == pytest.approx(rate * RATE_MINUTES * 60, rel=0.3)


def test_the_alerts_on_callers_who_fail(stage: Stage) -> None:
    """Protects users: it fires where callers wait in vain or meet lost connections, and where they wait for long."""
    for number in stage.use(CUT, 3):
        stage.mariadb.kill(number)
    assert poll(lambda: stage.snapshot(CUT).connections["dead"] == 3, seconds=PATIENCE)
    (connection,) = stage.take(CUT)
    with pytest.raises(DBAPIError):
        stage.identify(connection)
    stage.give_back([connection])
    assert fires(stage, "SQLAlchemyPoolErrorBudgetBurn", BUSY)
    assert fires(stage, "SQLAlchemyPoolErrorBudgetBurn", CUT)
    assert fires(stage, "SQLAlchemyPoolCheckoutSlow", BUSY)
    for alert in ("SQLAlchemyPoolErrorBudgetBurn", "SQLAlchemyPoolCheckoutSlow"):
        assert not stage.firing(alert, "pool") & {"calm", "quick", "hogged"}


def fires(stage: Stage, alert: str, pool: Pool) -> bool:
    """Tell whether *alert* comes to fire for *pool*."""
    return poll(lambda: pool.name in stage.firing(alert, "pool"), seconds=PATIENCE)


def test_what_is_recorded(stage: Stage) -> None:
    """Protects who reads recorded series: each holds what its expression gives, for the same pools."""
    records = [rule for group in RULES for rule in group.rules if isinstance(rule, Record)]
    assert len(records) == len({record.title for record in records})
    for record in records:
        kept, raw = stage.asked_for(record.title), stage.asked_for(record.expr)
        assert raw, record.title
        # Evaluated up to a second ago, while callers wait and connections age.
        assert {row: pytest.approx(value, rel=0.5, abs=0.2) for row, value in raw.items()} == kept, record.title


def test_everything_is_given_back(stage: Stage) -> None:
    """Protects the picture after an incident: nobody waits, and no hold goes on."""

    async def collected(_engine: AsyncEngine) -> None:
        gc.collect()

    stage.let_go()
    stage.do(collected, HOGGED)
    assert poll(lambda: stage.snapshot(HOGGED).connections["checked_out"] == 0, seconds=PATIENCE)
    assert stage.snapshot(HOGGED).pending_checkouts == 0
    assert poll(lambda: "hogged" not in stage.firing("SQLAlchemyPoolExhausted", "pool"), seconds=PATIENCE)
