"""A server that is down, refuses, or does not answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy import exc

from stage import Interruptible, ending
from support import moved, run, use

if TYPE_CHECKING:
    from stage import Stage

pytestmark = pytest.mark.anyio

# asyncpg raises what the socket raised, which a statement wraps; the oldest SQLAlchemy wraps no refusal of its.
UNREACHABLE = (exc.StatementError, OSError, asyncpg.PostgresError)


async def test_down_with_an_empty_pool(stage: Stage) -> None:
    """Attempts that fail leave nothing."""
    engine = stage.engine()
    with stage.outage():
        for _ in range(2):
            assert isinstance(await ending(use(engine)), UNREACHABLE)
    await stage.check(failures={"connect": 2})
    assert 2 == stage.watches[0].snapshot().connect_failures_total


@pytest.mark.parametrize(
    ("options", "reason", "failed"), [({"pool_pre_ping": True}, "pre_ping", 3), ({}, "disconnect", 2)]
)
async def test_down_with_idle_connections(stage: Stage, options: dict[str, Any], reason: str, failed: int) -> None:
    """Two idle connections are lost, once each, however often callers try; back up, one is a reconnect."""
    engine = stage.engine(**options)
    await stage.fill(engine, 2)
    with stage.outage():
        for _ in range(3):
            assert isinstance(await ending(use(engine)), UNREACHABLE)
    closes = {reason: 1, "pool_invalidated": 1}
    await stage.check(closes, failures={"connect": failed})
    await stage.fill(engine, 2)
    await stage.check(closes, closes, idle=2, failures={"connect": failed})


async def test_down_when_recycle_is_due(stage: Stage) -> None:
    """An old connection is closed at the first attempt, and made up for when the server is back."""
    engine = stage.engine(pool_recycle=60)
    await use(engine)
    stage.age()
    with stage.outage():
        for _ in range(2):
            assert isinstance(await ending(use(engine)), UNREACHABLE)
    await stage.check({"recycle": 1}, failures={"connect": 2})
    await use(engine)
    await stage.check({"recycle": 1}, {"recycle": 1}, idle=1, failures={"connect": 2})


async def test_down_when_an_invalidated_connection_is_used_again(stage: Stage) -> None:
    """A Connection that was invalidated connects again when used; that attempt fails like any other."""
    engine = stage.engine()
    connection = await engine.connect()
    await run(connection, "SELECT 1")
    await connection.invalidate()
    await connection.rollback()
    with stage.outage():
        assert isinstance(await ending(run(connection, "SELECT 1")), UNREACHABLE)
    await connection.close()
    await stage.check({"invalidated": 1}, failures={"connect": 1})


async def test_refused(stage: Stage) -> None:
    """A server that knows the user no longer refuses new connections and keeps the old one."""
    engine = stage.engine()
    held = await engine.connect()
    await run(held, "SELECT 1")
    stage.server.lock_out(out=True)
    try:
        assert isinstance(await ending(use(engine)), UNREACHABLE)
    finally:
        stage.server.lock_out(out=False)
    await stage.check(out=1, failures={"connect": 1})
    await held.invalidate()
    await held.close()
    await stage.check({"invalidated": 1}, failures={"connect": 1})


@pytest.mark.parametrize("way", ["cancel", "expire"])
async def test_frozen(stage: Stage, way: str) -> None:
    """A server that takes the connection and says nothing: the caller gives up, and nothing is left."""
    engine = stage.engine()
    stage.freeze()
    caller = Interruptible(way, use(engine))
    await stage.pending()
    await caller.interrupt()
    stage.thaw()
    assert await caller.ended() in {"CancelledError", "TimeoutError"}
    await stage.check(failures={"cancelled": 1})


# asyncpg waits for the server even to close.
@pytest.mark.only("aiomysql", "asyncmy")
async def test_frozen_while_connecting_again(stage: Stage) -> None:
    """However long it takes to replace a connection, that it was closed, and why, is in the books."""
    engine = stage.engine(pool_recycle=60)
    await use(engine)
    stage.age()
    stage.freeze()
    caller = asyncio.create_task(use(engine))
    await stage.pending()
    assert {"recycle": 1} == moved(stage.watches[0].snapshot().closes_total)
    stage.thaw()
    await caller
    await stage.check({"recycle": 1}, {"recycle": 1}, idle=1)
