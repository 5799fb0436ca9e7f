"""What a snapshot says of connections in each of their states, by MariaDB's own process list."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, exc

from poolwatch import watch
from support import age, assert_true_on, fill, moved, run, until, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio


async def test_ordinary_use(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A connection is opened once, used twice, and idle afterwards."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    await use(engine)
    await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert {"checked_out": 0, "idle": 1, "condemned": 0, "dead": 0} == snapshot.connections
    assert (1, 2) == (snapshot.connects_total, snapshot.checkouts_total)
    assert (1, 2, 1) == (
        snapshot.connect_duration_seconds.count,
        snapshot.hold_duration_seconds.count,
        snapshot.idle_duration_seconds.count,
    )
    assert {} == moved(snapshot.closes_total)


async def test_held_connections(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A held connection counts as checked out and the moment it was taken is exported."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        snapshot = await assert_true_on(mariadb, watched)
        assert 1 == snapshot.connections["checked_out"]
        assert (
            snapshot.oldest_connection_timestamp_seconds
            <= snapshot.longest_hold_timestamp_seconds
            <= watched._ledger.wall()
        )
    assert float("inf") == watched.snapshot().longest_hold_timestamp_seconds


async def test_overflow_of_old_connections(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry
) -> None:
    """A connection above pool_size is closed as overflow even if the next checkout would have replaced it."""
    engine = make_engine(pool_size=1, max_overflow=1, pool_recycle=60)
    watched = watch(engine, registry=registry)
    held = [await engine.connect() for _ in range(2)]
    age(watched, 61)
    for each in held:
        await each.close()
    assert {"overflow": 1} == moved((await assert_true_on(mariadb, watched)).closes_total)


async def test_killed_while_idle(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A killed connection is dead before anybody uses it; the user who meets it condemns the others."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    first, *_ = await fill(engine, 3)
    mariadb.kill(first)
    await until(lambda: watched.snapshot().connections["dead"] == 1, "a dead connection")
    assert 1 == (await assert_true_on(mariadb, watched)).timeout_risk_connections["idle", "dead"]
    with pytest.raises(exc.OperationalError):
        await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert {"idle": 0, "condemned": 2} == {key: snapshot.connections[key] for key in ("idle", "condemned")}
    assert 2 == snapshot.timeout_risk_connections["idle", "safe"]
    for _ in range(3):
        await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert {"disconnect": 1, "pool_invalidated": 2} == moved(snapshot.closes_total)
    assert {"disconnect": 1, "pool_invalidated": 2} == moved(snapshot.reconnects_total)
    assert {"hard": 1, "soft": 0, "pool": 1} == snapshot.invalidations_total


@pytest.mark.parametrize("recycle", [-1, 3600])
async def test_all_killed(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry, recycle: int) -> None:
    """Dead connections are at risk however short pool_recycle is, until a user's error condemns them all."""
    engine = make_engine(pool_recycle=recycle)
    watched = watch(engine, registry=registry)
    for number in await fill(engine, 3):
        mariadb.kill(number)
    await until(lambda: watched.snapshot().connections["dead"] == 3, "dead connections")
    assert 3 == watched.snapshot().timeout_risk_connections["idle", "dead"]
    with pytest.raises(exc.OperationalError):
        await use(engine)
    snapshot = watched.snapshot()
    assert 2 == snapshot.connections["dead"] == snapshot.timeout_risk_connections["idle", "protected"]
    for _ in range(2):
        await use(engine)
    await assert_true_on(mariadb, watched)


async def test_killed_with_pre_ping(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """With pre-ping nobody meets a killed connection, and the books say that the ping found it."""
    engine = make_engine(pool_pre_ping=True)
    watched = watch(engine, registry=registry)
    first, *_ = await fill(engine, 2)
    mariadb.kill(first)
    await until(lambda: watched.snapshot().connections["dead"] == 1, "a dead connection")
    assert 1 == watched.snapshot().timeout_risk_connections["idle", "protected"]
    await use(engine)
    await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert {"pre_ping": 1, "pool_invalidated": 1} == moved(snapshot.closes_total)
    assert {"hard": 1, "soft": 0, "pool": 1} == snapshot.invalidations_total
    assert "true" == snapshot.info["pre_ping"]


async def test_wait_timeout(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A connection that the server drops after its session's wait_timeout is seen dead without a query."""
    engine = make_engine()
    watched = watch(engine, registry=registry)

    @event.listens_for(engine.sync_engine, "connect")
    def shorten(dbapi: Any, _record: Any) -> None:
        cursor = dbapi.cursor()
        cursor.execute("SET SESSION wait_timeout = 1")
        cursor.close()

    await use(engine)
    assert 1.0 == watched.snapshot().inactivity_limit_seconds["wait_timeout"]
    await until(lambda: watched.snapshot().connections["dead"] == 1, "a dead connection")
    await assert_true_on(mariadb, watched)
    with pytest.raises(exc.OperationalError):
        await use(engine)
    await use(engine)
    assert {"disconnect": 1} == moved((await assert_true_on(mariadb, watched)).reconnects_total)


async def test_recycle(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A connection older than pool_recycle is condemned, then replaced by the next checkout."""
    engine = make_engine(pool_recycle=60)
    watched = watch(engine, registry=registry)
    await use(engine)
    age(watched, 61)
    assert {"idle": 0, "condemned": 1} == {key: watched.snapshot().connections[key] for key in ("idle", "condemned")}
    await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert {"recycle": 1} == moved(snapshot.closes_total) == moved(snapshot.reconnects_total)
    assert 60.0 == snapshot.recycle_seconds


@pytest.mark.parametrize(
    ("soft", "reason", "kind"), [(False, "invalidated", "hard"), (True, "soft_invalidated", "soft")]
)
async def test_invalidate(
    mariadb: MariaDB,
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    *,
    soft: bool,
    reason: str,
    kind: str,
) -> None:
    """invalidate() closes at once, softly at the next checkout, and says which."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        raw = await connection.get_raw_connection()
        raw.invalidate(soft=soft)
    await assert_true_on(mariadb, watched)
    assert (1 if soft else 0) == watched.snapshot().connections["condemned"]
    await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert {reason: 1} == moved(snapshot.closes_total) == moved(snapshot.reconnects_total)
    assert {kind: 1} == moved(snapshot.invalidations_total)


async def test_dispose(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """dispose() closes what is idle; what is out at that moment stays counted until it comes back."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    await fill(engine, 3)
    held = await engine.connect()
    await engine.dispose()
    snapshot = await assert_true_on(mariadb, watched)
    assert {"disposed": 2} == moved(snapshot.closes_total)
    assert {"checked_out": 1, "idle": 0, "condemned": 0, "dead": 0} == snapshot.connections
    await held.close()
    # It lies in the pool that dispose() left behind, where nobody can reach it, until that is collected.
    snapshot = await assert_true_on(mariadb, watched, beside=1)
    assert {"disposed": 3} == moved(snapshot.closes_total)
    await use(engine)
    assert 1 == watched.snapshot().connections["idle"]
    del held
    gc.collect()
    await assert_true_on(mariadb, watched)
