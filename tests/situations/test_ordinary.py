"""Ordinary use, of every pool that async engines have."""

from __future__ import annotations

import asyncio
from importlib import import_module
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, exc, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import NullPool, StaticPool

from stage import ending
from support import run, use

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from stage import Stage

pytestmark = [pytest.mark.anyio, pytest.mark.alike]


async def test_first_connection(stage: Stage) -> None:
    """The first checkout opens a connection, the return leaves it idle."""
    engine = stage.engine()
    await stage.check()
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        await stage.check(out=1)
    await stage.check(idle=1)


async def test_reuse(stage: Stage) -> None:
    """A connection is used again: after a statement, a commit, nothing at all, a session's commit."""
    engine = stage.engine()
    await use(engine)
    await use(engine)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        await connection.commit()
    async with engine.connect():
        pass
    async with AsyncSession(engine) as session:
        await session.execute(text("SELECT 1"))
        await session.commit()
    await stage.check(idle=1)
    assert (1, 5) == (stage.watches[0].snapshot().connects_total, stage.watches[0].snapshot().checkouts_total)


async def test_overflow(stage: Stage) -> None:
    """The first to come back stays, the next finds no place."""
    engine = stage.engine(pool_size=1, max_overflow=1)
    kept, discarded = await engine.connect(), await engine.connect()
    await stage.check(out=2)
    await kept.close()
    await discarded.close()
    await stage.check({"overflow": 1}, idle=1)


async def test_recycle(stage: Stage) -> None:
    """The next checkout replaces one that is older than pool_recycle; the others wait for theirs."""
    engine = stage.engine(pool_recycle=60)
    await stage.fill(engine, 2)
    stage.age()
    await use(engine)
    await stage.check({"recycle": 1}, {"recycle": 1}, idle=2)


