"""watch(): one Watch for each pool, names, arguments, arrival and departure."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from poolwatch import (
    ConflictError,
    MetricNameError,
    WatchClosedError,
    watch,
)
from support import assert_true_on, fill, moved, run, use

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


def test_second_opinion(registry: CollectorRegistry) -> None:
    """A second call may leave arguments out or repeat them; another value raises, naming both."""
    engine = nowhere()
    watched = watch(engine, registry=registry)
    assert watched is watch(engine, name="orders") is watch(engine, inactivity_limit=350)
    assert "orders" == watched.name
    assert {"configured": 350} == watched.snapshot().inactivity_limit_seconds
    assert watched is watch(engine) is watch(engine, name="orders", inactivity_limit=350.0)
    assert watched is watch(engine, server_limits=True, per_connection=False)
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
        watched = watch(engine, registry=registry, inactivity_limit=350)
        snapshot = await assert_true_on(mariadb, watched)
        assert (3, 1) == (snapshot.connects_total, snapshot.checkouts_total)
        assert {"checked_out": 1, "idle": 2, "condemned": 0, "dead": 0} == snapshot.connections
        assert 3 == sum(snapshot.timeout_risk_connections[state, "unknown"] for state in ("checked_out", "idle"))
        await run(held, "SELECT 1")
    await fill(engine, 3)
    assert 3 == (await assert_true_on(mariadb, watched)).timeout_risk_connections["idle", "safe"]


async def test_same_name_for_loggers(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """SQLAlchemy names a pool's logger after its class, and it keeps that name, also after dispose()."""
    engine = make_engine()
    name = str(engine.pool.logger)
    watch(engine, registry=registry)
    await engine.dispose()
    assert name == str(engine.pool.logger)
    assert "AsyncAdaptedQueuePool" in name


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
    for name in ("after_cursor_execute", "commit", "rollback"):
        assert [] == list(getattr(engine.sync_engine.dispatch, name))
    for name in ("do_connect", "handle_error"):
        assert [] == list(getattr(engine.dialect.dispatch, name))
    assert b"" == generate_latest(registry)
    for record in (each for each in gc.get_referrers(engine.pool) if isinstance(each, ConnectionPoolEntry)):
        assert {} == record.record_info
    again = watch(engine, registry=registry)
    await use(engine)
    assert (1, 1) == ((await assert_true_on(mariadb, again)).connects_total, again.snapshot().checkouts_total)


def test_an_emptied_registry(registry: CollectorRegistry) -> None:
    """A registry that a test fixture has emptied neither breaks close() nor hides pools that are watched later."""
    first, second = nowhere(pool_logging_name="first"), nowhere(pool_logging_name="second")
    watched = watch(first, registry=registry)
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    watch(second, registry=registry)
    assert b'pool="second"' in generate_latest(registry)
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    watched.close()
    watch(second).close()
    for engine in (first, second):
        assert AsyncAdaptedQueuePool is type(engine.pool)
        assert [] == list(engine.pool.dispatch.checkout)


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


async def test_engine_of_the_whole_library(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Listeners that an application put on every engine keep being called."""
    engine = make_engine()
    called = []
    event.listen(engine.sync_engine, "checkout", lambda *_: called.append(1))
    with watch(engine, registry=registry):
        await use(engine)
    await use(engine)
    assert [1, 1] == called
