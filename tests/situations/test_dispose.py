"""Engines that are disposed of, with connections idle, out and on their way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import exc

from stage import ending
from support import run, use

if TYPE_CHECKING:
    from stage import Stage

pytestmark = pytest.mark.anyio


async def test_idle(stage: Stage) -> None:
    """Every idle connection is closed, and the next pool is watched like the first."""
    engine = stage.engine()
    await stage.fill(engine, 3)
    await engine.dispose()
    await stage.check({"disposed": 3})
    await use(engine)
    await stage.check({"disposed": 3}, idle=1)


async def test_checked_out(stage: Stage) -> None:
    """One that is out stays out, and is the pool's no longer when it comes back."""
    engine = stage.engine()
    await stage.fill(engine, 2)
    connection = await engine.connect()
    await engine.dispose()
    await stage.check({"disposed": 1}, out=1)
    await connection.close()
    # Before the old pool is collected, and after.
    assert 2 == stage.watches[0].snapshot().closes_total["disposed"]
    del connection
    await stage.check({"disposed": 2}, dropped=1)


async def test_not_closed(stage: Stage) -> None:
    """Idle connections that a dispose leaves to the garbage collector are no longer the pool's."""
    engine = stage.engine()
    await stage.fill(engine, 3)
    connection = await engine.connect()
    await engine.dispose(close=False)
    await stage.check({"disposed": 2}, out=1, beside=2)
    await connection.close()
    del connection
    await stage.check({"disposed": 3}, dropped=3)


async def test_expired(stage: Stage) -> None:
    """Connections that are old enough to be recycled are still disposed of."""
    engine = stage.engine(pool_recycle=60)
    await stage.fill(engine, 2)
    stage.age()
    await engine.dispose()
    await stage.check({"disposed": 2})


async def test_waiting(stage: Stage) -> None:
    """A caller who waits stays with the old pool, and gets its connection."""
    engine = stage.engine(pool_size=1, max_overflow=0)
    held = await engine.connect()
    waiting = asyncio.create_task(use(engine))
    await stage.pending()
    await engine.dispose()
    await held.close()
    del held
    assert 1 == await waiting
    del waiting
    await stage.check({"disposed": 1}, dropped=1)
    assert 2 == stage.watches[0].snapshot().checkouts_total


async def test_connecting(stage: Stage) -> None:
    """One that is being established meanwhile works, and is the old pool's."""
    engine = stage.engine()
    await use(engine)
    held = await engine.connect()
    stage.freeze()
    connecting = asyncio.create_task(use(engine))
    await stage.pending()
    await engine.dispose()
    stage.thaw()
    assert 1 == await connecting
    await held.close()
    del held, connecting
    await stage.check({"disposed": 2}, dropped=2)


async def test_overflow(stage: Stage) -> None:
    """The old pool still keeps as many as it has places for, and closes the others."""
    engine = stage.engine(pool_size=1, max_overflow=2)
    connections = [await engine.connect() for _ in range(3)]
    await engine.dispose()
    while connections:
        await connections.pop().close()
    await stage.check({"overflow": 2, "disposed": 1}, dropped=1)


async def test_dropped_engine(stage: Stage) -> None:
    """An engine that is dropped takes its connections with it, and the watch ends without an error."""
    engine = stage.engine()
    await stage.fill(engine, 3)
    await stage.check(idle=3)
    stage.drop_engines()
    del engine
    await stage.settle(0)
    assert None is stage.watches.pop().engine


async def test_disposed_again(stage: Stage) -> None:
    """A pool that was never used, and one that is exhausted, are disposed of alike."""
    engine = stage.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    await engine.dispose()
    held = await engine.connect()
    await run(held, "SELECT 1")
    assert isinstance(await ending(use(engine)), exc.TimeoutError)
    await engine.dispose()
    await use(engine)
    await stage.check(idle=1, out=1, failures={"timeout": 1})
    await held.close()
    del held
    await stage.check({"disposed": 1}, idle=1, dropped=1, failures={"timeout": 1})
