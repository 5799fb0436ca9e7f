"""watch(): one Watch for each pool, names, arguments, late arrival and departure."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool, StaticPool

from poolwatch import (
    ArgumentError,
    ArgumentTypeError,
    ConflictError,
    MetricNameError,
    PoolwatchError,
    WatchClosedError,
    server,
    watch,
)
from support import assert_books, assert_true_on, fill, moved, run, until, use

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio


def nowhere(**options: Any) -> AsyncEngine:
    """Return an engine that is never connected."""
    return create_async_engine("mysql+aiomysql://app:secret@127.0.0.1:1/shop", **options)


def test_one_pool_is_one_watch(registry: CollectorRegistry) -> None:
    """An async engine, its sync engine and clones of both are the same pool."""
    engine = nowhere()
    clone = engine.execution_options(isolation_level="AUTOCOMMIT")
    same = [watch(each, registry=registry) for each in (engine, engine.sync_engine, clone, clone.sync_engine)]
    assert [same[0]] * 4 == same
    assert engine.sync_engine is same[0].engine


async def test_watched_through_a_clone(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A watch that was begun on a clone sees the engine's own statements and dispose."""
    engine = make_engine()
    watched = watch(engine.execution_options(isolation_level="AUTOCOMMIT"), registry=registry)
    await use(engine)
    await engine.dispose()
    assert {"disposed": 1} == moved((await assert_true_on(mariadb, watched)).closes_total)


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "shop"), ({"pool_logging_name": "orders"}, "orders")],
)
def test_default_name(registry: CollectorRegistry, options: dict[str, str], name: str) -> None:
    """A pool is called by its logging name, else by its database."""
    engine = nowhere(**options)
    assert name == watch(engine, registry=registry).name


@pytest.mark.parametrize(("url", "name"), [("sqlite:///dir/shop.db", "shop.db"), ("sqlite://", "default")])
def test_default_name_of_a_file(registry: CollectorRegistry, url: str, name: str) -> None:
    """A file is called without its directory; without a database the pool is the default one."""
    engine = create_engine(url)
    assert name == watch(engine, registry=registry).name


def test_a_live_engines_name(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Two live engines of one name get two, and a warning names both; one that is gone leaves its name free."""
    first, second = nowhere(), nowhere()
    names = [watch(each, registry=registry).name for each in (first, second)]
    assert ["shop", "shop-2"] == names
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "'shop'" in warning.getMessage()
    assert "'shop-2'" in warning.getMessage()
    del first
    gc.collect()
    third = nowhere()
    assert "shop" == watch(third, registry=registry).name


def test_a_garbage_engines_name(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that nobody holds, but a cycle keeps alive, gives its name up without a warning."""
    gc.disable()
    try:
        engine = nowhere()
        engine.sync_engine.cycle = engine  # type: ignore[attr-defined]
        watch(engine, registry=registry)
        del engine
        another = nowhere()
        assert "shop" == watch(another, registry=registry).name
    finally:
        gc.enable()
    assert [] == caplog.records


def test_an_engine_that_is_gone(registry: CollectorRegistry) -> None:
    """The engine is held weakly; its series go with it."""
    engine = nowhere()
    watched = watch(engine, registry=registry)
    assert b'pool="shop"' in generate_latest(registry)
    del engine
    gc.collect()
    assert b"shop" not in generate_latest(registry)
    with pytest.raises(WatchClosedError, match="'shop'"):
        watched.snapshot()


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"engine": "mysql://"}, ArgumentTypeError, ["engine", "str", "create_engine"]),
        ({"engine": AsyncSession}, ArgumentTypeError, ["engine", "create_async_engine"]),
        ({"name": ""}, ArgumentError, ["name", "empty", "leave it out"]),
        ({"name": 5}, ArgumentTypeError, ["name", "int", "str"]),
        ({"inactivity_limit": 0}, ArgumentError, ["inactivity_limit", "0", "positive"]),
        ({"inactivity_limit": float("inf")}, ArgumentError, ["inactivity_limit", "inf"]),
        ({"inactivity_limit": float("nan")}, ArgumentError, ["inactivity_limit", "nan"]),
        ({"inactivity_limit": True}, ArgumentTypeError, ["inactivity_limit", "bool"]),
        ({"inactivity_limit": "350"}, ArgumentTypeError, ["inactivity_limit", "str"]),
        ({"server_limits": 1}, ArgumentTypeError, ["server_limits", "int", "bool"]),
        ({"per_connection": "yes"}, ArgumentTypeError, ["per_connection", "str"]),
        ({"registry": {}}, ArgumentTypeError, ["registry", "dict", "CollectorRegistry"]),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], kind: type[Exception], words: list[str]) -> None:
    """A bad argument raises at once, naming the argument, the value and the remedy."""
    engine = nowhere()
    with pytest.raises(kind) as caught:
        watch(**{"engine": engine, "registry": CollectorRegistry(), **arguments})
    assert isinstance(caught.value, PoolwatchError)
    for word in words:
        assert word in str(caught.value)


def test_second_opinion(registry: CollectorRegistry) -> None:
    """A second call may leave arguments out or repeat them; another value raises, naming both."""
    engine = nowhere()
    watched = watch(engine, name="orders", inactivity_limit=350, registry=registry)
    assert watched is watch(engine) is watch(engine, name="orders", inactivity_limit=350.0, server_limits=True)
    for other in ({"name": "sales"}, {"inactivity_limit": 60}, {"server_limits": False}, {"per_connection": True}):
        with pytest.raises(ConflictError, match="'orders'.*" + next(iter(other))):
            watch(engine, **other)
    with pytest.raises(ConflictError, match="another registry"):
        watch(engine, registry=CollectorRegistry())


