"""The panels and the alert on inactivity limits show when the server closes what, and what is protected from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from panels_app import Pool, pools_of
from panels_stage import PATIENCE, Stage, staged
from panels_support import TARGETS, Span, during, shows
from poolwatch.demo.servers import poll

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolwatch.demo.servers import MariaDB

pytestmark = pytest.mark.tooling

PINGED = Pool("pinged", options={"pool_pre_ping": True})
BARE = Pool("bare")
OPERATOR = {"inactivity_limit": 0.5}
EXPIRED = Pool("expired", watching=OPERATOR)
HELD = Pool("held", watching=OPERATOR)
HELD_NEAR = Pool("held_near")
HELD_SOON = Pool("held_soon")
DOOMED = Pool("doomed", wait_timeout=4)
NEAR = Pool("near")
SOON = Pool("soon")
NEAR_PINGED = Pool("near_pinged", options={"pool_pre_ping": True})


@pytest.fixture(scope="module")
def stage(mariadb: MariaDB, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Serve all pools of this module."""
    with staged(mariadb, pools_of(request.module)) as stage:
        yield stage


@pytest.fixture(scope="module", autouse=True)
def used(stage: Stage) -> dict[Pool, Span]:
    """Begin what takes its time before the first test; return when pools were used for the last time."""
    stage.use_and_kill(PINGED)
    stage.use_and_kill(BARE)
    spans = {pool: during(stage.use, pool) for pool in (DOOMED, EXPIRED, NEAR, NEAR_PINGED, SOON)}
    for pool, seconds in {NEAR: 950, NEAR_PINGED: 950, SOON: 800}.items():
        stage.pass_time(pool, seconds)
    stage.take(HELD_NEAR, 3)
    stage.pass_time(HELD_NEAR, 950)
    stage.take(HELD_SOON)
    stage.pass_time(HELD_SOON, 800)
    return spans | {HELD: during(stage.take, HELD)}


KEPT = Pool("kept", wait_timeout=100)
LATER = Pool("later", wait_timeout=200)
LAST = Pool("last", wait_timeout=300)
LATEST = Pool("latest", wait_timeout=400)
RENEWED = Pool("renewed", wait_timeout=100, options={"pool_recycle": 60})
OUT = Pool("out", wait_timeout=100)
MOMENT = "({}) + time()"


@shows(
    *(f"Closed next by the server {letter}" for letter in "ABC"),
    *(f"Share of the idle limit left {letter}" for letter in "AB"),
    *(f"Next unprotected close in {letter}" for letter in "AB"),
)
def test_what_the_server_closes_next(stage: Stage, used: dict[Pool, Span]) -> None:
    """Protects the moment and the share of each limit, the choice of the nearest, and what counts as protected."""
    bare = (KEPT, LATER, LAST, LATEST)
    last = {pool: during(stage.use, pool).after(pool.wait_timeout) for pool in (*bare, RENEWED)}
    last[OUT] = during(stage.take, OUT).after(OUT.wait_timeout)
    stage.scraped()
    nearest = stage.ask("Closed next by the server A", *last, around=MOMENT)
    rows = {f"{pool.name} false idle": pool for pool in (KEPT, LATER, LAST)}
    rows |= {"out false checked_out": OUT, "renewed true idle": RENEWED}
    assert rows.keys() == nearest.keys()
    for row, pool in rows.items():
        assert last[pool].holds(nearest[row]), row
    for letter, expected in {"B": [KEPT, LATER, LAST], "C": [RENEWED]}.items():
        names = {pool.name for pool in expected}
        assert names == {key.split()[0] for key in stage.ask(f"Closed next by the server {letter}", *last)}
    for panel, pool in (
        ("Closed next by the server B", LAST),
        ("Closed next by the server C", RENEWED),
        ("Share of the idle limit left A", LATEST),
        ("Share of the idle limit left B", RENEWED),
        ("Next unprotected close in B", KEPT),
    ):
        assert last[pool].holds(stage.one(panel, pool, around=f"({{}}) * {pool.wait_timeout} + time()")), panel
    assert {pool.name for pool in bare} == stage.ask("Share of the idle limit left A", *last).keys()
    assert {RENEWED.name} == stage.ask("Share of the idle limit left B", *last).keys()
    assert last[KEPT].holds(stage.one("Next unprotected close in A", *last, around=MOMENT))
    assert used[EXPIRED].after(0.5).holds(stage.one("Next unprotected close in A", *last, EXPIRED, around=MOMENT))
    around = "({}) * 0.5 + time()"
    assert used[EXPIRED].after(0.5).holds(stage.one("Next unprotected close in B", *last, EXPIRED, around=around))
    for letter in "AB":
        assert {} == stage.ask(f"Next unprotected close in {letter}", OUT, RENEWED, PINGED)
        assert 0 == stage.one(f"Next unprotected close in {letter}", OUT, RENEWED, PINGED, BARE)


UNREAD = Pool("unread", watching={"server_limits": False})
SAFE = Pool("safe")


