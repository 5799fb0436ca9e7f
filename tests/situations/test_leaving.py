"""Connections that leave the pool: leaked, invalidated, detached."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import NullPool

from support import run, use

if TYPE_CHECKING:
    from stage import Stage

pytestmark = [pytest.mark.anyio, pytest.mark.alike]

collects = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")


@collects
async def test_leaked_connection(stage: Stage) -> None:
    """A Connection that is dropped costs the pool its connection."""
    engine = stage.engine()
    connection = await engine.connect()
    await run(connection, "SELECT 1")
    await stage.check(out=1)
    del connection
    gc.collect()
    await stage.check({"leaked": 1}, leaks=1)


@collects
async def test_leaked_session(stage: Stage) -> None:
    """So does a session."""
    engine = stage.engine()
    session = AsyncSession(engine)
    await session.execute(text("SELECT 1"))
    await stage.check(out=1)
    del session
    gc.collect()
    await stage.check({"leaked": 1}, leaks=1)


async def test_forgotten_session(stage: Stage) -> None:
    """One that is never closed and still referenced is no leak yet: it is out."""
    engine = stage.engine()
    session = AsyncSession(engine)
    await session.execute(text("SELECT 1"))
    await stage.check(out=1)
    await session.close()
    await stage.check(idle=1)


@collects
async def test_null_pool(stage: Stage) -> None:
    """A pool that keeps nothing loses connections in the same ways."""
    engine = stage.engine(poolclass=NullPool)
    connection = await engine.connect()
    await run(connection, "SELECT 1")
    del connection
    gc.collect()
    await stage.check({"leaked": 1}, leaks=1)
    async with engine.connect() as other:
        await other.invalidate()
    await stage.check({"leaked": 1, "invalidated": 1}, leaks=1)


async def test_invalidated(stage: Stage) -> None:
    """An invalidated connection is closed at once, and its place filled by the checkout that comes to it."""
    engine = stage.engine()
    await stage.fill(engine, 2)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        await connection.invalidate()
        await stage.check({"invalidated": 1}, idle=1)
    async with engine.connect(), engine.connect():
        await stage.check({"invalidated": 1}, {"invalidated": 1}, out=2)
    await stage.check({"invalidated": 1}, {"invalidated": 1}, idle=2)


async def test_invalidated_and_used_again(stage: Stage) -> None:
    """The same Connection, used again, checks another one out."""
    engine = stage.engine()
    async with engine.connect() as connection:
        await connection.invalidate()
        await connection.rollback()
        await run(connection, "SELECT 1")
        await stage.check({"invalidated": 1}, {"invalidated": 1}, out=1)
    await stage.check({"invalidated": 1}, {"invalidated": 1}, idle=1)


async def test_soft_invalidated(stage: Stage) -> None:
    """A soft invalidation lets the connection work until it is back, and replaces it at its next checkout."""
    engine = stage.engine()
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        raw.invalidate(soft=True)
        await run(connection, "SELECT 1")
    await stage.check(idle=1)
    await use(engine)
    await stage.check({"soft_invalidated": 1}, {"soft_invalidated": 1}, idle=1)


async def test_detached(stage: Stage) -> None:
    """A detached connection leaves its place to others and lives on."""
    engine = stage.engine(pool_size=1, max_overflow=0)
    connection = await engine.connect()
    (await connection.get_raw_connection()).detach()
    await stage.check({"detached": 1}, beside=1)
    async with engine.connect():
        await stage.check({"detached": 1}, out=1, beside=1)
    await connection.close()
    await stage.check({"detached": 1}, idle=1)


async def test_detached_and_dropped(stage: Stage) -> None:
    """One that is dropped afterwards is no leak of the pool's."""
    engine = stage.engine()
    connection = await engine.connect()
    raw = await connection.get_raw_connection()
    raw.detach()
    del connection, raw
    gc.collect()
    await asyncio.sleep(0)
    await stage.check({"detached": 1}, dropped=1)
