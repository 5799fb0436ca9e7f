"""Watches that come and go while callers are inside ``pool.connect()``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.pool import AsyncAdaptedQueuePool

from poolwatch import (
    server,
    watch,
)
from support import assert_true_on, until, use

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.deadline import Deadline
    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio


async def test_close_in_the_middle_of_a_checkout(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() while a caller's checkout stands in our own listener neither fails it nor stays half attached."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    ask = server.ask_limits

    def close_and_ask(dialect: Any, dbapi: Any, deadline: Deadline) -> server.ServerLimits | None:
        watched.close()
        return ask(dialect, dbapi, deadline)

    monkeypatch.setattr(server, "ask_limits", close_and_ask)
    assert 1 == await use(engine)
    assert type(engine.pool) is AsyncAdaptedQueuePool
    assert [] == list(engine.pool.dispatch.checkout)
    await until(lambda: len(mariadb.connections()) == 1, "one connection")


async def test_watched_again_while_the_old_one_leaves(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry
) -> None:
    """A pool that is watched anew while callers of the old watch still queue keeps true books."""
    engine = make_engine(pool_size=1, max_overflow=0)
    old = watch(engine, registry=registry)
    async with engine.connect():
        waiting = asyncio.create_task(use(engine))
        await until(lambda: old.snapshot().pending_checkouts == 1, "a caller who waits")
        old.close()
        new = watch(engine, registry=registry)
    await waiting
    await use(engine)
    snapshot = await assert_true_on(mariadb, new)
    # The caller who queued before is not the new watch's.
    assert 2 == snapshot.checkouts_total


async def test_watched_again_while_a_caller_stands_in_our_listener(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() and watch() during somebody's first checkout fail nobody; the new watch begins when the old has left."""
    engine = make_engine()
    watched = [watch(engine, registry=registry)]
    ask = server.ask_limits

    def change_and_ask(dialect: Any, dbapi: Any, deadline: Deadline) -> server.ServerLimits | None:
        monkeypatch.setattr(server, "ask_limits", ask)
        for _ in range(2):
            watched[-1].close()
            watched.append(watch(engine, registry=registry))
            assert 0 == watched[-1].snapshot().connects_total
        return ask(dialect, dbapi, deadline)

    monkeypatch.setattr(server, "ask_limits", change_and_ask)
    assert 1 == await use(engine)
    assert 1 == await use(engine)
    snapshot = await assert_true_on(mariadb, watched[-1])
    assert 1 == snapshot.connections["idle"]
    watched[-1].close()
    await engine.dispose()
    assert [] == list(engine.pool.dispatch.checkout)


async def test_closed_before_it_could_begin(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry
) -> None:
    """A watch that is closed while it still waits for an earlier one to leave gives the pool its class back too."""
    engine = make_engine(pool_size=2, max_overflow=0)
    old = watch(engine, registry=registry)
    held = [await engine.connect() for _ in range(2)]
    first = asyncio.create_task(engine.connect().start())
    await until(lambda: old.snapshot().pending_checkouts == 1, "a caller who waits")
    old.close()
    new = watch(engine, registry=registry)
    second = asyncio.create_task(engine.connect().start())
    await until(lambda: new.snapshot().pending_checkouts == 1, "another caller who waits")
    new.close()
    for each in held:
        await each.close()
    for waiter in (first, second):
        await (await waiter).close()
    assert 1 == await use(engine)
    assert AsyncAdaptedQueuePool is type(engine.pool)
    assert [] == list(engine.pool.dispatch.checkout)
    await until(lambda: len(mariadb.connections()) == 2, "two connections")


async def test_a_caller_who_queued_before(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry
) -> None:
    """A caller who began to wait before anybody watched is booked as holding a connection once he has it."""
    engine = make_engine(pool_size=1, max_overflow=0)
    first = await engine.connect()
    waiting = asyncio.create_task(engine.connect().start())
    await until(lambda: bool(engine.pool._pool._queue._getters), "a caller who waits")  # type: ignore[attr-defined]
    watched = watch(engine, registry=registry)
    await first.close()
    second = await waiting
    snapshot = await assert_true_on(mariadb, watched)
    assert (1, 2) == (snapshot.connections["checked_out"], snapshot.checkouts_total)
    assert float("inf") > snapshot.longest_hold_timestamp_seconds
    await second.close()
    await assert_true_on(mariadb, watched)
