"""The panels and alerts on servers, settings, processes and single connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from panels_app import Pool, pools_of
from panels_scenes import dispose
from panels_stage import PATIENCE, Stage, staged
from panels_support import during, shows
from poolwatch.demo.servers import MariaDB, poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.tooling

ACCEPTED = 16
WIDE = Pool("wide", options={"pool_size": 12, "max_overflow": 3, "pool_recycle": 300, "pool_timeout": 7})
ENDLESS = Pool("endless", options={"max_overflow": -1, "pool_pre_ping": True, "pool_use_lifo": True})
SINGLE = Pool(
    "single",
    options={"pool_size": 1, "max_overflow": 1},
    watching={"per_connection": True, "inactivity_limit": 500},
)
UNREAD = Pool("unread", watching={"server_limits": False}, options={"pool_size": 0})
SERVERS, SHARES, SETTINGS = "Connections of each server", "Share of max_connections", "Settings"


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Serve all pools of this module, on a server that accepts few connections."""
    with MariaDB(max_connections=ACCEPTED) as server, staged(server, pools_of(request.module)) as stage:
        yield stage


@shows(*(f"{SERVERS} {letter}" for letter in "ABC"), *(f"{SHARES} {letter}" for letter in "ABC"))
def test_a_server_that_is_nearly_full(stage: Stage) -> None:
    """Protects everybody else on the server: what is open and possible against what it accepts, and the alerts."""
    # At a local address, every host has another one.
    server = f"127.0.0.1:{stage.mariadb.port} at 127.0.0.1"
    taken = stage.take(WIDE, 13)
    stage.use(ENDLESS, 2)
    open_, possible = 15, 17
    for pools, held, most in (([WIDE], 13, 15), ([SINGLE], 0, 2), ([WIDE, SINGLE, ENDLESS], open_, possible)):
        assert {server: held} == stage.until({server: held}, f"{SERVERS} A", *pools)
        assert {server: most} == stage.ask(f"{SERVERS} B", *pools)
    assert {} == stage.ask(f"{SERVERS} B", ENDLESS)
    assert {server: ACCEPTED} == stage.ask(f"{SERVERS} C") == stage.ask(f"{SHARES} C")
    assert {} == stage.ask(f"{SERVERS} C", UNREAD)
    assert {server: open_ / ACCEPTED} == stage.ask(f"{SHARES} A", WIDE, SINGLE, ENDLESS)
    assert {server: possible / ACCEPTED} == stage.ask(f"{SHARES} B", WIDE, SINGLE, ENDLESS)
    full, over = "SQLAlchemyPoolServerNearlyFull", "SQLAlchemyPoolFleetOverServer"
    assert poll(lambda: {server} == stage.firing(full, "server") == stage.firing(over, "server"), seconds=PATIENCE)
    stage.give_back(taken)
    stage.do(dispose, WIDE)
    assert poll(lambda: not stage.firing(full, "server"), seconds=PATIENCE)


@shows(*(f"{SETTINGS} {letter}" for letter in "ABCDEF"), "Checks that fail A", "Processes that report A")
def test_settings(stage: Stage) -> None:
    """Protects the comparison of pools: each setting and the shorter of two limits, empty where there is none."""
    for pool in (WIDE, SINGLE, UNREAD, ENDLESS):
        stage.use(pool)
    stage.scraped()
    server = f"127.0.0.1:{stage.mariadb.port}"
    pools = {
        f"aiomysql false {str(lively).lower()} {pool.name} {str(lively).lower()} {server}": pool
        for pool, lively in ((WIDE, False), (SINGLE, False), (UNREAD, False), (ENDLESS, True))
    }
    shown = {
        "A": dict.fromkeys(pools.values(), 1),
        "B": {WIDE: 12, SINGLE: 1, ENDLESS: 5},
        "C": {WIDE: 15, SINGLE: 2},
        "D": {WIDE: 300},
        "E": {WIDE: 7, SINGLE: 30, UNREAD: 30, ENDLESS: 30},
        "F": {WIDE: 1000, SINGLE: 500, ENDLESS: 1000},
    }
    for letter, values in shown.items():
        assert values == {pools[row]: value for row, value in stage.ask(f"{SETTINGS} {letter}").items()}, letter
    assert {pool.name: 1 for pool in pools.values()} == stage.ask("Processes that report A")
    failing = {
        "recycle_unprotected single": 1,
        "limit_unknown unread": 1,
        "unlimited_overflow unread": 1,
        "unlimited_overflow endless": 1,
    }
    assert failing == stage.until(failing, "Checks that fail A")
    checks = {tuple(reversed(row.split())) for row in failing}
    firing = "SQLAlchemyPoolConfigProblem"
    assert poll(lambda: {tuple(x.split()) for x in stage.firing(firing, "pool", "check")} == checks, seconds=PATIENCE)


async def connected(engine: AsyncEngine) -> None:
    """Take a connection and give it back."""
    async with engine.connect():
        pass


@shows(
    "Fullest processes A",
    "Processes with the most callers waiting A",
    "Processes nearest to the idle limit A",
)
def test_the_odd_process(stage: Stage) -> None:
    """Protects the way from a fleet to a process: the fullest, the one where callers queue, the one closed next."""
    waiting = "Processes with the most callers waiting A"
    used = during(stage.use, WIDE)
    assert {} == stage.ask(waiting, SINGLE)
    taken = stage.take(SINGLE, 2)
    callers = [stage.begin(connected, SINGLE) for _ in range(2)]
    assert poll(lambda: stage.snapshot(SINGLE).pending_checkouts == 2, seconds=PATIENCE)
    stage.scraped()
    assert {"single": 2} == stage.ask(waiting, SINGLE, UNREAD)
    for pools, fullest in (([SINGLE, WIDE], {"single": 1, "wide": 0}), ([ENDLESS], {"endless": 0})):
        assert fullest == stage.ask("Fullest processes A", *pools)
    # It is protected by its recycling, and the nearest by far; a held one is in another panel.
    nearest = stage.ask("Processes nearest to the idle limit A", WIDE, SINGLE, around="({}) + time()")
    assert {"wide true"} == nearest.keys()
    assert used.after(1000).holds(nearest["wide true"])
    for caller in callers:
        caller.cancel()
    stage.give_back(taken)


@shows(
    "Silence of each connection A",
    "Silence of each connection B",
    *(f"Each connection {letter}" for letter in "ABC"),
)
def test_each_connection(stage: Stage) -> None:
    """Protects the view of one connection that nobody takes, on its way to the shorter of two limits."""
    used = during(stage.use, SINGLE)
    stage.pass_time(SINGLE, 100)
    stage.scraped()
    now = "time() - ({})"
    for panel, around, moment in (
        ("Silence of each connection A", now, used.after(-100)),
        ("Each connection A", "({}) + time()", used.after(400)),
        ("Each connection B", now, used.after(-100)),
    ):
        shown = stage.ask(panel, around=around)
        assert {"single 0"} == shown.keys()
        assert moment.holds(shown["single 0"]), panel
    assert 100 < stage.one("Each connection C") < 200
    assert {"single": 500, "wide": 1000} == stage.ask("Silence of each connection B", SINGLE, WIDE)