async def test_recycle_with_pre_ping(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old connection is replaced without a ping."""
    engine = stage.engine(pool_recycle=60, pool_pre_ping=True)
    pings, ping = count(), engine.dialect.do_ping

    def do_ping(dbapi: Any) -> bool:
        next(pings)
        return ping(dbapi)

    monkeypatch.setattr(engine.dialect, "do_ping", do_ping)
    await use(engine)
    await use(engine)
    stage.age()
    await use(engine)
    await stage.check({"recycle": 1}, {"recycle": 1}, idle=1)
    # The second caller's.
    assert 1 == next(pings)


async def test_null_pool(stage: Stage) -> None:
    """A connection is closed when it comes back."""
    engine = stage.engine(poolclass=NullPool)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        await stage.check(out=1)
    await stage.check({"unpooled": 1})


async def test_static_pool(stage: Stage) -> None:
    """Users one after the other share the one connection."""
    engine = stage.engine(poolclass=StaticPool)
    await use(engine)
    await use(engine)
    await stage.check(idle=1)


async def test_static_pool_with_overlapping_users(stage: Stage) -> None:
    """Two users at once are one checked-out connection, and the first hold ends when the second begins."""
    engine = stage.engine(poolclass=StaticPool)
    first, second = await engine.connect(), await engine.connect()
    await run(first, "SELECT 1")
    await run(second, "SELECT 1")
    await stage.check(out=1)
    await first.close()
    # SQLAlchemy forgets that the second is still out.
    await stage.check(idle=1)
    await second.close()
    await stage.check(idle=1)
    assert 2 == stage.watches[0].snapshot().hold_duration_seconds.count


async def test_two_engines(stage: Stage) -> None:
    """Each engine has books of its own."""
    first, second = stage.engine(pool_size=2), stage.engine(pool_size=1)
    async with first.connect() as one, second.connect() as other:
        await run(one, "SELECT 1")
        await run(other, "SELECT 1")
        await stage.check(out=2)
        assert [1, 1] == [each.snapshot().connections["checked_out"] for each in stage.watches]
    await stage.check(idle=2)


async def test_clone(stage: Stage) -> None:
    """A clone's connections are its parent's, and either disposes of them."""
    engine = stage.engine()
    clone = engine.execution_options(isolation_level="AUTOCOMMIT")
    await use(clone)
    await stage.check(idle=1)
    await clone.dispose()
    await stage.check({"disposed": 1})
    await use(engine)
    await engine.dispose()
    await stage.check({"disposed": 2})


async def test_nested_checkouts(stage: Stage) -> None:
    """A second checkout inside the first is another connection; a savepoint is none."""
    engine = stage.engine()
    async with engine.connect() as outer, engine.connect() as inner:
        await run(outer, "SELECT 1")
        await run(inner, "SELECT 1")
        await stage.check(out=2)
    async with engine.begin() as connection, connection.begin_nested():
        await run(connection, "SELECT 1")
    await stage.check(idle=2)


async def test_last_in_first_out(stage: Stage) -> None:
    """The order in which idle connections are taken makes no difference, nor that nothing is sent on return."""
    engine = stage.engine(pool_use_lifo=True, pool_reset_on_return=None)
    await stage.fill(engine, 2)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        await connection.commit()
    await stage.check(idle=2)


async def test_autocommit(stage: Stage) -> None:
    """An engine without transactions is counted alike."""
    engine = stage.engine(isolation_level="AUTOCOMMIT")
    await use(engine)
    await use(engine)
    await stage.check(idle=1)


async def test_failed_statement(stage: Stage) -> None:
    """A statement that fails costs no connection."""
    engine = stage.engine()
    assert isinstance(await ending(use(engine, "SELECT * FROM nothing_like_it")), exc.DBAPIError)
    await stage.check(idle=1)


async def test_creator(stage: Stage) -> None:
    """An application that makes its connections itself is counted alike, though no do_connect event fires."""
    module, name = {
        "psycopg": ("psycopg", "AsyncConnection.connect"),
        "asyncpg": ("asyncpg", "connect"),
        "aiomysql": ("aiomysql", "connect"),
        "asyncmy": ("asyncmy", "connect"),
    }[stage.driver.name]
    connect: Any = import_module(module)
    for part in name.split("."):
        connect = getattr(connect, part)
    arguments: dict[str, Any] = {}

    async def create() -> Any:
        return await connect(**arguments)

    engine = stage.engine(async_creator=create, pool_recycle=60)
    arguments |= engine.dialect.create_connect_args(engine.url)[1]
    await use(engine)
    stage.age()
    await use(engine)
    await stage.check({"recycle": 1}, {"recycle": 1}, idle=1)


async def test_connection_made_by_a_listener(stage: Stage) -> None:
    """So is one that an earlier do_connect listener made, which ends the event before it reaches ours."""

    def listen(engine: AsyncEngine) -> None:
        @event.listens_for(engine.sync_engine, "do_connect")
        def connect(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
            return dialect.connect(*arguments, **options)

    engine = stage.engine(listen)
    await use(engine)
    await stage.check(idle=1)
    assert 0 == stage.watches[0].snapshot().connect_duration_seconds.count


async def test_pool_timeout(stage: Stage) -> None:
    """Who waits too long for a connection gets none, and has waited; the one who holds it is not disturbed."""
    engine = stage.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        assert isinstance(await ending(use(engine)), exc.TimeoutError)
        await stage.check(out=1, failures={"timeout": 1})
    await stage.check(idle=1, failures={"timeout": 1})
    assert 1 == stage.watches[0].snapshot().checkout_waits_total


async def test_many_at_once(stage: Stage) -> None:
    """Of fifty callers on three places all but three queue, and every one gets a connection."""
    engine = stage.engine(pool_size=2, max_overflow=1)
    await asyncio.gather(*(use(engine) for _ in range(50)))
    snapshot = stage.watches[0].snapshot()
    # One at the end, and whoever comes back in the same turn of the loop as two others.
    overflow = snapshot.closes_total["overflow"]
    assert overflow >= 1
    await stage.check({"overflow": overflow}, idle=2)
    assert (50, 47) == (snapshot.checkouts_total, snapshot.checkout_waits_total)
