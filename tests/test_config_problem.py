"""What a watched pool says of its settings, by what a real server told it; the checks' own bounds are tested apart."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool

from poolwatch import server as poolwatch_server
from poolwatch import watch
from poolwatch.labels import CHECKS
from proxies import Proxy
from support import moved, use
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry

    from poolwatch import Watch
    from poolwatch.demo.servers import MariaDB
    from sessions import Client
    from tls import TlsPostgreSQL

    MakeClient = Callable[..., Client]
    MakeEngine = Callable[..., AsyncEngine]

pytest_plugins = ["sessions"]

PLAIN = [each for each in VARIANTS if not each.tls]
AIOMYSQL = [each for each in PLAIN if each.driver.name == "aiomysql"]
POSTGRESQL = [each for each in PLAIN if str(each) == "asyncpg-asyncio-plain"]
SERVED, FILE = "mysql+pymysql://app:secret@127.0.0.1:1/shop", "sqlite://"
# A driver that is not asked.
OTHER = "postgresql+pg8000://app:secret@127.0.0.1:1/shop"


def problems(watched: Watch) -> set[str]:
    """Return the problems that *watched*'s pool has."""
    snapshot = watched.snapshot()
    assert snapshot.internal_errors_total == 0
    assert list(CHECKS) == list(snapshot.config_problem)
    found = moved(snapshot.config_problem)
    assert {1} >= set(found.values())
    return set(found)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "watching", "expected"),
    [
        # The server's wait_timeout is 28800, its max_connections 200.
        ({}, {}, {"recycle_unprotected"}),
        ({"pool_recycle": 28799}, {}, set()),
        ({"pool_recycle": 28800}, {}, {"recycle_unprotected"}),
        ({"pool_pre_ping": True}, {}, set()),
        ({"pool_recycle": 60}, {"inactivity_limit": 50}, {"recycle_unprotected"}),
        ({"pool_recycle": 29}, {}, {"recycle_churn"}),
        ({"pool_recycle": 29}, {"inactivity_limit": 50}, set()),
        ({"pool_use_lifo": True}, {}, {"recycle_unprotected", "lifo_tail"}),
        ({"pool_use_lifo": True, "pool_recycle": 60}, {}, set()),
        ({"pool_recycle": 60, "pool_size": 150, "max_overflow": 51}, {}, {"process_over_server"}),
        ({"pool_recycle": 60, "pool_size": 150, "max_overflow": 50}, {}, set()),
        ({"pool_size": 500}, {"server_limits": False}, {"limit_unknown"}),
        ({"pool_pre_ping": True}, {"server_limits": False}, set()),
        ({"poolclass": NullPool}, {"server_limits": False}, set()),
        ({}, {"server_limits": False, "inactivity_limit": 50}, {"recycle_unprotected"}),
    ],
)
async def test_by_what_the_server_told(
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    options: dict[str, Any],
    watching: dict[str, Any],
    expected: set[str],
) -> None:
    """Nothing is a problem before a connection has asked, and then what does not go together with the answer is."""
    engine = make_engine(**options)
    watched = watch(engine, registry=registry, **watching)
    before = expected if "inactivity_limit" in watching else set()
    assert before == problems(watched)
    await use(engine)
    assert expected == problems(watched)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("concurrency", "expected"), [("13", set()), ("14", {"fleet_over_server"}), (None, set()), ("nonsense", set())]
)
async def test_by_the_number_of_processes(
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    concurrency: str | None,
    expected: set[str],
) -> None:
    """WEB_CONCURRENCY counts as it was when the watch began."""
    if concurrency is None:
        monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    else:
        monkeypatch.setenv("WEB_CONCURRENCY", concurrency)
    # 13 times 15 is below 200, 14 times is not.
    engine = make_engine(pool_recycle=60)
    watched = watch(engine, registry=registry)
    monkeypatch.setenv("WEB_CONCURRENCY", "1" if expected else "1000")
    await use(engine)
    assert expected == problems(watched)


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "value"), [("_MARIADB", "SELECT nonsense("), ("_QUESTIONS", {})])
async def test_not_told(
    make_engine: MakeEngine, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    """A server that refuses to tell its limits leaves them unknown, and so does a driver that is not known to us."""
    monkeypatch.setattr(poolwatch_server, name, value)
    engine = make_engine()
    watched = watch(engine, registry=registry)
    await use(engine)
    assert {"limit_unknown"} == problems(watched)


@pytest.mark.anyio
async def test_adopted(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A connection from before the watch was not asked until its next checkout, so nothing is wrong with that."""
    engine = make_engine(pool_recycle=60)
    await use(engine)
    watched = watch(engine, registry=registry, server_limits=False)
    assert set() == problems(watched)
    await use(engine)
    assert {"limit_unknown"} == problems(watched)


@pytest.mark.anyio
async def test_nobody_to_ask(registry: CollectorRegistry) -> None:
    """SQLite drops no connection, so no limit is missing."""
    engine = create_async_engine("sqlite+aiosqlite://")
    watched = watch(engine, registry=registry)
    await use(engine)
    assert set() == problems(watched)
    await engine.dispose()


@pytest.mark.anyio
async def test_dropped_on_the_way(mariadb: MariaDB, registry: CollectorRegistry) -> None:
    """Something that resets a connection after a silence which the server allows has a limit of its own."""
    with Proxy(mariadb) as proxy:
        url = make_url(mariadb.url()).set(port=proxy.port)
        engine = create_async_engine(url, pool_pre_ping=True)
        watched = watch(engine, registry=registry)
        await use(engine)
        assert set() == problems(watched)
        (slot,) = watched._ledger.slots.values()
        assert slot.active is not None
        # Nobody waits that long in a test.
        slot.active -= 300
        proxy.reset()
        await use(engine)
        assert {"hidden_limit"} == problems(watched)
        await engine.dispose()


@pytest.mark.anyio
@on_each(AIOMYSQL)
async def test_pre_ping(variant: Any, make_client: MakeClient) -> None:
    """Under uvloop aiomysql's pings do not help, which shows once a connection was used there."""
    client = make_client(pool_pre_ping=True)
    assert set() == problems(client.watched)
    await client.use()
    broken = {"pre_ping_broken", "recycle_unprotected"} if variant.driver.uvloop else set()
    assert broken == problems(client.watched)


@pytest.fixture
def limited(server: TlsPostgreSQL) -> Iterator[None]:
    """Let sessions opened meanwhile end after 77 s without a command."""
    server.query("ALTER ROLE app SET idle_session_timeout = '77s'")
    yield
    server.query("ALTER ROLE app RESET ALL")


@pytest.mark.anyio
@on_each(POSTGRESQL)
async def test_postgresql_without_limits(make_client: MakeClient) -> None:
    """PostgreSQL's default is to drop nobody, and lets a hundred in."""
    client = make_client(pool_use_lifo=True, pool_size=90)
    await client.use()
    assert set() == problems(client.watched)
    client = make_client(pool_size=91)
    await client.use()
    assert {"process_over_server"} == problems(client.watched)


@pytest.mark.anyio
@pytest.mark.usefixtures("limited")
@on_each(POSTGRESQL)
async def test_postgresql_with_a_limit(make_client: MakeClient) -> None:
    """Its limit for idle sessions is one like any other."""
    client = make_client()
    await client.use()
    assert {"recycle_unprotected"} == problems(client.watched)


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        (SERVED, {"max_overflow": -1}, {"unlimited_overflow"}),
        (SERVED, {"pool_size": 0}, {"unlimited_overflow"}),
        (SERVED, {"pool_recycle": 0}, {"recycle_churn"}),
        (SERVED, {"pool_timeout": -1}, {"pool_cannot_queue"}),
        (SERVED, {"poolclass": StaticPool}, {"pool_cannot_queue"}),
        ("mysql+pymysql://", {"poolclass": AssertionPool}, {"pool_cannot_queue"}),
        (SERVED, {"poolclass": SingletonThreadPool}, {"pool_cannot_queue"}),
        (SERVED, {"poolclass": NullPool, "pool_recycle": 0}, set()),
        (OTHER, {"poolclass": StaticPool, "module": sqlite3}, {"pool_cannot_queue"}),
        (FILE, {"poolclass": StaticPool}, set()),
        (FILE, {"poolclass": SingletonThreadPool}, set()),
        (FILE, {"poolclass": QueuePool}, set()),
    ],
)
def test_by_settings_alone(registry: CollectorRegistry, url: str, options: dict[str, Any], expected: set[str]) -> None:
    """What is wrong by itself shows before the first connection."""
    engine = create_engine(url, **options)
    assert expected == problems(watch(engine, registry=registry))
