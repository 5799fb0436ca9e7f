"""The ways in which a connection ends, each done to a real one, with what the books have to say afterwards."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SAWarning
from sqlalchemy.pool import NullPool

from panels_app import Pool
from panels_stage import PATIENCE, Stage
from poolwatch.demo.servers import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


@dataclass(frozen=True)
class Fate:
    """One way.

    Attributes:
        act: What is done.
        pool: To which pool; it is named after the way.
        closes: The connections closed, by reason.
        reconnects: Those of them that another took the place of.
        invalidations: Those given up, by kind.
    """

    act: Callable[[Stage, Pool], None]
    pool: Pool
    closes: Mapping[str, int]
    reconnects: Mapping[str, int] = field(default_factory=dict)
    invalidations: Mapping[str, int] = field(default_factory=dict)


async def dispose(engine: AsyncEngine) -> None:
    """Close what is in the pool."""
    await engine.dispose()


def invalidate_softly(connection: AsyncConnection) -> None:
    """Condemn the connection below: it is replaced when it is taken the next time."""
    below = connection.sync_connection
    assert below is not None
    below.connection.invalidate(soft=True)


def recycled(stage: Stage, pool: Pool) -> None:
    """Let a connection get older than pool_recycle."""
    stage.use(pool)
    stage.pass_time(pool, 601)


def found_by_ping(stage: Stage, pool: Pool) -> None:
    """Let pre-ping find a connection that the server has closed."""
    stage.use_and_kill(pool)


def found_by_guard(stage: Stage, pool: Pool) -> None:
    """Let the guard find a connection that the server has closed."""
    stage.use_and_kill(pool)


def silent(stage: Stage, pool: Pool) -> None:
    """Let a connection reach its limit."""
    stage.use(pool)
    stage.pass_time(pool, pool.wait_timeout)


def found_by_statement(stage: Stage, pool: Pool) -> None:
    """Let a statement find out, which condemns the other connection too."""
    stage.use_and_kill(pool, 2)
    (connection,) = stage.take(pool)
    with pytest.raises(DBAPIError):
        stage.identify(connection)
    stage.give_back([connection])
    stage.use(pool, 2)


def invalidated(stage: Stage, pool: Pool) -> None:
    """Let the application give up a connection."""
    (connection,) = stage.take(pool)
    stage.do(lambda _: connection.invalidate(), pool)
    stage.give_back([connection])


def softly_invalidated(stage: Stage, pool: Pool) -> None:
    """Let the application condemn a connection."""
    (connection,) = stage.take(pool)
    invalidate_softly(connection)
    stage.give_back([connection])


def cancelled(stage: Stage, pool: Pool) -> None:
    """Cancel a task in the middle of a statement."""

    async def sleep(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT SLEEP(60)"))

    sleeper = stage.begin(sleep, pool)
    sleeping = "SELECT 1 FROM information_schema.processlist WHERE info = 'SELECT SLEEP(60)'"
    assert poll(lambda: bool(stage.mariadb.query(sleeping)), seconds=PATIENCE)
    sleeper.cancel()
    assert poll(lambda: stage.snapshot(pool).closes_total["cancelled"] == 1, seconds=PATIENCE)


def overflowing(stage: Stage, pool: Pool) -> None:
    """Give back more connections than the pool keeps."""
    stage.use(pool, 2)


def unpooled(stage: Stage, pool: Pool) -> None:
    """Give back a connection where none are kept."""
    stage.use(pool)


def disposed(stage: Stage, pool: Pool) -> None:
    """Dispose of the engine's connections."""
    stage.use(pool)
    stage.do(dispose, pool)


def leaked(stage: Stage, pool: Pool) -> None:
    """Forget a connection."""

    async def forget(engine: AsyncEngine) -> None:
        connection = await engine.connect()
        assert not connection.closed
        del connection
        gc.collect()

    with pytest.warns(SAWarning, match="The garbage collector is trying to clean up"):
        stage.do(forget, pool)


GUARD = {"guard": True}
ONE = {"pool_size": 1, "max_overflow": 1}
PING = {"pool_pre_ping": True}
RECYCLE = {"pool_recycle": 600}
HARD = {"hard": 1}
FATES = (
    Fate(recycled, Pool("recycle", options=RECYCLE), {"recycle": 1}, {"recycle": 1}),
    Fate(found_by_ping, Pool("ping", options=PING), {"pre_ping": 1}, {"pre_ping": 1}, {"hard": 1, "pool": 1}),
    Fate(found_by_guard, Pool("guard", watching=GUARD), {"guard_dead": 1}, {"guard_dead": 1}),
    Fate(silent, Pool("silent", watching=GUARD), {"guard_deadline": 1}, {"guard_deadline": 1}),
    Fate(
        found_by_statement,
        Pool("statement"),
        {"disconnect": 1, "pool_invalidated": 1},
        {"disconnect": 1, "pool_invalidated": 1},
        {"hard": 1, "pool": 1},
    ),
    Fate(invalidated, Pool("invalidate"), {"invalidated": 1}, {"invalidated": 1}, HARD),
    Fate(softly_invalidated, Pool("softly"), {"soft_invalidated": 1}, {"soft_invalidated": 1}, {"soft": 1}),
    Fate(cancelled, Pool("cancel"), {"cancelled": 1}, {"cancelled": 1}, HARD),
    Fate(overflowing, Pool("overflow", options=ONE), {"overflow": 1}),
    Fate(unpooled, Pool("unpooled", options={"poolclass": NullPool}), {"unpooled": 2}),
    Fate(disposed, Pool("dispose"), {"disposed": 1}),
    Fate(leaked, Pool("leak"), {"leaked": 1}),
)
