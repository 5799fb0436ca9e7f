"""Connections that the server closes: after a silence, when told to, when it restarts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncSession

from stage import ending
from support import run, use

if TYPE_CHECKING:
    from stage import Stage

pytestmark = pytest.mark.anyio

# There a write to a connection that was reset raises a plain RuntimeError: see test_lost_unnoticed.
raises_what_it_should = pytest.mark.never("aiomysql-uvloop")

RESET_NONE = {"pool_reset_on_return": None}
PRE_PING = {"pool_pre_ping": True}
found_by = pytest.mark.parametrize(("options", "reason"), [({}, "disconnect"), (PRE_PING, "pre_ping")])


@raises_what_it_should
@pytest.mark.parametrize(
    ("options", "reason"), [({}, "disconnect"), (PRE_PING, "pre_ping"), (RESET_NONE, "disconnect")]
)
async def test_silence(stage: Stage, options: dict[str, Any], reason: str) -> None:
    """Two connections dropped for their silence: the first to be met condemns the other."""
    engine = stage.engine(**options)
    with stage.short_sessions():
        await stage.fill(engine, 2)
    await stage.silence()
    await stage.check(idle=2, lost=2)
    assert (reason == "disconnect") is isinstance(await ending(use(engine)), exc.DBAPIError)
    await use(engine)
    closes = {reason: 1, "pool_invalidated": 1}
    if reason == "disconnect":
        await stage.check(closes, {"pool_invalidated": 1}, idle=1)
    else:
        await stage.check(closes, closes, idle=2)


@found_by
async def test_killed_while_idle(stage: Stage, options: dict[str, Any], reason: str) -> None:
    """One idle connection was killed."""
    engine = stage.engine(**options)
    await stage.lose(*await stage.fill(engine, 1))
    await stage.check(idle=1, lost=1)
    assert (reason == "disconnect") is isinstance(await ending(use(engine)), exc.DBAPIError)
    if reason == "disconnect":
        await stage.check({reason: 1})
    else:
        await stage.check({reason: 1}, {reason: 1}, idle=1)


async def test_killed_in_a_statement(stage: Stage) -> None:
    """The connection is killed while it works for somebody."""
    engine = stage.engine()
    await use(engine)
    task = asyncio.create_task(use(engine, stage.server.sleep))
    await stage.sleeping()
    stage.server.kill(*stage.server.sleepers())
    assert isinstance(await ending(task), exc.DBAPIError)
    await stage.check({"disconnect": 1})


async def test_killed_statement(stage: Stage) -> None:
    """A statement that is ended on the server fails, and costs no connection."""
    engine = stage.engine()
    await use(engine)
    task = asyncio.create_task(use(engine, stage.server.sleep))
    await stage.sleeping()
    stage.server.kill_statement(*stage.server.sleepers())
    error = await ending(task)
    assert isinstance(error, exc.DBAPIError)
    assert not error.connection_invalidated
    await stage.check(idle=1)


@found_by
async def test_one_of_five_killed(stage: Stage, options: dict[str, Any], reason: str) -> None:
    """One lost connection condemns the four others, each of which is replaced at its own next checkout."""
    engine = stage.engine(**options)
    first, *_ = await stage.fill(engine, 5)
    await stage.lose(first)
    assert (reason == "disconnect") is isinstance(await ending(use(engine)), exc.DBAPIError)
    for _ in range(6):
        await use(engine)
    closes = {reason: 1, "pool_invalidated": 4}
    await stage.check(closes, closes, idle=5)


@found_by
async def test_restart(stage: Stage, options: dict[str, Any], reason: str) -> None:
    """A restart loses all five, and one caller at the most."""
    engine = stage.engine(**options)
    await stage.fill(engine, 5)
    await stage.restart()
    await stage.check(idle=5, lost=5)
    assert (reason == "disconnect") is isinstance(await ending(use(engine)), exc.DBAPIError)
    for _ in range(5):
        await use(engine)
    closes = {reason: 1, "pool_invalidated": 4}
    await stage.check(closes, closes, idle=5)


async def test_expired_and_condemned(stage: Stage) -> None:
    """One that is both too old and condemned is recycled: SQLAlchemy looks at its age first."""
    engine = stage.engine(pool_recycle=60)
    first, _ = await stage.fill(engine, 2)
    await stage.lose(first)
    assert isinstance(await ending(use(engine)), exc.DBAPIError)
    stage.age()
    await use(engine)
    await stage.check({"disconnect": 1, "recycle": 1}, {"recycle": 1}, idle=1)


@raises_what_it_should
async def test_silence_in_a_transaction(stage: Stage) -> None:
    """A session's connection dropped for its silence is met by its next statement, and the other one condemned."""
    engine = stage.engine()
    session = AsyncSession(engine)
    with stage.short_sessions():
        await stage.fill(engine, 2)
        await session.execute(text("SELECT 1"))
    await stage.silence()
    await stage.check(idle=1, out=1, lost=2)
    assert isinstance(await ending(session.execute(text("SELECT 1"))), exc.DBAPIError)
    await ending(session.commit())
    await session.close()
    await use(engine)
    await stage.check({"disconnect": 1, "pool_invalidated": 1}, {"pool_invalidated": 1}, idle=1)


@raises_what_it_should
async def test_silence_before_a_commit(stage: Stage) -> None:
    """The same, met by the commit."""
    engine = stage.engine()
    session = AsyncSession(engine)
    with stage.short_sessions():
        await session.execute(text("SELECT 1"))
    await stage.silence()
    assert isinstance(await ending(session.commit()), exc.DBAPIError)
    await session.close()
    await stage.check({"disconnect": 1})


@raises_what_it_should
async def test_silence_before_a_close(stage: Stage) -> None:
    """The same, met by the rollback that closing a Connection sends."""
    engine = stage.engine()
    with stage.short_sessions():
        connection = await engine.connect()
        await run(connection, "SELECT 1")
    await stage.silence()
    assert isinstance(await ending(connection.close()), exc.DBAPIError)
    await stage.check({"disconnect": 1})


async def test_silence_before_the_return(stage: Stage) -> None:
    """After a commit the pool's own rollback meets it, and nobody is told; PostgreSQL's drivers send none."""
    engine = stage.engine()
    with stage.short_sessions():
        connection = await engine.connect()
        await run(connection, "SELECT 1")
        await connection.commit()
    await stage.silence()
    assert None is await ending(connection.close())
    if stage.driver.mysql:
        await stage.check({"reset_failed": 1})
    else:
        await stage.check(idle=1, lost=1)