def test_taken_metric_name(registry: CollectorRegistry) -> None:
    """A metric of our name that is already there raises, names it and the way out, and leaves nothing behind."""
    Gauge("sqlalchemy_pool_size", "Somebody else's.", registry=registry)
    engine = nowhere()
    with pytest.raises(MetricNameError, match=r"sqlalchemy_pool_size.*registry="):
        watch(engine, registry=registry)
    assert type(engine.pool) is AsyncAdaptedQueuePool
    assert "shop" == watch(engine, registry=CollectorRegistry()).name


async def test_late_watch(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Connections that were open before count: one connect each, one checkout each that is out."""
    engine = make_engine()
    await fill(engine, 3)
    async with engine.connect() as held:
        watched = watch(engine, registry=registry)
        snapshot = await assert_true_on(mariadb, watched)
        assert (3, 1) == (snapshot.connects_total, snapshot.checkouts_total)
        assert {"checked_out": 1, "idle": 2, "condemned": 0, "dead": 0} == snapshot.connections
        assert 3 == sum(snapshot.timeout_risk_connections[state, "unknown"] for state in ("checked_out", "idle"))
        await run(held, "SELECT 1")
    await fill(engine, 3)
    assert 3 == (await assert_true_on(mariadb, watched)).timeout_risk_connections["idle", "safe"]


async def test_close_and_again(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """close() takes everything off, also after dispose(), and the pool can be watched anew."""
    engine = make_engine()
    listeners = str(engine.pool.dispatch.checkout), len(list(engine.pool.dispatch.checkout))
    with watch(engine, registry=registry) as watched:
        await use(engine)
        await engine.dispose()
        await use(engine)
    watched.close()
    assert type(engine.pool) is AsyncAdaptedQueuePool
    assert listeners[1] == len(list(engine.pool.dispatch.checkout))
    for name in ("after_cursor_execute", "commit", "rollback", "engine_disposed"):
        assert [] == list(getattr(engine.sync_engine.dispatch, name))
    for name in ("do_connect", "handle_error"):
        assert [] == list(getattr(engine.dialect.dispatch, name))
    assert b"" == generate_latest(registry)
    again = watch(engine, registry=registry)
    await use(engine)
    assert (1, 1) == ((await assert_true_on(mariadb, again)).connects_total, again.snapshot().checkouts_total)


async def test_close_in_the_middle_of_a_checkout(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() while a caller's checkout stands in our own listener neither fails it nor stays half attached."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    ask = server.ask_limits

    def close_and_ask(dialect: Any, dbapi: Any) -> server.ServerLimits:
        watched.close()
        return ask(dialect, dbapi)

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


async def test_another_tool_replaces_the_class(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry
) -> None:
    """A class put over ours is left alone, and ours under it passes through."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    theirs = type("Theirs", (type(engine.pool),), {})
    engine.pool.__class__ = theirs
    await use(engine)
    assert 1 == watched.snapshot().checkouts_total
    watched.close()
    assert theirs is type(engine.pool)
    assert 1 == await use(engine)
    assert 1 == len(mariadb.connections())


def test_class_that_cannot_be_replaced(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """A pool that forbids it is watched without the families that need it, and one warning says so."""

    class Stubborn(QueuePool):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "__class__":
                msg = "not me"
                raise TypeError(msg)
            super().__setattr__(name, value)

    engine = create_engine("sqlite://", poolclass=Stubborn)
    watched = watch(engine, registry=registry)
    with engine.connect():
        assert 1 == watched.snapshot().connections["checked_out"]
    snapshot = watched.snapshot()
    assert None is snapshot.checkout_duration_seconds
    assert None is snapshot.pending_checkouts
    assert (1, 1) == (snapshot.checkouts_total, snapshot.hold_duration_seconds.count)
    assert b"pending_checkouts{" not in generate_latest(registry)
    (warning,) = caplog.records
    assert "Stubborn" in warning.getMessage()


def test_sync_engine(registry: CollectorRegistry, mariadb: MariaDB) -> None:
    """A sync engine is watched the same way, and its leak is one without a close."""
    engine = create_engine(mariadb.url("pymysql"))
    watched = watch(engine, registry=registry)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    assert {"wait_timeout": 28800.0} == watched.snapshot().inactivity_limit_seconds
    leaked = engine.connect()
    del leaked
    gc.collect()
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (1, 2, {}) == (snapshot.leaks_total, snapshot.checkouts_total, moved(snapshot.closes_total))
    engine.dispose()
    assert {"disposed": 1} == moved(watched.snapshot().closes_total)


def test_static_pool(registry: CollectorRegistry) -> None:
    """A pool of one connection has the size 1 and no queue."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    watched = watch(engine, registry=registry)
    with engine.connect():
        pass
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (1, 1, float("inf")) == (snapshot.size, snapshot.connections_limit, snapshot.checkout_timeout_seconds)


async def test_engine_of_the_whole_library(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Listeners that an application put on every engine keep being called."""
    engine = make_engine()
    called = []
    event.listen(engine.sync_engine, "checkout", lambda *_: called.append(1))
    with watch(engine, registry=registry):
        await use(engine)
    await use(engine)
    assert [1, 1] == called
