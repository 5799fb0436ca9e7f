"""Watches that come late, go and come again, and engines that share or lose what is watched."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest
from prometheus_client import generate_latest
from sqlalchemy import create_engine, exc, text
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from databases import open_handles
from handles import assert_held, assert_true
from poolwatch import WatchClosedError, watch
from support import assert_books, assert_true_on, fill, moved, run, until, use

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio

PLAIN = {"ssl_disabled": True}


async def _waits(engine: AsyncEngine) -> asyncio.Task[AsyncConnection]:
    """Return a caller who stands in the queue."""
    waiting = asyncio.create_task(engine.connect().start())
    await until(lambda: bool(engine.pool._pool._queue._getters), "a caller who waits")  # type: ignore[attr-defined]
    return waiting


@pytest.mark.parametrize(
    ("idle", "held", "queued"),
    [(0, 0, 0), (2, 0, 0), (0, 2, 0), (1, 1, 0), (0, 3, 0), (0, 3, 1)],
    ids=["nothing", "idle", "held", "mixed", "overflow", "waiting"],
)
async def test_adopted(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry, idle: int, held: int, queued: int
) -> None:
    """What is open counts as one connect each, what is out as one checkout each, and goes on as if always watched."""
    engine = make_engine(pool_size=2, max_overflow=1)
    holds = [await engine.connect() for _ in range(held + idle)]
    for _ in range(idle):
        await holds.pop().close()
    waiting = [await _waits(engine) for _ in range(queued)]
    watched = watch(engine, registry=registry)
    snapshot = await assert_true_on(mariadb, watched)
    assert open_handles() == idle + held == snapshot.connects_total
    assert (held, held) == (snapshot.checkouts_total, snapshot.connections["checked_out"])
    for each in holds:
        await run(each, "SELECT 1")
        await each.close()
    for caller in waiting:
        second = await caller
        # Read while it is out: when its caller began to wait nobody was there to count it.
        assert 1 == (await assert_true_on(mariadb, watched)).connections["checked_out"]
        await second.close()
    await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert held + queued + 1 == snapshot.checkouts_total
    assert ({"overflow": 1} if held == 3 else {}) == moved(snapshot.closes_total)


async def test_pinged_before_it_was_known(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """The ping of an idle connection that was there before us is activity, though nothing else is asked."""
    engine = make_engine(pool_pre_ping=True)
    await use(engine)
    watched = watch(engine, registry=registry, server_limits=False)
    async with engine.connect():
        (slot,) = watched._ledger.slots.values()
        assert slot.active is not None


async def test_held_before_and_lost_after(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry
) -> None:
    """A connection that was held before we watched is lost for the same reason as any other."""
    engine = make_engine()
    connection = await engine.connect()
    number = await run(connection, "SELECT CONNECTION_ID()")
    assert isinstance(number, int)
    watched = watch(engine, registry=registry)
    mariadb.kill(number)
    with pytest.raises(exc.OperationalError):
        await run(connection, "SELECT 1")
    await connection.close()
    assert {"disconnect": 1} == moved((await assert_true_on(mariadb, watched)).closes_total)


@pytest.mark.parametrize("again", [1, 2])
async def test_closed_and_opened_again(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry, again: int
) -> None:
    """Connections that are held across begin in the new books as adopted, however often that happens."""
    engine = make_engine()
    await fill(engine, 2)
    async with engine.connect() as held:
        watched = watch(engine, registry=registry)
        for _ in range(again):
            watched.close()
            await run(held, "SELECT 1")
            watched = watch(engine, registry=registry)
        snapshot = await assert_true_on(mariadb, watched)
        assert (2, 1, 1) == (snapshot.connects_total, snapshot.checkouts_total, snapshot.connections["checked_out"])
    await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert (2, 2, 2) == (snapshot.connects_total, snapshot.checkouts_total, snapshot.hold_duration_seconds.count)
    watched.close()
    assert AsyncAdaptedQueuePool is type(engine.pool)


@pytest.mark.parametrize("again", [1, 2])
async def test_closed_and_opened_while_one_waits(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry, again: int
) -> None:
    """A caller who queued in the old watch's time is no checkout of the new one's, but holds a connection in it."""
    engine = make_engine(pool_size=1, max_overflow=0)
    watched = watch(engine, registry=registry)
    held = await engine.connect()
    waiting = await _waits(engine)
    for _ in range(again):
        watched.close()
        watched = watch(engine, registry=registry)
    await held.close()
    second = await waiting
    snapshot = await assert_true_on(mariadb, watched)
    assert (1, 1) == (snapshot.connects_total, snapshot.connections["checked_out"])
    await second.close()
    await use(engine)
    await assert_true_on(mariadb, watched)
    watched.close()
    assert AsyncAdaptedQueuePool is type(engine.pool)
    assert [] == list(engine.pool.dispatch.checkout)


async def test_two_engines(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Two engines of one registry have books of their own, and the end of one changes nothing in the other's."""
    engines = [make_engine(pool_logging_name=name) for name in ("first", "second")]
    first, second = (watch(engine, registry=registry) for engine in engines)
    await fill(engines[0], 3)
    async with engines[1].connect() as held:
        await run(held, "SELECT 1")
        await engines[0].dispose()
        assert {"disposed": 3} == moved(first.snapshot().closes_total)
        assert_books(first.snapshot())
        snapshot = await assert_true_on(mariadb, second)
        assert (1, {}) == (snapshot.checkouts_total, moved(snapshot.closes_total))
    first.close()
    await use(engines[1])
    assert 2 == (await assert_true_on(mariadb, second)).checkouts_total
    exported = generate_latest(registry)
    assert b'pool="first"' not in exported
    assert b'pool="second"' in exported


