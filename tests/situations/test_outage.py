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

# What leaves no room for another connection, by database, and what makes room again.
NO_ROOM = {
    "mariadb": [f"ALTER USER app@'127.0.0.1' WITH MAX_USER_CONNECTIONS {most}" for most in (-1, 0)],
    "postgresql": [f"ALTER ROLE app CONNECTION LIMIT {most}" for most in (1, -1)],
}


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


async def test_refused_from_the_start(stage: Stage) -> None:
    """A server that is told a wrong password refuses the engine's first connection, and every other."""
    engine = stage.engine(connect_args={"password": "wrong"})
    for _ in range(2):
        assert isinstance(await ending(use(engine)), UNREACHABLE)
    await stage.check(failures={"connect": 2})
    assert 2 == stage.watches[0].snapshot().connect_failures_total


async def test_full(stage: Stage) -> None:
    """A server without room for another connection refuses it, keeps the old one, and takes a later one."""
    full, free = NO_ROOM[stage.driver.database]
    engine = stage.engine()
    async with engine.connect() as held:
        await run(held, "SELECT 1")
        stage.server.query(full)
        try:
            assert isinstance(await ending(use(engine)), UNREACHABLE)
        finally:
            stage.server.query(free)
        await stage.check(out=1, failures={"connect": 1})
        await use(engine)
    await stage.check(idle=2, failures={"connect": 1})


@pytest.mark.only("asyncpg", "psycopg")
async def test_frozen(stage: Stage) -> None:
    """A server that takes the connection and says nothing: the driver gives up, and nothing is left."""
    # psycopg waits at least so long.
    patience = {"connect_timeout": 2} if stage.driver.name == "psycopg" else {"timeout": 0.1}
    engine = stage.engine(connect_args=patience)
    stage.freeze()
    assert isinstance(await ending(use(engine)), UNREACHABLE)
    stage.thaw()
    await stage.check(failures={"connect": 1})


# Their timeout is for the TCP connection alone, and that one the kernel makes.
@pytest.mark.only("aiomysql", "asyncmy")
@pytest.mark.parametrize("way", ["cancel", "expire"])
async def test_frozen_past_the_timeout(stage: Stage, way: str) -> None:
    """Where the driver never does, the caller gives up."""
    engine = stage.engine(connect_args={"connect_timeout": 0.05})
    stage.freeze()
    caller = Interruptible(way, use(engine))
    await stage.pending()
    # Twice as long as it would take.
    await asyncio.sleep(0.1)
    await caller.interrupt()
    stage.thaw()
    assert caller.error == await caller.ended()
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
