"""Engines that are disposed of, with connections idle, out and on their way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from prometheus_client import generate_latest
from sqlalchemy import exc

from poolwatch import WatchClosedError
from stage import ending
from support import run, until, use

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from stage import Stage

pytestmark = [pytest.mark.anyio, pytest.mark.alike]


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
    connection, old = await engine.connect(), engine.pool
    await engine.dispose()
    await stage.check({"disposed": 1}, out=1)
    await connection.close()
    # Before the old pool is collected, and after.
    await stage.check({"disposed": 2}, beside=1)
    del connection, old
    await stage.check({"disposed": 2}, dropped=1)


async def test_not_closed(stage: Stage) -> None:
    """Idle connections that a dispose leaves to the garbage collector are no longer the pool's."""
    engine = stage.engine()
    await stage.fill(engine, 3)
    connection, old = await engine.connect(), engine.pool
    await engine.dispose(close=False)
    await stage.check({"disposed": 2}, out=1, beside=2)
    await connection.close()
    await stage.check({"disposed": 3}, beside=3)
    del connection, old
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
    held, old = await engine.connect(), engine.pool
    waiting = asyncio.create_task(use(engine))
    await stage.pending()
    await engine.dispose()
    await held.close()
    assert 1 == await waiting
    await stage.check({"disposed": 1}, beside=1)
    del held, old, waiting
    await stage.check({"disposed": 1}, dropped=1)
    assert 2 == stage.watches[0].snapshot().checkouts_total


async def test_connecting(stage: Stage) -> None:
    """One that is being established meanwhile works, and is the old pool's."""
    engine = stage.engine()
    await use(engine)
    held, old = await engine.connect(), engine.pool
    stage.freeze()
    connecting = asyncio.create_task(use(engine))
    await stage.pending()
    await engine.dispose()
    stage.thaw()
    assert 1 == await connecting
    await stage.check({"disposed": 1}, out=1, beside=1)
    await held.close()
    await stage.check({"disposed": 2}, beside=2)
    del held, old, connecting
    await stage.check({"disposed": 2}, dropped=2)


async def test_overflow(stage: Stage) -> None:
    """The old pool still keeps as many as it has places for, and closes the others."""
    engine = stage.engine(pool_size=1, max_overflow=2)
    connections, old = [await engine.connect() for _ in range(3)], engine.pool
    await engine.dispose()
    while connections:
        await connections.pop().close()
    await stage.check({"overflow": 2, "disposed": 1}, beside=1)
    del old
    await stage.check({"overflow": 2, "disposed": 1}, dropped=1)


async def test_dropped_engine(stage: Stage, registry: CollectorRegistry) -> None:
    """An engine that is dropped takes its connections, its series and its watch with it, without an error."""
    engine = stage.engine()
    await stage.fill(engine, 3)
    await stage.check(idle=3)
    assert b"sqlalchemy_pool_size{" in generate_latest(registry)
    stage.drop_engines()
    del engine
    await stage.settle(0)
    left = 3 if stage.driver.strands else 0
    await until(lambda: len(stage.server.connections()) == left, f"{left} connections on the server")
    watched = stage.watches.pop()
    assert None is watched.engine
    assert b"sqlalchemy_pool_size{" not in generate_latest(registry)
    with pytest.raises(WatchClosedError):
        watched.snapshot()


async def test_disposed_again(stage: Stage) -> None:
    """A pool that was never used, and one that is exhausted, are disposed of alike."""
    engine = stage.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    await engine.dispose()
    held, old = await engine.connect(), engine.pool
    await run(held, "SELECT 1")
    assert isinstance(await ending(use(engine)), exc.TimeoutError)
    await engine.dispose()
    await use(engine)
    await stage.check(idle=1, out=1, failures={"timeout": 1})
    await held.close()
    await stage.check({"disposed": 1}, idle=1, beside=1, failures={"timeout": 1})
    del held, old
    await stage.check({"disposed": 1}, idle=1, dropped=1, failures={"timeout": 1})
