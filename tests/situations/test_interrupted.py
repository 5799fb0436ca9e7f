"""Callers who are cancelled, or run out of time, at every point where they can wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from stage import OLDEST, Interruptible
from support import quiet, run, use

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from stage import Stage

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("way", ["cancel", "expire"])]

FAILED = {"cancelled": 1}
SILENCE = 100.0


async def test_queueing(stage: Stage, way: str) -> None:
    """Whoever leaves the queue leaves no trace in it; the connection goes to the next."""
    engine = stage.engine(pool_size=1, max_overflow=0)
    async with engine.connect():
        caller = Interruptible(way, use(engine))
        await stage.pending()
        await caller.interrupt()
        assert caller.error == await caller.ended()
    await stage.check(idle=1, failures=FAILED)
    await use(engine)
    await stage.check(idle=1, failures=FAILED)


@pytest.mark.parametrize("handed", [True, False])
async def test_queueing_when_a_connection_comes_back(stage: Stage, way: str, *, handed: bool) -> None:
    """The interruption and the connection arrive in the same turn of the event loop, in either order."""
    engine = stage.engine(pool_size=1, max_overflow=0)
    held = await engine.connect()
    caller = Interruptible(way, use(engine))
    await stage.pending()
    returning = asyncio.create_task(held.close())
    if handed:
        await asyncio.sleep(0)
    await caller.interrupt()
    await returning
    ended = await caller.ended()
    snapshot = stage.watches[0].snapshot()
    assert snapshot.checkout_failures_total is not None
    gave_up = snapshot.checkout_failures_total["cancelled"]
    destroyed = snapshot.closes_total["cancelled"]
    # Who had it in hand when the interruption came may have lost it.
    assert gave_up + destroyed <= 1
    assert (gave_up or destroyed or 0) <= bool(ended)
    await stage.check({"cancelled": 1} if destroyed else {}, idle=1 - destroyed, failures=FAILED if gave_up else {})
    await use(engine)


async def _give_up(stage: Stage, way: str, engine: AsyncEngine) -> None:
    """Interrupt a caller who asks for a connection while the server answers nothing."""
    stage.freeze()
    caller = Interruptible(way, use(engine))
    await stage.pending()
    await caller.interrupt()
    stage.thaw()
    assert caller.error == await caller.ended()


@pytest.mark.parametrize("first", [True, False])
async def test_connecting(stage: Stage, way: str, *, first: bool) -> None:
    """A connection that was not established is not counted, the engine's first or a later one."""
    engine = stage.engine()
    held = None if first else await engine.connect()
    await _give_up(stage, way, engine)
    await stage.check(out=0 if first else 1, failures=FAILED)
    assert 0 == stage.watches[0].snapshot().connect_failures_total
    if held is not None:
        await held.close()


async def test_connecting_again(stage: Stage, way: str) -> None:
    """The connection that was to be replaced is gone, and the next caller fills its place."""
    engine = stage.engine(pool_recycle=60)
    await use(engine)
    stage.age()
    await _give_up(stage, way, engine)
    await stage.check({"recycle": 1}, failures=FAILED)
    await use(engine)
    await stage.check({"recycle": 1}, {"recycle": 1}, idle=1, failures=FAILED)


async def test_connecting_again_behind_the_guard(stage: Stage, way: str) -> None:
    """So it is with one that the guard has condemned, and the place in the pool is not lost."""
    engine, watched = stage.guarded(SILENCE, pool_size=1, max_overflow=0)
    await use(engine)
    quiet(watched, SILENCE)
    await _give_up(stage, way, engine)
    await use(engine)
    await stage.check({"guard_deadline": 1}, {"guard_deadline": 1}, idle=1, failures=FAILED)


async def test_pinging(stage: Stage, way: str) -> None:
    """An interrupted ping costs the connection."""
    engine = stage.engine(pool_pre_ping=True)
    await use(engine)
    await _give_up(stage, way, engine)
    await stage.check({"cancelled": 1}, failures=FAILED)
    await use(engine)
    await stage.check({"cancelled": 1}, {"cancelled": 1}, idle=1, failures=FAILED)


async def test_in_another_connect_listener(stage: Stage, way: str) -> None:
    """A connection lost while the application set it up was established, and failed."""
    engine = stage.engine()

    @event.listens_for(engine.sync_engine, "connect")
    def dawdle(dbapi: Any, _record: Any) -> None:
        cursor = dbapi.cursor()
        cursor.execute(stage.server.sleep)
        cursor.close()

    caller = Interruptible(way, use(engine))
    await stage.sleeping()
    await caller.interrupt()
    assert caller.error == await caller.ended()
    await stage.wake()
    await stage.check({"failed": 1}, failures=FAILED)


