"""The panels and the alert on lost connections: why each was lost, who noticed, and which limits showed in that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import DBAPIError

from panels_app import Pool, pools_of
from panels_stage import PATIENCE, RATE_MINUTES, Stage, staged
from panels_support import shows
from poolwatch.demo.servers import MariaDB, poll
from poolwatch.labels import CAUSES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.tooling

PING = {"pool_pre_ping": True}
# By what will happen to them.
MET = {
    "inactivity": Pool("inactive", wait_timeout=2),
    "killed": Pool("killed"),
    "shutdown": Pool("shut"),
    "network": Pool("reset", proxied=True),
}
FOUND = {
    "inactivity": Pool("inactive_pinged", wait_timeout=2, options=PING),
    "killed": Pool("killed_pinged", options=PING),
    "shutdown": Pool("shut_pinged", options=PING),
    "network": Pool("reset_pinged", proxied=True, options=PING),
}
USERS, TIME = "Connections found lost, by users", "Connections found lost, in time"


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Serve all pools of this module, on a server of its own, which is restarted."""
    pools = [*pools_of(request.module), *MET.values(), *FOUND.values()]
    with MariaDB() as server, staged(server, pools) as stage:
        yield stage


def lie_dead(stage: Stage, pool: Pool, count: int = 1) -> None:
    """Return when the event loop knows that *count* idle connections have ended."""
    assert poll(lambda: stage.snapshot(pool).connections["dead"] == count, seconds=PATIENCE)


def kill_one_of_two(stage: Stage, pool: Pool) -> None:
    """Leave the connection that the next caller gets dead, and another one alive."""
    first, _ = stage.use(pool, 2)
    stage.mariadb.kill(first)
    lie_dead(stage, pool)


def meet(stage: Stage, pool: Pool) -> None:
    """Let a user find out."""
    (connection,) = stage.take(pool)
    with pytest.raises(DBAPIError):
        stage.identify(connection)
    stage.give_back([connection])
    # Whether a server was down, or closed this one alone, is decided when somebody reads.
    stage.snapshot(pool)


@pytest.fixture(scope="module")
def lost(stage: Stage) -> None:
    """Let connections end for every reason, in a pool where a user finds out and in one where pre-ping does."""
    # A server that has been up for a while; one that starts begins to count its connections anew.
    for _ in range(100):
        stage.mariadb.query("SELECT 1")
    for pools in (MET, FOUND):
        stage.use(pools["shutdown"], 2)
    stage.mariadb.stop()
    stage.mariadb.start()
    for pools in (MET, FOUND):
        lie_dead(stage, pools["shutdown"], 2)
        kill_one_of_two(stage, pools["killed"])
        stage.use(pools["network"])
        stage.proxies[pools["network"]].reset()
        lie_dead(stage, pools["network"])
        stage.use(pools["inactivity"])
        lie_dead(stage, pools["inactivity"])
    for pool in MET.values():
        meet(stage, pool)
    for pool in (*FOUND.values(), MET["shutdown"]):
        stage.use(pool)
    stage.scraped()


@pytest.mark.parametrize("cause", MET)
@shows(f"{USERS} A", f"{USERS} B", f"{TIME} A", "Losses users met A")
@pytest.mark.usefixtures("lost")
def test_why_connections_were_lost(stage: Stage, cause: str) -> None:
    """Protects the causes: each shows under its own name, where users met it apart from where nobody did."""
    met, found = MET[cause], FOUND[cause]
    for panel, pool, other, phase in ((f"{USERS} A", met, found, "in_use"), (f"{TIME} A", found, met, "pre_ping")):
        assert {f"{each} {pool.name}" for each in CAUSES} == stage.ask(panel, pool).keys()
        assert {f"{cause} {pool.name}"} == stage.raised(panel, pool)
        assert {f"{cause} {phase} {pool.name}": 1} == stage.raw("disconnects_total", pool)
        assert set() == stage.raised(panel, other)
    assert set() == stage.raised(f"{USERS} B", met, found)
    assert {"": pytest.approx(1, rel=0.3)} == stage.ask("Losses users met A", met, found)
    assert {"": 0} == stage.ask("Losses users met A", found)


BLIND = Pool("blind", options=PING)
RETURNED = Pool("returned")
GUARDED = Pool("guarded", watching={"guard": True})


@shows(
    f"{USERS} A",
    f"{USERS} B",
    f"{TIME} A",
    "Losses users met A",
    "Failed or queueing checkouts B",
    "Fail for want of a connection A",
)
def test_who_met_a_loss(stage: Stage) -> None:
    """Protects the difference to users: a vain ping is theirs; what the guard finds, or dies after work, nobody's."""

    async def recognise_nothing(engine: AsyncEngine) -> None:
        vars(engine.sync_engine.dialect)["is_disconnect"] = lambda *_: False

    stage.do(recognise_nothing, BLIND)
    kill_one_of_two(stage, BLIND)
    with pytest.raises(DBAPIError):
        stage.take(BLIND)
    first, _ = stage.use(RETURNED, 2)
    connections = stage.take(RETURNED)
    stage.mariadb.kill(first)
    stage.give_back(connections)
    kill_one_of_two(stage, GUARDED)
    stage.use(GUARDED)
    stage.scraped()
    assert {"killed ping_failed blind": 1} == stage.raw("disconnects_total", BLIND)
    assert {"killed return returned": 1} == stage.raw("disconnects_total", RETURNED)
    assert {"killed guard guarded": 1} == stage.raw("disconnects_total", GUARDED)
    assert {"killed blind"} == stage.raised(f"{USERS} B", BLIND, RETURNED, GUARDED)
    assert {"killed returned", "killed guarded"} == stage.raised(f"{TIME} A", BLIND, RETURNED, GUARDED)
    assert set() == stage.raised(f"{USERS} A", BLIND, RETURNED, GUARDED)
    assert {"": pytest.approx(1, rel=0.3)} == stage.ask("Losses users met A", BLIND, RETURNED)
    assert {"": 0} == stage.ask("Losses users met A", RETURNED, GUARDED)
    assert {"blind"} == stage.raised("Failed or queueing checkouts B", BLIND, RETURNED)
    # Two got a connection, the third a ping's error; who gives back a lost one has got what he wanted.
    for share, pool in ((1 / 3, BLIND), (0, RETURNED), (0, GUARDED)):
        assert {"": pytest.approx(share)} == stage.ask("Fail for want of a connection A", pool)


