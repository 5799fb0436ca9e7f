"""What a snapshot says of checkouts and returns that fail."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import create_async_engine

from poolwatch import watch
from support import assert_books, assert_true_on, fill, moved, run, until, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio


async def test_waiting_and_timeout(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Callers who queue are pending; one who times out is counted with the time that it cost."""
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=0.05)
    watched = watch(engine, registry=registry)
    async with engine.connect():
        waiting = asyncio.create_task(use(engine))
        await until(lambda: watched.snapshot().pending_checkouts == 1, "a caller who waits")
        with pytest.raises(exc.TimeoutError):
            await waiting
    snapshot = await assert_true_on(mariadb, watched)
    assert snapshot.checkout_failures_total is not None
    assert {"timeout": 1} == moved(snapshot.checkout_failures_total)
    assert 1 == snapshot.checkout_waits_total
    assert snapshot.checkout_duration_seconds is not None
    assert 0.05 <= snapshot.checkout_duration_seconds.sum
    assert 0.05 == snapshot.checkout_timeout_seconds


async def test_connection_refused(registry: CollectorRegistry) -> None:
    """A server that is not there makes connect failures and nothing else."""
    engine = create_async_engine("mysql+aiomysql://app:app@127.0.0.1:1/app")
    watched = watch(engine, registry=registry)
    for _ in range(2):
        with pytest.raises(exc.OperationalError):
            await use(engine)
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (2, 0) == (snapshot.connect_failures_total, snapshot.connects_total)
    assert {"connect": 2} == moved(snapshot.checkout_failures_total)
    assert 0 == snapshot.connect_duration_seconds.count


async def test_rollback_on_return_fails(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A connection found lost while it is given back is closed for that reason; nobody saw it."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    async with engine.connect() as connection:
        number = await run(connection, "SELECT CONNECTION_ID()")
        await connection.commit()
        assert isinstance(number, int)
        mariadb.kill(number)
    snapshot = await assert_true_on(mariadb, watched)
    assert {"reset_failed": 1} == moved(snapshot.closes_total)
    assert {"hard": 1, "soft": 0, "pool": 0} == snapshot.invalidations_total


async def test_listener_of_the_application_that_condemns_all(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry
) -> None:
    """An application that invalidates the pool at checkout is not taken for a ping that failed."""
    engine = make_engine(pool_pre_ping=True)
    watched = watch(engine, registry=registry)
    await fill(engine, 2)
    refusals = iter([True])

    @event.listens_for(engine.sync_engine, "checkout", insert=True)
    def refuse(_dbapi: Any, _record: Any, _proxy: Any) -> None:
        if next(refusals, False):
            raise exc.InvalidatePoolError

    for _ in range(2):
        await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert {"invalidated": 1, "pool_invalidated": 1} == moved(snapshot.closes_total)
    assert {"hard": 1, "pool": 1} == moved(snapshot.invalidations_total)


async def test_failures_are_told_apart(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A failure after a failed attempt to connect, in the same task, is judged by itself."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    held = await engine.connect()

    def fail(*_: Any) -> None:
        raise LookupError

    event.listen(engine.sync_engine, "do_connect", fail)
    with pytest.raises(LookupError):
        await use(engine)
    await held.close()
    event.listen(engine.sync_engine, "checkout", fail)
    with pytest.raises(LookupError):
        await use(engine)
    assert {"connect": 1, "other": 1} == moved(watched.snapshot().checkout_failures_total)
    assert 1 == watched.snapshot().connect_failures_total


async def test_listener_of_the_application_that_fails(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry
) -> None:
    """A checkout that another listener fails is none, and its reason is not the server."""
    engine = make_engine()
    watched = watch(engine, registry=registry)

    @event.listens_for(engine.sync_engine, "checkout")
    def fail(_dbapi: Any, _record: Any, _proxy: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert 0 == snapshot.checkouts_total
    assert {"other": 1} == moved(snapshot.checkout_failures_total)