@pytest.mark.parametrize("through_clone", [True, False])
async def test_clones(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry, *, through_clone: bool
) -> None:
    """What a clone of an engine does counts, and it does not matter which of them is disposed of."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    clone = engine.execution_options(isolation_level="AUTOCOMMIT")
    await use(engine)
    (slot,) = watched._ledger.slots.values()
    async with clone.connect() as connection:
        before = slot.active
        await run(connection, "SELECT 1")
        assert before is not None
        assert slot.active is not None
        assert before < slot.active
    assert 2 == (await assert_true_on(mariadb, watched)).checkouts_total
    await (clone if through_clone else engine).dispose()
    assert {"disposed": 1} == moved((await assert_true_on(mariadb, watched)).closes_total)
    await use(clone)
    await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    # SQLAlchemy gives the new pool to whichever was disposed of; a clone and its engine share one.
    assert (4, 2) == (snapshot.checkouts_total, snapshot.connects_total)


@pytest.mark.parametrize("through_clone", [True, False])
def test_sync_clones(mariadb: MariaDB, registry: CollectorRegistry, *, through_clone: bool) -> None:
    """The same of a sync engine."""
    engine = create_engine(mariadb.url("pymysql"), connect_args=PLAIN)
    watched = watch(engine, registry=registry)
    clone = engine.execution_options(isolation_level="AUTOCOMMIT")
    for each in (engine, clone):
        with each.connect() as connection:
            connection.execute(text("SELECT 1"))
    assert 2 == assert_true(mariadb, watched).checkouts_total
    (clone if through_clone else engine).dispose()
    assert {"disposed": 1} == moved(assert_true(mariadb, watched).closes_total)
    with clone.connect(), engine.connect():
        assert_true(mariadb, watched)
    assert (4, 3) == (watched.snapshot().checkouts_total, watched.snapshot().connects_total)
    engine.dispose()
    assert_true(mariadb, watched)


def test_dropped_without_dispose(mariadb: MariaDB, registry: CollectorRegistry) -> None:
    """An engine that is dropped with connections in its pool ends its watch, its series and its connections."""
    engine = create_engine(mariadb.url("pymysql"), connect_args=PLAIN)
    watched = watch(engine, registry=registry)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert_held(watched)
    del connection, engine
    gc.collect()
    assert 0 == open_handles()
    assert b"sqlalchemy_pool_size{" not in generate_latest(registry)
    with pytest.raises(WatchClosedError):
        watched.snapshot()
    watched.close()


def test_dropped_while_held(mariadb: MariaDB, registry: CollectorRegistry) -> None:
    """A connection that outlives its engine's last name keeps the engine, and its books stay true until it is back."""
    watched = watch(engine := create_engine(mariadb.url("pymysql"), connect_args=PLAIN), registry=registry)
    connection = engine.connect()
    del engine
    gc.collect()
    assert 1 == assert_true(mariadb, watched).connections["checked_out"]
    connection.close()
    del connection
    gc.collect()
    with pytest.raises(WatchClosedError):
        watched.snapshot()
    assert QueuePool.connect.__module__.startswith("sqlalchemy.")