CUT = Pool("cut")
UNREAD = Pool("unread", watching={"server_limits": False})
REFUTED = Pool("refuted")
CLOSE = Pool("close")
LIVELY = Pool("lively")
YOUNG = Pool("young")
UNUSED = Pool("unused")


@shows(*(f"Silence survived, and fatal {letter}" for letter in "ABCD"))
def test_a_limit_that_nobody_told_us_of(stage: Stage) -> None:
    """Protects the suspicion of a load balancer: it falls on a silence that none survived, far from a known limit."""
    silences = {
        CUT: (200, 350),
        UNREAD: (200, 350),
        REFUTED: (200, 350, 400),
        CLOSE: (200, 950),
        YOUNG: (3, 5),
        LIVELY: (300,),
    }
    for pool, (survived, *more) in silences.items():
        stage.use(pool)
        stage.pass_time(pool, survived)
        stage.use(pool)
        for fatal in more[:1]:
            stage.use_and_kill(pool)
            stage.pass_time(pool, fatal)
            meet(stage, pool)
            stage.use(pool)
        for longer in more[1:]:
            stage.pass_time(pool, longer)
            stage.use(pool)
    stage.scraped()
    shown = {
        "A": {CUT: 200, UNREAD: 200, REFUTED: 400, CLOSE: 200, YOUNG: 3, LIVELY: 300},
        "B": {CUT: 350, UNREAD: 350, CLOSE: 950, YOUNG: 5},
        "C": {CUT: 350, UNREAD: 350},
        "D": dict.fromkeys((CUT, REFUTED, CLOSE, YOUNG, LIVELY), 1000),
    }
    for letter, values in shown.items():
        expected = {pool.name: pytest.approx(value, abs=4) for pool, value in values.items()}
        assert expected == stage.ask(f"Silence survived, and fatal {letter}", *silences, UNUSED), letter


PINGED = Pool("pinged", options=PING)
NEVER_PINGED = Pool("never_pinged", options=PING)


@shows("What pre-ping costs A", "What pre-ping costs B")
def test_what_pre_ping_costs(stage: Stage) -> None:
    """Protects the price of pre-ping: pings as they were sent, and the mean of their times, absent without one."""
    for pool in (PINGED, NEVER_PINGED, UNUSED):
        stage.use(pool)
    for _ in range(4):
        stage.use(PINGED)
    stage.scraped()
    shown = stage.ask("What pre-ping costs A", PINGED, NEVER_PINGED, UNUSED)
    assert shown.pop("pinged") >= 4 / (RATE_MINUTES * 60)
    assert {"never_pinged": 0, "unused": 0} == shown
    assert {"pinged": 4} == stage.raw("pre_pings_total", PINGED)
    snapshot = stage.snapshot(PINGED)
    mean = snapshot.pre_ping_seconds_total / snapshot.pre_pings_total
    assert {"pinged": pytest.approx(mean)} == stage.ask("What pre-ping costs B", PINGED, NEVER_PINGED, UNUSED)
    assert mean > 0


AGAIN = Pool("again")
QUIET_HOUR = Pool("quiet_hour", wait_timeout=2)
FORGOTTEN = Pool("forgotten")


@pytest.mark.usefixtures("lost")
def test_the_alert(stage: Stage) -> None:
    """Protects users, and sleep: it fires for a limit that was reached and for what comes again, not for a restart."""
    stage.use(QUIET_HOUR)
    for attempt in range(3):
        kill_one_of_two(stage, AGAIN)
        meet(stage, AGAIN)
        stage.use_and_kill(FORGOTTEN)
        stage.pass_time(FORGOTTEN, 350)
        meet(stage, FORGOTTEN)
        if attempt == 1:
            lie_dead(stage, QUIET_HOUR)
            meet(stage, QUIET_HOUR)
        # As long as one of the stretches that the alert tells apart, and a scrape.
        time.sleep(6.5)
        stage.use(AGAIN, 2)
    expected = {"again killed in_use", "forgotten killed in_use", "quiet_hour inactivity in_use"}
    labels = ("pool", "cause", "phase")
    poll(lambda: expected <= stage.firing("SQLAlchemyPoolDisconnectErrors", *labels), seconds=PATIENCE)
    inactive = {f"{MET['inactivity'].name} inactivity in_use"}
    assert expected == stage.firing("SQLAlchemyPoolDisconnectErrors", *labels) - inactive
    # What was cut again and again after the same silence, and not what was killed at once.
    hidden = "SQLAlchemyPoolHiddenLimit"
    assert poll(lambda: {"forgotten"} == stage.firing(hidden, "pool"), seconds=PATIENCE), stage.firing(hidden, "pool")