@shows(
    *(f"Connections by timeout risk {letter}" for letter in "ABCDEFGH"),
    *(f"Near the limit, or dead {letter}" for letter in "AC"),
    "Idle time at checkout, and limits B",
)
def test_risk_classes(stage: Stage) -> None:
    """Protects the classes: near a limit, past it, closed, protected from that, without a known limit, and safe."""
    stage.use(UNREAD)
    stage.use(SAFE)
    classes = {
        "A": ("dead", [BARE]),
        "B": ("expired", [EXPIRED, HELD]),
        "C": ("imminent", [NEAR, HELD_NEAR]),
        "D": ("soon", [SOON, HELD_SOON]),
        "E": ("unknown", [UNREAD]),
        "F": ("dead, protected", [PINGED]),
        "G": ("protected", [NEAR_PINGED]),
        "H": ("safe", [SAFE]),
    }
    pools = [pool for _, members in classes.values() for pool in members]
    for letter, (name, members) in classes.items():
        panel = f"Connections by timeout risk {letter}"
        assert TARGETS[panel]["legendFormat"].startswith(f"{name} ")
        expected = {pool.name: (3 if pool is HELD_NEAR else 1) * (pool in members) for pool in pools}
        assert expected == stage.until(expected, panel, *pools), name
    assert {"": 2} == stage.ask("Near the limit, or dead A", *pools)
    assert {"": 4} == stage.ask("Near the limit, or dead C", *pools)
    assert {"": 0} == stage.ask("Near the limit, or dead A", BARE, PINGED, NEAR_PINGED, SOON, SAFE, UNREAD, HELD)
    limits = {"expired configured": 0.5, "expired wait_timeout": 1000, "safe wait_timeout": 1000}
    assert limits == stage.ask("Idle time at checkout, and limits B", EXPIRED, SAFE, UNREAD)


@shows(
    "Next unprotected close in A",
    "Connections by timeout risk A",
    "Connections by timeout risk H",
)
def test_the_server_keeps_the_moment_shown(stage: Stage, used: dict[Pool, Span]) -> None:
    """Protects the trust in the countdown: the server closes then, and not before, without a query from us."""
    deadline = used[DOOMED].after(DOOMED.wait_timeout)
    assert {"doomed": 1} == stage.until({"doomed": 1}, "Connections by timeout risk A", DOOMED)
    assert 0 == stage.one("Next unprotected close in A", DOOMED)
    for extreme in ("min", "max"):
        around = f"{extreme}_over_time(((({{}}) != 0) + time())[10m:500ms])"
        assert deadline.holds(stage.one("Next unprotected close in A", DOOMED, around=around))
    safe = stage.one("Connections by timeout risk H", DOOMED, around="max_over_time(({})[10m:500ms])")
    assert 1 == safe
    # Another sample, since the step of what follows may end before the last one.
    stage.scraped()
    seen = "min_over_time((({} == 1) * time())[10m:500ms])"
    assert deadline.begin <= stage.one("Connections by timeout risk A", DOOMED, around=seen)


HALF_DEAD = Pool("half_dead")


@shows("Near the limit, or dead B", "Connections by timeout risk F")
def test_dead_connections(stage: Stage) -> None:
    """Protects the warning in time: what lies dead shows before anyone meets it, and apart where it is replaced."""
    first, _ = stage.use(HALF_DEAD, 2)
    stage.mariadb.kill(first)
    for pools, unprotected, protected in (([HALF_DEAD], 1, 0), ([PINGED], 0, 1), ([HALF_DEAD, BARE, PINGED], 2, 1)):
        assert {"": unprotected} == stage.until({"": unprotected}, "Near the limit, or dead B", *pools)
        expected = {pool.name: protected if pool is PINGED else 0 for pool in pools}
        assert expected == stage.until(expected, "Connections by timeout risk F", *pools)
    assert {"": 0} == stage.ask("Near the limit, or dead B", NEAR, EXPIRED, HELD, SAFE)


def test_the_alert(stage: Stage) -> None:
    """Protects sleep: it fires for what is near its limit or past it, not where pre-ping is on nor for what is dead."""
    loud, quiet = (NEAR, EXPIRED), (NEAR_PINGED, PINGED, SOON, HELD, HELD_NEAR, SAFE, BARE)
    assert_alert(stage, "SQLAlchemyPoolConnectionsNearServerTimeout", loud, quiet)


def test_the_alert_on_dead_connections(stage: Stage) -> None:
    """Protects the next request: it fires for what was closed and will be handed out, and not where pre-ping is on."""
    assert_alert(stage, "SQLAlchemyPoolDeadConnections", [BARE], (PINGED, NEAR, EXPIRED, HELD, SAFE))


def assert_alert(stage: Stage, alert: str, loud: Sequence[Pool], quiet: Sequence[Pool]) -> None:
    """Assert that *alert* comes to fire for *loud* pools and does not for *quiet* ones."""
    expected = {pool.name for pool in loud}
    poll(lambda: expected <= stage.firing(alert, "pool"), seconds=PATIENCE)
    assert expected == stage.firing(alert, "pool") & {pool.name for pool in (*loud, *quiet)}
