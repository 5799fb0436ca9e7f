"""The private names that this library uses still exist and mean what they meant."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool

from poolwatch import privates, server

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

INF = float("inf")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (5, 15, INF, 30.0, False, False, True, True)),
        (
            {
                "pool_size": 2,
                "max_overflow": 3,
                "pool_recycle": 60,
                "pool_timeout": 4,
                "pool_pre_ping": True,
                "pool_use_lifo": True,
                "pool_reset_on_return": None,
            },
            (2, 5, 60, 4, True, True, False, True),
        ),
        ({"pool_size": 0}, (INF, INF, INF, 30.0, False, False, True, True)),
        ({"max_overflow": -1}, (5, INF, INF, 30.0, False, False, True, True)),
        ({"pool_recycle": 0}, (5, 15, 0, 30.0, False, False, True, True)),
        ({"pool_timeout": None}, (5, 15, INF, INF, False, False, True, True)),
        ({"pool_timeout": "4"}, (5, 15, INF, 4.0, False, False, True, True)),
    ],
)
def test_settings_of_a_queue(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    """What create_engine() was told can be read back."""
    pool = create_async_engine("mysql+aiomysql://127.0.0.1:1/app", **options).pool
    assert privates.PoolSettings(*expected) == privates.settings(pool)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("poolclass", "size", "limit"),
    [(NullPool, 0, INF), (StaticPool, 1, 1), (AssertionPool, 1, 1), (SingletonThreadPool, 5, 5)],
)
def test_settings_of_other_pools(poolclass: type, size: float, limit: float) -> None:
    """Pools without a queue have a size of their own and nobody waits for them."""
    settings = privates.settings(create_engine("sqlite://", poolclass=poolclass).pool)
    assert (size, limit, INF, False) == (settings.size, settings.limit, settings.timeout, settings.queues)


def test_overflow() -> None:
    """The quick reading agrees with the public method, and says when callers queue."""
    pool = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=1).pool
    held = [pool.connect(), pool.connect()]
    assert isinstance(pool, QueuePool)
    assert 1 == privates.overflow(pool) == pool.overflow() == privates.most_overflow(pool)
    assert INF == privates.most_overflow(create_engine("sqlite://", poolclass=StaticPool).pool)
    del held
    gc.collect()


def test_root() -> None:
    """A clone of a clone leads to the engine that it was made from."""
    engine = create_engine("sqlite://")
    clone = engine.execution_options(isolation_level="AUTOCOMMIT").execution_options(x=1)
    assert engine is privates.root(clone) is privates.root(engine)


def test_record() -> None:
    """A record tells its pool, when it was connected, and why the next checkout would replace it."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_recycle=60)
    records: list[ConnectionPoolEntry] = []
    event.listen(engine, "connect", lambda _dbapi, record: records.append(record))
    fresh: list[bool] = []
    event.listen(engine, "connect", lambda _dbapi, record: fresh.append(privates.is_fresh(record)))
    event.listen(engine, "checkout", lambda *_: None)
    with engine.connect() as connection:
        (record,) = records
        assert engine.pool is privates.pool_of(record)
        assert None is privates.retirement(record)
        assert [True, False] == [*fresh, privates.is_fresh(record)]
        assert privates.condemns_others(record, engine.pool)
        connection.connection.invalidate(soft=True)
        assert "soft_invalidated" == privates.retirement(record)
    engine.pool._invalidate_time = privates.established_at(record) + 1
    assert "pool_invalidated" == privates.retirement(record)
    assert not privates.condemns_others(record, engine.pool)
    record.starttime -= 61  # type: ignore[attr-defined]
    assert "recycle" == privates.retirement(record)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mysql+aiomysql://app:secret@db.example/shop", "db.example:3306"),
        ("mysql+aiomysql://app:secret@db.example:3307/shop", "db.example:3307"),
        ("mysql+aiomysql://app:secret@/shop?unix_socket=/run/mysqld.sock", "/run/mysqld.sock"),
        ("postgresql+asyncpg://app:secret@db.example/shop", "db.example:5432"),
        ("postgresql+asyncpg://app:secret@/shop?host=/run/postgresql", "/run/postgresql"),
        ("sqlite:///shop.db", "unknown"),
    ],
)
def test_address(url: str, address: str) -> None:
    """A server's label is its address alone."""
    assert address == server.address(make_url(url))