async def test_in_the_dialects_first_questions(stage: Stage, way: str) -> None:
    """So was one lost while the dialect asked the server what it is."""
    engine = stage.engine()
    initialize = engine.dialect.initialize

    def freeze(connection: Any) -> None:
        stage.freeze()
        initialize(connection)

    engine.dialect.initialize = freeze  # type: ignore[method-assign]
    caller = Interruptible(way, use(engine))
    await stage.freezing()
    await caller.interrupt()
    stage.thaw()
    # The oldest SQLAlchemy rolls back then, and raises what that raises.
    ended = await caller.ended()
    assert ended in {caller.error, *(["InterfaceError"] if OLDEST else [])}
    engine.dialect.initialize = initialize  # type: ignore[method-assign]
    # Nor does it close the connection, which asyncpg then keeps.
    kept = int(OLDEST and stage.driver.name == "asyncpg")
    await stage.check({"failed": 1}, beside=kept, failures=FAILED if ended == caller.error else {"other": 1})


@pytest.mark.only("aiomysql", "asyncmy")
async def test_in_the_limit_query(stage: Stage, way: str) -> None:
    """Our own query gives way like any statement: the connection is destroyed and the caller hears why."""
    engine = stage.engine()
    held = await engine.connect()

    @event.listens_for(engine.sync_engine, "connect")
    def freeze(_dbapi: Any, _record: Any) -> None:
        stage.freeze()

    caller = Interruptible(way, use(engine))
    await stage.freezing()
    await caller.interrupt()
    stage.thaw()
    assert caller.error == await caller.ended()
    await held.close()
    await stage.check({"cancelled": 1}, idle=1, failures=FAILED)


async def test_in_a_statement(stage: Stage, way: str) -> None:
    """A cancelled statement costs its connection and no other."""
    engine = stage.engine()
    await stage.fill(engine, 2)
    caller = Interruptible(way, use(engine, stage.server.sleep))
    await stage.sleeping()
    await caller.interrupt()
    assert caller.error == await caller.ended()
    await stage.wake()
    await stage.check({"cancelled": 1}, idle=1)
    async with engine.connect(), engine.connect():
        pass
    await stage.check({"cancelled": 1}, {"cancelled": 1}, idle=2)


async def test_in_a_statement_of_a_connection_that_is_kept(stage: Stage, way: str) -> None:
    """Whoever keeps the Connection gets another connection with the next statement."""
    engine = stage.engine()
    connection = await engine.connect()
    caller = Interruptible(way, run(connection, stage.server.sleep))
    await stage.sleeping()
    await caller.interrupt()
    assert caller.error == await caller.ended()
    await stage.wake()
    await stage.check({"cancelled": 1})
    await connection.rollback()
    await run(connection, "SELECT 1")
    await stage.check({"cancelled": 1}, {"cancelled": 1}, out=1)
    await connection.close()
    await stage.check({"cancelled": 1}, {"cancelled": 1}, idle=1)


async def _give_up_the_return(stage: Stage, way: str, connection: AsyncConnection) -> None:
    """Interrupt a return while the server answers nothing, and assert that it costs the connection."""
    stage.freeze()
    caller = Interruptible(way, connection.close())
    await stage.hear()
    await caller.interrupt()
    stage.thaw()
    assert caller.error == await caller.ended()
    await stage.check({"cancelled": 1})


async def test_in_close(stage: Stage, way: str) -> None:
    """An interrupted return costs the connection."""
    engine = stage.engine()
    connection = await engine.connect()
    await run(connection, "SELECT 1")
    await _give_up_the_return(stage, way, connection)


@pytest.mark.only("aiomysql", "asyncmy")
async def test_in_the_pools_own_rollback(stage: Stage, way: str) -> None:
    """So does an interruption of what the pool itself sends after a commit, where the driver sends anything then."""
    engine = stage.engine()
    connection = await engine.connect()
    await run(connection, "SELECT 1")
    await connection.commit()
    await _give_up_the_return(stage, way, connection)


async def test_in_the_end_of_a_with_block(stage: Stage, way: str) -> None:
    """The return at the end of a ``with`` block is shielded: the caller hears of it, the connection survives."""
    engine = stage.engine()

    async def use_and_freeze() -> None:
        async with engine.connect() as connection:
            await run(connection, "SELECT 1")
            stage.freeze()

    caller = Interruptible(way, use_and_freeze())
    await stage.freezing()
    await caller.interrupt()
    stage.thaw()
    assert caller.error == await caller.ended()
    # SQLAlchemy 2.0.31 leaves the return running behind the caller's back.
    await stage.hear()
    await stage.check(idle=1)
